"""Polygons of a mask, both ways, in the polygons' own box.

Coordinates are in px on the continuous image plane: pixel (x, y) is the unit square from (x, y) to (x + 1, y
+ 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import LimitError, MaskError
from bpr_service.kernel import kernel

Points = NDArray[np.float64]
_GRID = 5.0  # pycocotools draws polygons on a grid of fifths of a pixel
MAX_STEPS = 1 << 27
"""Pixels of the boxes of one mask's polygons and columns that their outlines cross: about a second's work."""


def check_polygons(polygons: Any, height: int, width: int) -> list[Points]:
    """The parts as flat float64 arrays [x1, y1, ...]; :class:`MaskError` names the part and what is wrong with it.

    Parts of one or two points, or none, cover nothing: they are left out where others are there.
    """
    if len(polygons) > 0 and np.isscalar(polygons[0]):
        polygons = [polygons]  # one part, written without the outer list
    if len(polygons) == 0:
        raise MaskError("no polygon", expected="one part or more", got="none", fix="leave the mask out, or draw it")
    sized = [part for part in polygons if not covers_nothing(part)]
    polygons = sized or polygons
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


@kernel
def _mark(x: int, va: int, vb: int, height: int, x0: int, y0: int, flips: NDArray[np.uint8]) -> None:
    """Turn the fill of column ``x`` around where an edge crosses its middle between the grid rows ``va`` and ``vb``."""
    low = (min(va, vb) + 0.5) / _GRID - 0.5
    flips[int(np.ceil(min(max(low, 0.0), float(height)))) - y0, x - x0] ^= np.uint8(1)


@kernel
def _cross(points: NDArray[np.int64], height: int, width: int, x0: int, y0: int, flips: NDArray[np.uint8]) -> None:
    """Mark in `flips` (h + 1, w), whose left top is pixel (x0, y0), where the outline crosses the middle of a column.

    `points` (k + 1, 2) are its closed corners on pycocotools' grid of fifths of a pixel. The arithmetic is that of
    ``rleFrPoly``, whose list of all grid points along the outline is never made: of a column, only the two grid points
    left and right of its middle (5 x + 2 and 5 x + 3) are looked at.
    """
    for k in range(points.shape[0] - 1):
        xs, ys, xe, ye = points[k, 0], points[k, 1], points[k + 1, 0], points[k + 1, 1]
        dx, dy = abs(xe - xs), abs(ye - ys)
        if (dx >= dy and xs > xe) or (dx < dy and ys > ye):
            xs, ys, xe, ye = xe, ye, xs, ys
        left, right = min(xs, xe), max(xs, xe)
        first = max((left + 2) // 5, 0)
        last = min((right - 3) // 5, width - 1)
        if dx >= dy:
            slope = (ye - ys) / dx if dx else 0.0
            for x in range(first, last + 1):
                t = 5 * x + 2 - xs
                if t >= 0 and t < dx:
                    _mark(x, int(ys + slope * t + 0.5), int(ys + slope * (t + 1) + 0.5), height, x0, y0, flips)
        elif dx:
            slope = (xe - xs) / dy
            for x in range(first, last + 1):
                goal = 5 * x + (3 if slope > 0 else 2)  # the grid column on the far side of the middle
                t = min(max(int((goal - xs) / slope), 1), dy)
                if slope > 0:
                    while t > 1 and int(xs + slope * (t - 1) + 0.5) >= goal:
                        t -= 1
                    while t <= dy and int(xs + slope * t + 0.5) < goal:
                        t += 1
                else:
                    while t > 1 and int(xs + slope * (t - 1) + 0.5) <= goal:
                        t -= 1
                    while t <= dy and int(xs + slope * t + 0.5) > goal:
                        t += 1
                if t <= dy:
                    _mark(x, t - 1 + ys, t + ys, height, x0, y0, flips)


@kernel
def _fill(flips: NDArray[np.uint8], crop: NDArray[np.uint8]) -> None:
    """Add to `crop` (h, w) what lies between an odd and an even mark of each column of `flips` (h + 1, w)."""
    inside = np.zeros(crop.shape[1], np.uint8)
    for y in range(crop.shape[0]):
        for x in range(crop.shape[1]):
            inside[x] ^= flips[y, x]
            crop[y, x] |= inside[x]


def covers_nothing(part: Any) -> bool:
    """Whether a part of a polygon has one or two points, or none."""
    if part is None:
        return True
    return isinstance(part, list | tuple | np.ndarray) and len(part) in (0, 2, 4) and all(map(np.isscalar, part))


def rasterise(parts: Sequence[Points], height: int, width: int) -> tuple[int, int, NDArray[np.uint8]]:
    """Left, top and the tight (h, w) uint8 {0, 1} crop of the union of `parts`, drawn as pycocotools draws it.

    What it takes is known before it is done: memory is twice the parts' box, time the parts' boxes and the columns
    that their edges cross. Raises :class:`LimitError` over :data:`MAX_STEPS`.
    """
    grid = [np.trunc(_GRID * part + 0.5).astype(np.int64).reshape(-1, 2) for part in parts]
    boxes = [_box(points, height, width) for points in grid]
    steps = sum(
        (x1 - x0) * (y1 - y0 + 1) + _crossings(points, width)
        for points, (x0, y0, x1, y1) in zip(grid, boxes, strict=True)
    )
    if steps > MAX_STEPS:
        raise LimitError(
            "the polygons are too ragged",
            expected=f"outlines that cross at most {MAX_STEPS} columns and pixels of their boxes",
            got=f"{steps}",
            fix="simplify the outlines, or send the mask as RLE",
        )
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    crop = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), np.uint8)
    for points, (left, top, right, bottom) in zip(grid, boxes, strict=True):
        flips = np.zeros((bottom - top + 1, right - left), np.uint8)
        _cross(np.concatenate([points, points[:1]]), height, width, left, top, flips)
        _fill(flips, crop[top - y0 : bottom - y0, left - x0 : right - x0])
    return x0, y0, crop


def _box(points: NDArray[np.int64], height: int, width: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), half-open, of the pixels that a part may fill; empty outside of the frame."""
    (left, top), (right, bottom) = points.min(axis=0) // 5, points.max(axis=0) // 5
    x0, y0 = min(max(int(left), 0), width), min(max(int(top), 0), height)
    return x0, y0, max(min(int(right) + 1, width), x0), max(min(int(bottom) + 1, height), y0)


def _crossings(points: NDArray[np.int64], width: int) -> int:
    """About how many columns the closed outline crosses in a frame of ``width`` px."""
    x = np.clip(points[:, 0], 0, 5 * width)
    return int(np.abs(np.diff(x, append=x[:1])).sum()) // 5 + x.size


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
    """Flat index of the next pixel whose top edge is on an outline not yet followed; -1 when there is none."""
    h, w = padded.shape
    for at in range(max(start, w), h * w):
        y = at // w
        x = at - y * w
        if padded[y, x] and not padded[y - 1, x] and not seen[y, x]:
            return at
    return -1


def traced(crop: NDArray[np.uint8], x0: int, y0: int) -> list[list[Points]]:
    """The rings, (n, 2) corners x, y along the pixels' edges, of the 4-connected parts of an (h, w) crop at (x0, y0).

    Parts come in scan order; the first ring of a part is its outline, the others, which go the other way round, are
    its holes.
    """
    if crop.size == 0:
        return []
    padded = np.pad(crop, 1)
    seen = np.zeros_like(padded)
    points = np.empty((1024, 2), np.int32)
    outer: list[tuple[int, Points]] = []
    holes: list[tuple[int, Points]] = []
    at = _next_start(padded, seen, 0)
    while at >= 0:
        y, x = divmod(at, padded.shape[1])
        n, area2 = _trace(padded, seen, y, x, points)
        if n > points.shape[0]:
            points = np.empty((n, 2), np.int32)
            _trace(padded, seen, y, x, points)
        ring = (points[:n] + np.array([x0 - 1, y0 - 1])).astype(np.float64)
        (outer if area2 > 0 else holes).append((at, ring))
        at = _next_start(padded, seen, at)
    if not holes:
        return [[ring] for _, ring in outer]
    return _with_holes(padded, outer, holes)


def outlines(crop: NDArray[np.uint8], x0: int, y0: int, *, slits: bool = False) -> list[list[float]]:
    """Outlines [x1, y1, ...] of the 4-connected parts of an (h, w) crop at (x0, y0), in scan order.

    Args:
        crop: (h, w) uint8 {0, 1}.
        x0: column of the crop's left top in the image, px.
        y0: row of it, px.
        slits: join every hole to the outline of its part by a slit of no width, so that the outline holds it: drawn
            by the even-odd rule the slit leaves no trace. Without it holes are left out, and so are filled.
    """
    return [(joined(rings) if slits else rings[0]).reshape(-1).tolist() for rings in traced(crop, x0, y0)]


def _with_holes(
    padded: NDArray[np.uint8], outer: Sequence[tuple[int, Points]], holes: Sequence[tuple[int, Points]]
) -> list[list[Points]]:
    """Each outer ring with the holes of its own part; rings come with the pixel that they begin at."""
    import cv2

    part = cv2.connectedComponents(padded, connectivity=4)[1].ravel()
    of_part: dict[int, list[Points]] = {int(part[at]): [ring] for at, ring in outer}
    for at, ring in holes:
        of_part[int(part[at])].append(ring)
    return list(of_part.values())


def joined(rings: Sequence[Points]) -> Points:
    """(n, 2) rings as one, each joined to those before it by a slit there and back between near corners.

    By the even-odd rule the one ring covers what is covered by an odd number of the rings; ultralytics writes the
    parts of an instance in one line in the same way.
    """
    whole = np.asarray(rings[0]).reshape(-1, 2)
    for other in rings[1:]:
        ring = np.asarray(other).reshape(-1, 2)
        i = int(((whole - ring[0]) ** 2).sum(axis=1).argmin())
        j = int(((ring - whole[i]) ** 2).sum(axis=1).argmin())
        whole = np.concatenate([whole[: i + 1], ring[j:], ring[: j + 1], whole[i:]])
    return whole
