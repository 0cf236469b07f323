"""Errors that real networks' masks were seen to have, beyond their grid: what they drop, swallow and leak into.

Shapes: h, w the window the mask lives in (px). Every kind takes a soft mask (h, w) float32 in [0, 1] and what is around
it, and gives a soft mask back, as in :mod:`refiner_training.data.simulate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Soft = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Around:
    """What a mask's window shows besides it, where it is known.

    The picture, (h, w, 3) uint8 RGB, and the true masks of other objects, (h, w) uint8 {0, 1}.
    """

    image: NDArray[np.uint8] | None = None
    others: NDArray[np.uint8] | None = None


def smooth_noise(shape: tuple[int, ...], sigma: float, reach: float, rng: Generator) -> Soft:
    """Gaussian noise of standard deviation ``sigma``, correlated over ``reach`` cells."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape).astype(np.float32), (0, 0), reach)
    return np.asarray(noise * np.float32(sigma / max(float(noise.std()), 1e-6)), np.float32)


def object_size_px(soft: Soft) -> float:
    """The side of a square of the mask's area."""
    return float(np.sqrt(max(int((soft > 0.5).sum()), 1)))


def _blurred(mask: Soft, rng: Generator) -> Soft:
    """(h, w) {0, 1} with an edge some pixels wide."""
    return np.clip(cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.6, 2.0)), 0, 1).astype(np.float32)


def staircase(soft: Soft, rng: Generator) -> Soft:
    """An argmax of a network of stride 8 to 16: thin parts lose to the background, the outline is in small steps.

    As a DeepLab's, whose logits are enlarged before the argmax at its own input size, and the labels by nearest
    neighbour to the picture's. The steps stay below those of ``blocks``, which no recipe trains on.
    """
    height, width = soft.shape
    step, stair = rng.uniform(8, 18), rng.uniform(1.2, 3.2)
    step = min(step, max(object_size_px(soft) / 4, 2.0))
    size = (max(round(width / step), 2), max(round(height / step), 2))
    small = cv2.resize(soft, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.3, 0.8), borderType=cv2.BORDER_REPLICATE)
    small = small + smooth_noise(small.shape, rng.uniform(0.0, 0.12), rng.uniform(0.7, 2.0), rng)
    size = (max(round(width / stair), 2), max(round(height / stair), 2))
    wide = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
    least = rng.uniform(0.4, 0.65)
    labels = (wide > least).astype(np.float32)
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST), np.float32)


def signed_distance_px(soft: Soft) -> Soft:
    """Distance to the mask's edge (h, w) float32: below zero inside."""
    inside = (soft > 0.5).astype(np.uint8)
    out = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3) if not inside.all() else np.zeros_like(soft)
    return np.asarray(out - cv2.distanceTransform(inside, cv2.DIST_L2, 3), np.float32)


def swollen(soft: Soft, rng: Generator) -> Soft:
    """Steadily too fat by up to 6 px (rarely too thin), details smoothed: a small output enlarged to the picture."""
    reach = min(rng.uniform(1.5, 6.5), 0.08 * object_size_px(soft) + 0.5)
    if rng.random() < 0.2:
        reach = -0.6 * reach
    distance = cv2.GaussianBlur(signed_distance_px(soft), (0, 0), rng.uniform(0.5, 0.5 + abs(reach) / 2))
    distance = distance + smooth_noise(soft.shape, 0.2 * abs(reach), rng.uniform(4, 16), rng)
    width = rng.uniform(0.6, 3.0)
    return np.asarray(np.clip(0.5 + (reach - distance) / (2 * width), 0, 1), np.float32)


def limbs(soft: Soft, rng: Generator) -> Soft:
    """Whole limbs missing: parts thinner than some radius, or what lies beyond a line, are gone."""
    inside = (soft > 0.5).astype(np.uint8)
    if rng.random() < 0.7:
        thick = float(cv2.distanceTransform(inside, cv2.DIST_L2, 3).max())
        radius = int(np.clip(rng.uniform(0.15, 0.6) * thick, 1, 12))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        thin = np.asarray(inside - cv2.morphologyEx(inside, cv2.MORPH_OPEN, disc), np.uint8)
        count, pieces = cv2.connectedComponents(thin, connectivity=8)
        dropped = rng.random(count) < rng.uniform(0.3, 1.0)
        dropped[0] = False
        kept = inside & ~dropped[pieces]
    else:
        ys, xs = np.nonzero(inside)
        if not len(ys):
            return soft
        angle = rng.uniform(0, 2 * np.pi)
        along = xs * np.cos(angle) + ys * np.sin(angle)
        gone = along > np.quantile(along, 1 - rng.uniform(0.02, 0.2))
        kept = inside.copy()
        kept[ys[gone], xs[gone]] = 0
    return _blurred(kept.astype(np.float32), rng)


def merged(soft: Soft, rng: Generator, around: Around) -> Soft:
    """A touching neighbour swallowed in part or whole (Tang et al., CVPR 2021, Figure 8); nothing where none is."""
    if around.others is None or not around.others.any():
        return soft
    distance = signed_distance_px(soft)
    reach = min(rng.uniform(3, 24), 0.3 * object_size_px(soft) + 2)
    reaches = distance + smooth_noise(soft.shape, 0.3 * reach, rng.uniform(6, 20), rng) < reach
    taken = np.maximum(soft, ((around.others > 0) & reaches).astype(np.float32))
    closed = cv2.morphologyEx(taken, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return _blurred(np.asarray(closed, np.float32), rng)


def leaks(soft: Soft, rng: Generator, around: Around) -> Soft:
    """Over the edge (or short of it) where the picture has little contrast."""
    if around.image is None:
        return soft
    distance = signed_distance_px(soft)
    grey = cv2.GaussianBlur(cv2.cvtColor(around.image, cv2.COLOR_RGB2GRAY), (0, 0), 1.2).astype(np.float32)
    contrast = cv2.blur(cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (9, 9))
    edge = np.abs(distance) < 1.5
    if not edge.any():
        return soft
    weak = 1 / (1 + (contrast / max(float(np.quantile(contrast[edge], rng.uniform(0.2, 0.5))), 1.0)) ** 4)
    reach = min(rng.uniform(3, 12), 0.15 * object_size_px(soft) + 1)
    moved = np.abs(smooth_noise(soft.shape, reach, rng.uniform(5, 14), rng)) * weak
    distance = distance - moved * (1.0 if rng.random() < 0.75 else -1.0)
    return np.asarray(np.clip(0.5 - distance / (2 * rng.uniform(0.6, 2.0)), 0, 1), np.float32)
