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


def appearance(image: U8, rng: Generator) -> U8:
    """(h, w, 3) as another camera or stain might show it: grey, inverted, other colours, flat, blurred, noisy."""
    kind = str(rng.choice(["grey", "inverted", "colours", "flat", "blur", "noise"]))
    if kind == "blur":
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(1.2, 4.0)), np.uint8)
    if kind == "noise":
        noise = rng.normal(0, rng.uniform(8, 28), (*image.shape[:2], 1 if rng.random() < 0.5 else 3))
        return np.asarray(np.clip(image + noise, 0, 255), np.uint8)
    if kind == "grey" or (kind == "inverted" and rng.random() < 0.5):
        image = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    if kind == "inverted":
        image = 255 - image
    if kind == "colours":
        turn = rng.dirichlet(np.ones(3), 3) * rng.uniform(0.7, 1.3, (3, 1))
        return np.asarray(cv2.transform(image, turn), np.uint8)
    if kind == "flat":
        contrast, centre = np.exp(rng.uniform(np.log(0.08), np.log(0.6))), rng.uniform(40, 215)
        return np.asarray(np.clip((image - image.mean()) * contrast + centre, 0, 255), np.uint8)
    return image


def plain(shape: tuple[int, int], rng: Generator) -> U8:
    """(h, w, 3) without any edge: white, grey, one colour, a gradient, or noise."""
    height, width = shape
    kind = str(rng.choice(["white", "grey", "colour", "gradient", "noise"]))
    if kind == "white":
        return np.full((height, width, 3), 255, np.uint8)
    if kind in ("grey", "colour"):
        level = rng.integers(0, 256, 3 if kind == "colour" else 1)
        return np.broadcast_to(level.astype(np.uint8), (height, width, 3)).copy()
    if kind == "gradient":
        corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
        return np.asarray(cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    noise = rng.normal(rng.uniform(60, 200), rng.uniform(4, 60), (height, width, 1 if rng.random() < 0.5 else 3))
    noise = np.repeat(noise, 3 // noise.shape[2], axis=2)
    if rng.random() < 0.5:
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.6, 3.0)), np.float64)
    return np.asarray(np.clip(noise, 0, 255), np.uint8)


def on_plain(image: U8, inside: NDArray[np.bool_], rng: Generator) -> U8:
    """The object (h, w) bool of an image (h, w, 3) before a plain background, its edge blended over a pixel or so."""
    alpha = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), rng.uniform(0.4, 1.0))[..., None]
    return np.asarray(image * alpha + plain(inside.shape, rng) * (1 - alpha), np.uint8)


def flips(patches: U8, targets: U8, rng: Generator) -> tuple[U8, U8]:
    """One of the square's eight symmetries for a batch: (N, S, S, 4) and (N, S, S) uint8."""
    if rng.random() < 0.5:
        patches, targets = patches[:, :, ::-1], targets[:, :, ::-1]
    if rng.random() < 0.2:
        patches, targets = patches[:, ::-1], targets[:, ::-1]
    if rng.random() < 0.2:
        patches, targets = patches.transpose(0, 2, 1, 3), targets.transpose(0, 2, 1)
    return patches, targets
