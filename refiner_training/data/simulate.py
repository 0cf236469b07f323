"""Realistic coarse masks made from ground truth, for when there are no predictions to learn from.

Shapes: h, w the window the mask lives in (px). Every kind of error takes a soft mask (h, w) float32 in [0, 1] and
gives one back; thresholded at 0.5 it is the coarse mask. What each kind imitates is in its docstring.

``blocks`` (nearest-neighbour blocks of a coarse grid) is implemented for measuring only: no recipe that ships trains
on it, so that its figures tell how a model does on a kind of error it has never met.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from bpr_service.errors import UnknownName
from refiner_training.data.simulate_network import (
    Around,
    Soft,
    leaks,
    limbs,
    merged,
    object_size_px,
    smooth_noise,
    staircase,
    swollen,
)


def roi_grid(soft: Soft, rng: Generator, sizes: tuple[int, ...] = (14, 28, 28, 28, 56)) -> Soft:
    """A mask head's output: the mask resampled to an M x M grid over a shifted, jittered box, and pasted back.

    Mask R-CNN (He et al., ICCV 2017, section 3) predicts 28 x 28 logits a box; the logits get smooth noise.
    """
    ys, xs = np.nonzero(soft > 0.5)
    if not len(ys):
        return soft
    height, width = soft.shape
    x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
    box_w, box_h = float(x1 - x0), float(y1 - y0)
    spread = rng.choice([0.01, 0.03, 0.06])
    jitter = rng.normal(0, spread, 4) * (box_w, box_h, box_w, box_h)
    left, top, right, bottom = np.array([x0, y0, x1, y1]) + jitter
    size = int(rng.choice(sizes))
    step_x, step_y = max(right - left, 2.0) / size, max(bottom - top, 2.0) / size
    # Area sampling into the grid: blur by half a cell, then sample the cell centres.
    sigma = (max(step_x * 0.35, 1e-3), max(step_y * 0.35, 1e-3))
    blurred = cv2.GaussianBlur(soft, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1], borderType=cv2.BORDER_REPLICATE)
    to_grid = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    grid = cv2.warpAffine(blurred, to_grid, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.85:
        grid = cv2.GaussianBlur(grid, (0, 0), rng.uniform(0.3, 1.1), borderType=cv2.BORDER_REPLICATE)
        grid = grid + smooth_noise(grid.shape, rng.uniform(0.0, 0.3), rng.uniform(0.5, 2.0), rng)
    from_grid = cv2.invertAffineTransform(to_grid)
    pasted = cv2.warpAffine(
        np.clip(grid, 0, 1).astype(np.float32),
        from_grid,
        (width, height),
        flags=flags,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # Nothing exists outside the predicted box.
    outside = np.ones((height, width), bool)
    outside[max(round(top), 0) : max(round(bottom), 0), max(round(left), 0) : max(round(right), 0)] = False
    pasted[outside] = 0
    return np.asarray(pasted, np.float32)


def stride(soft: Soft, rng: Generator) -> Soft:
    """A fully convolutional network's output: probabilities at stride 4 to 16, enlarged bilinearly."""
    height, width = soft.shape
    step = float(rng.choice([4, 8, 8, 8, 16]))
    size = (max(round(width / step), 2), max(round(height / step), 2))
    shift = rng.uniform(-0.3, 0.3, 2) * step
    moved = cv2.warpAffine(
        soft, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (width, height), borderMode=cv2.BORDER_REPLICATE
    )
    small = cv2.resize(moved, size, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.6:
        small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.3, 1.0), borderType=cv2.BORDER_REPLICATE)
    small = small + smooth_noise(small.shape, rng.uniform(0.0, 0.25), rng.uniform(0.5, 2.0), rng)
    return np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)


def polygon(soft: Soft, rng: Generator) -> Soft:
    """An annotator's clicks: the contours simplified, each corner a little off."""
    binary = (soft > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    size = object_size_px(soft)
    epsilon = min(rng.uniform(0.8, 4.0), 0.04 * size + 0.5)
    parts = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, epsilon, True).reshape(-1, 2)
        if len(corners) >= 3:
            parts.append(np.round(corners + rng.normal(0, 0.35 * epsilon, corners.shape)).astype(np.int32))
    drawn = np.zeros_like(binary)
    cv2.fillPoly(drawn, parts, 1)
    return drawn.astype(np.float32)


def morphology(soft: Soft, rng: Generator) -> Soft:
    """A mask a little too fat, too thin, or with details opened or closed away."""
    size = object_size_px(soft)
    radius = int(np.clip(round(rng.uniform(1, 5)), 1, max(1, 0.06 * size)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    kind = rng.choice([cv2.MORPH_DILATE, cv2.MORPH_ERODE, cv2.MORPH_OPEN, cv2.MORPH_CLOSE])
    return np.asarray(cv2.morphologyEx(soft, int(kind), kernel, borderType=cv2.BORDER_REPLICATE), np.float32)


def warp(soft: Soft, rng: Generator) -> Soft:
    """A boundary that wanders: a smooth random displacement of up to a few pixels."""
    height, width = soft.shape
    size = object_size_px(soft)
    amplitude = rng.uniform(0.5, min(5.0, 0.08 * size + 0.8))
    cell = rng.uniform(6, 40)
    grid = (max(int(width / cell), 2) + 1, max(int(height / cell), 2) + 1)
    field = rng.normal(0, amplitude, (2, grid[1], grid[0])).astype(np.float32)
    map_x, map_y = (cv2.resize(axis, (width, height), interpolation=cv2.INTER_CUBIC) for axis in field)
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(
        cv2.remap(soft, xs + map_x, ys + map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def lumps(soft: Soft, rng: Generator) -> Soft:
    """Pieces missing from the mask or stuck to it: a few smooth blobs at its boundary."""
    edge = np.argwhere(cv2.morphologyEx((soft > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))
    if not len(edge):
        return soft
    size = object_size_px(soft)
    changed = soft.copy()
    for y, x in edge[rng.integers(0, len(edge), int(rng.integers(1, 5)))]:
        axes = np.maximum(rng.uniform(0.03, 0.12, 2) * size, 1.5).astype(int)
        value = float(rng.random() < 0.5)
        cv2.ellipse(changed, (int(x), int(y)), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, value, -1)
    return np.asarray(cv2.GaussianBlur(changed, (0, 0), 1.0), np.float32)


def exact(soft: Soft, rng: Generator) -> Soft:
    """A mask that is right already: the refiner has to learn to leave it alone."""
    return soft


def blocks(soft: Soft, rng: Generator) -> Soft:
    """Staircases: a coarse grid enlarged by nearest neighbour. Held out of every training recipe."""
    height, width = soft.shape
    step = float(rng.choice([4, 6, 8, 12]))
    size = (max(round(width / step), 2), max(round(height / step), 2))
    small = cv2.resize(soft, size, interpolation=cv2.INTER_AREA)
    return np.asarray(
        cv2.resize((small > 0.5).astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST), np.float32
    )


KINDS: dict[str, Callable[[Soft, Generator], Soft]] = {
    "roi_grid": roi_grid,
    "stride": stride,
    "polygon": polygon,
    "morphology": morphology,
    "warp": warp,
    "lumps": lumps,
    "staircase": staircase,
    "swollen": swollen,
    "limbs": limbs,
    "exact": exact,
    "blocks": blocks,
}

SEEING_KINDS: dict[str, Callable[[Soft, Generator, Around], Soft]] = {"merged": merged, "leaks": leaks}
"""Kinds that depend on what is around the mask."""

ALL_KINDS = (*KINDS, *SEEING_KINDS)

DEFAULT_MIX: dict[str, float] = {
    "roi_grid": 0.42,
    "stride": 0.18,
    "polygon": 0.08,
    "morphology": 0.06,
    "warp": 0.08,
    "lumps": 0.04,
    "exact": 0.14,
}

LEAST_IOU: dict[str, float] = {"stride": 0.05, "staircase": 0.3}
"""IoU with the ground truth that a coarse mask needs: 0.5 where not named, as the paper trains on matched instances
only (section 3.4). A label map's masks are not matched, and what a coarse stride leaves of a pole is little."""


def draw_kind(mix: dict[str, float], rng: Generator) -> str:
    """A kind of error, by the weights of a mix.

    Raises:
        UnknownName: a kind that does not exist.
    """
    unknown = set(mix) - set(ALL_KINDS)
    if unknown:
        raise UnknownName("coarse-mask error", sorted(unknown)[0], ALL_KINDS)
    weights = np.array(list(mix.values()), np.float64)
    return str(rng.choice(list(mix), p=weights / weights.sum()))


def coarse_mask(
    mask: NDArray[np.uint8],
    rng: Generator,
    mix: dict[str, float] = DEFAULT_MIX,
    around: Around | None = None,
) -> tuple[Soft, str]:
    """Draw a kind of error and apply it; sometimes a second, light one on top.

    Args:
        mask: (h, w) uint8, 1 foreground, in a window with some margin around the object.
        rng: of the draw.
        mix: weight of each kind.
        around: the picture and the other masks of the window, for the kinds that depend on them.

    Returns:
        The soft coarse mask (h, w) float32 in [0, 1], and the kind's name. Where an error would leave too low an IoU
        to the ground truth (:data:`LEAST_IOU`), the exact mask comes back.

    Raises:
        UnknownName: a kind that does not exist.
    """
    kind = draw_kind(mix, rng)
    truth = (mask == 1).astype(np.float32)
    soft = KINDS[kind](truth, rng) if kind in KINDS else SEEING_KINDS[kind](truth, rng, around or Around())
    if kind not in ("exact", "blocks") and rng.random() < 0.2:
        soft = (warp if rng.random() < 0.5 else morphology)(soft, rng)
    coarse = soft > 0.5
    union = int((coarse | (truth > 0)).sum())
    if union == 0 or int((coarse & (truth > 0)).sum()) / union <= LEAST_IOU.get(kind, 0.5):
        return truth, "exact"
    return soft, kind
