"""Polygons of a mask, both ways, in the polygons' own box.

Coordinates are in px on the continuous image plane: pixel (x, y) is the unit square from (x, y) to (x + 1, y
+ 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import MaskError
from bpr_service.kernel import kernel
from bpr_service.masks import rle

Points = NDArray[np.float64]
_GRID = 5.0  # pycocotools draws polygons on a grid of fifths of a pixel


def check_polygons(polygons: Any, height: int, width: int) -> list[Points]:
    """The parts as flat float64 arrays [x1, y1, ...]; :class:`MaskError` names the part and what is wrong
    with it.
    """
    if len(polygons) > 0 and np.isscalar(polygons[0]):
        polygons = [polygons]  # one part, written without the outer list
    if len(polygons) == 0:
        raise MaskError("no polygon", expected="one part or more", got="none", fix="leave the mask out, or draw it")
    parts = []
    reach = float(max(height, width)) + 1024.0
    for i, part in enumerate(polygons):
        try:
            flat = np.asarray(part, np.float64).reshape(-1)
        except (TypeError, ValueError):
            flat = np.empty(0)
        if flat.size < 6 or flat.size % 2:
            raise MaskError(
                f"polygon {i}",
                expected="an even number of values, three points or more: [x1, y1, x2, y2, x3, y3, ...]",
                got=f"{flat.size} values",
                fix="close the outline with at least three points",
            )
        if not np.isfinite(flat).all():
            raise MaskError(
                f"polygon {i}",
                expected="finite coordinates",
                got=f"{flat[~np.isfinite(flat)][0]}",
                fix="remove the point or the polygon",
            )
        if flat.min() < -reach or flat.max() > 2 * reach:
            raise MaskError(
                f"polygon {i}",
                expected=f"pixel coordinates near the {height} x {width} image",
                got=f"values from {flat.min():g} to {flat.max():g}",
                fix="clip the polygon to the image; coordinates are pixels, not metres",
            )
        parts.append(flat)
    return parts


def rasterise(parts: Sequence[Points], height: int, width: int) -> tuple[int, int, NDArray[np.uint8]]:
    """Left, top and the tight (h, w) uint8 {0, 1} crop of the union of `parts`, as pycocotools draws it on the
    full frame.

    The points are put on pycocotools' own grid before they are moved, so that moving them changes no
    rounding.
    """
    from pycocotools import mask as coco

    grid = [np.trunc(_GRID * part + 0.5) for part in parts]
    xs, ys = np.concatenate([g[0::2] for g in grid]), np.concatenate([g[1::2] for g in grid])
    x0 = min(max(int(xs.min() / _GRID) - 1, 0), width - 1)
    y0 = min(max(int(ys.min() / _GRID) - 1, 0), height - 1)
    x1 = min(max(int(xs.max() / _GRID) + 2, x0 + 1), width)
    y1 = min(max(int(ys.max() / _GRID) + 2, y0 + 1), height)
    moved = []
    for g in grid:
        steps = g - np.resize(np.array([x0, y0]) * _GRID, g.size)
        # it truncates 5 v + 1/2 towards zero; keep clear of the step on either side of zero
        moved.append(np.where(steps >= 0, steps / _GRID, (steps - 0.7) / _GRID).tolist())
    h, w = y1 - y0, x1 - x0
    counts = coco.merge(coco.frPyObjects(moved, h, w))["counts"]
    x, y, crop = rle.decode(rle.parse_counts(counts, h, w), h)
    return (x0 + x, y0 + y, crop) if crop.size else (0, 0, crop)


@kernel
def _trace(
    padded: NDArray[np.uint8], seen: NDArray[np.uint8], y: int, x: int, points: NDArray[np.int32]
) -> tuple[int, int]:
    """Follow the pixel edges from the top edge of pixel (y, x), foreground on the right hand.

    `padded` has one row and column of zeros around it. Fills `points` with corners (x, y) and marks top edges
    in `seen`; returns how many corners there are (may exceed the room) and twice the signed area.
    """
    dx, dy = 1, 0
    vx, vy = x, y  # the corner we stand on; pixel (r, c) has its left top corner at (c, r)
    n, area2 = 0, 0
    while True:
        if dx == 1:
            seen[vy, vx] = 1
        nx, ny = vx + dx, vy + dy
        area2 += vx * ny - nx * vy
        vx, vy = nx, ny
        # the two pixels ahead: right and left of the way
        rx = vx if (dx == 1 or dy == -1) else vx - 1
        ry = vy if (dx == 1 or dy == 1) else vy - 1
        lx = vx if (dx == 1 or dy == 1) else vx - 1
        ly = vy if (dx == -1 or dy == 1) else vy - 1
        odx, ody = dx, dy
        if padded[ry, rx] == 0:
            dx, dy = -dy, dx
        elif padded[ly, lx] != 0:
            dx, dy = dy, -dx
        if dx != odx or dy != ody:
            if n < points.shape[0]:
                points[n, 0] = vx
                points[n, 1] = vy
            n += 1
        if vx == x and vy == y and dx == 1 and dy == 0:
            return n, area2


@kernel
def _next_start(padded: NDArray[np.uint8], seen: NDArray[np.uint8], start: int) -> int:
    """Flat index of the next pixel whose top edge is on an outline not yet followed; -1 when there is
    none.
    """
    h, w = padded.shape
    for at in range(max(start, w), h * w):
        y = at // w
        x = at - y * w
        if padded[y, x] and not padded[y - 1, x] and not seen[y, x]:
            return at
    return -1


def outlines(crop: NDArray[np.uint8], x0: int, y0: int) -> list[list[float]]:
    """Outer outlines [x1, y1, ...] of the 4-connected parts of an (h, w) crop at (x0, y0), in scan order."""
    if crop.size == 0:
        return []
    padded = np.pad(crop, 1)
    seen = np.zeros_like(padded)
    points = np.empty((1024, 2), np.int32)
    found: list[list[float]] = []
    at = _next_start(padded, seen, 0)
    while at >= 0:
        y, x = divmod(at, padded.shape[1])
        n, area2 = _trace(padded, seen, y, x, points)
        if n > points.shape[0]:
            points = np.empty((n, 2), np.int32)
            _trace(padded, seen, y, x, points)
        if area2 > 0:  # a hole is followed the other way round
            found.append((points[:n] + np.array([x0 - 1, y0 - 1])).astype(np.float64).reshape(-1).tolist())
        at = _next_start(padded, seen, at)
    return found
