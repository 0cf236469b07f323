"""Photometric and geometric augmentation of training patches.

Shapes: h, w a window; N patches of S x S px; images are RGB uint8.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def photometric(image: U8, rng: Generator) -> U8:
    """Brightness, contrast, gamma, saturation and colour cast of (h, w, 3); one time in six blur, noise or JPEG."""
    if rng.random() < 0.6:
        ramp = np.linspace(0, 1, 256, dtype=np.float32) ** rng.uniform(0.75, 1.35)
        gain, offset = rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.08)
        cast = rng.uniform(0.94, 1.06, 3)
        curve = np.clip(((ramp[:, None] - 0.5) * gain + 0.5 + offset) * cast * 255, 0, 255).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, curve.reshape(1, 256, 3)), np.uint8)
        if rng.random() < 0.5:
            gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            colour = rng.uniform(0.0, 1.3) if rng.random() < 0.8 else 0.0
            image = np.asarray(cv2.addWeighted(image, colour, gray, 1 - colour, 0), np.uint8)
    draw = rng.random()
    if draw < 0.06:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3)), np.uint8)
    elif draw < 0.11:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    elif draw < 0.16:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 90))])
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return image


def flips(patches: U8, targets: U8, rng: Generator) -> tuple[U8, U8]:
    """One of the square's eight symmetries for a batch: (N, S, S, 4) and (N, S, S) uint8."""
    if rng.random() < 0.5:
        patches, targets = patches[:, :, ::-1], targets[:, :, ::-1]
    if rng.random() < 0.2:
        patches, targets = patches[:, ::-1], targets[:, ::-1]
    if rng.random() < 0.2:
        patches, targets = patches.transpose(0, 2, 1, 3), targets.transpose(0, 2, 1)
    return patches, targets
