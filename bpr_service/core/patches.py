"""Step 2: patches along the boundary (Tang et al., CVPR 2021, section 3.2; the other schemes: Table 6 of the
journal).

Letters: H, W are the image's size; p is ``patch_size_px``, S ``network_size_px``, c = p + 2 ``padding_px``,
all in px; B is the number of boundary pixels, P of patches.

A patch is the half-open box (x0, y0, x1, y1). Squares are moved to lie inside the image, so the last row and
column are reached; along a side shorter than p the square starts at 0 and hangs over the end. What a crop
reads outside the image repeats the image's border.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import PatchConfig
from bpr_service.core.boundary import Boundary, boundary_pixels
from bpr_service.core.kernel import kernel
from bpr_service.core.masks import Mask
from bpr_service.errors import ConfigError

Boxes = NDArray[np.int32]
Positions = NDArray[np.int32]
_PIXEL = np.dtype("<u4")


def place_patches(mask: Mask, config: PatchConfig) -> Boxes:
    """Where the patches of `mask` lie: (P, 4) int32 boxes in image coordinates.

    - ``dense``: a square centred on every boundary pixel, thinned by NMS in the order of `boundary_pixels`;
    with
      ``config.cover`` then more squares, in the same order, until every boundary pixel lies in one.
    - ``sparse``: as few squares as a greedy pass needs for every boundary pixel to lie in one; see
      `sparse_patches`.
    - ``grid``: the squares of a fixed grid that hold a boundary pixel, row by row.
    - ``instance``: one box, the mask's own, wider by half a patch on each side.

    An empty or full mask has none.
    """
    boundary = boundary_pixels(mask)
    if len(boundary) == 0:
        return np.empty((0, 4), np.int32)
    size = config.patch_size_px
    if config.scheme == "instance":
        x0, y0, x1, y1 = mask.box
        grow = size // 2
        box = (max(x0 - grow, 0), max(y0 - grow, 0), min(x1 + grow, mask.width), min(y1 + grow, mask.height))
        return np.array([box], np.int32)
    if config.scheme == "grid":
        return grid_patches(boundary, mask.height, mask.width, size)
    if config.scheme == "sparse":
        return sparse_patches(boundary, mask.height, mask.width, size)
    xs, ys = window_positions(boundary, mask.height, mask.width, size)
    kept = suppress(xs, ys, size, config.nms_threshold)
    if config.cover:
        kept = np.concatenate([kept, _cover(boundary.xs, boundary.ys, xs, ys, kept, size)])
    return squares(xs[kept], ys[kept], size)


def squares(xs: Positions, ys: Positions, size: int) -> Boxes:
    """(P, 4) int32 boxes of the `size` squares whose left tops are `xs`, `ys`."""
    return np.stack([xs, ys, xs + size, ys + size], axis=1).astype(np.int32)


def window_positions(boundary: Boundary, height: int, width: int, size: int) -> tuple[Positions, Positions]:
    """Left and top, (B,) int32 each, of the square centred on each boundary pixel and moved inside the
    image.
    """
    xs = np.clip(boundary.xs - size // 2, 0, max(width - size, 0))
    ys = np.clip(boundary.ys - size // 2, 0, max(height - size, 0))
    return xs.astype(np.int32, copy=False), ys.astype(np.int32, copy=False)


def grid_patches(boundary: Boundary, height: int, width: int, size: int) -> Boxes:
    """The squares of a grid from (0, 0) that hold a boundary pixel; the last ones are moved inside the
    image.
    """
    columns = -(-width // size)
    cells = np.unique((boundary.ys // size).astype(np.int64) * columns + boundary.xs // size)
    xs = np.minimum(cells % columns * size, max(width - size, 0))
    ys = np.minimum(cells // columns * size, max(height - size, 0))
    return squares(xs.astype(np.int32), ys.astype(np.int32), size)


@kernel
def _sparse(
    px: Positions, py: Positions, height: int, width: int, size: int, x0: int, y0: int, left: NDArray[np.uint8]
) -> Positions:
    """(P, 2) left and top of the squares; `left` is 1 at every boundary pixel and 0 when its square is placed."""
    h, w = left.shape
    reach = size // 2 - 1  # the mean of pixels so near lies so near: the square around it holds the pixel itself
    placed = np.empty((px.size, 2), np.int32)
    n = 0
    for i in range(px.size):
        x, y = px[i] - x0, py[i] - y0
        if not left[y, x]:
            continue
        sum_x, sum_y, count = 0, 0, 0
        for row in range(max(y - reach, 0), min(y + reach + 1, h)):
            for column in range(max(x - reach, 0), min(x + reach + 1, w)):
                if left[row, column]:
                    sum_x += column
                    sum_y += row
                    count += 1
        a = min(max(sum_x // count + x0 - size // 2, 0), max(width - size, 0))
        b = min(max(sum_y // count + y0 - size // 2, 0), max(height - size, 0))
        placed[n, 0], placed[n, 1] = a, b
        n += 1
        for row in range(max(b - y0, 0), min(b - y0 + size, h)):
            left[row, max(a - x0, 0) : min(a - x0 + size, w)] = 0
    return placed[:n].copy()


def sparse_patches(boundary: Boundary, height: int, width: int, size: int) -> Boxes:
    """Few squares that leave no boundary pixel out: in the order of `boundary_pixels`, a pixel that lies in none
    gets one, centred on the mean of the pixels around it that lie in none either.
    """
    x0, y0 = int(boundary.xs.min()), int(boundary.ys.min())
    left = np.zeros((int(boundary.ys.max()) - y0 + 1, int(boundary.xs.max()) - x0 + 1), np.uint8)
    left[boundary.ys - y0, boundary.xs - x0] = 1
    placed = _sparse(boundary.xs, boundary.ys, height, width, size, x0, y0, left)
    return squares(placed[:, 0], placed[:, 1], size)


# ---- NMS of equal squares ----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def stencil(size: int, threshold: float) -> NDArray[np.int32]:
    """Which squares a kept square suppresses: (2 size + 1,) int32, entry ``size + dy`` is the largest
    ``|dx|``, or -1.

    The IoU of equal squares depends on (dx, dy) alone. It is computed in float32 as torchvision's ``nms``
    does, so that a square exactly on the threshold falls on the same side.
    """
    side = np.maximum(size - np.abs(np.arange(-size, size + 1)), 0).astype(np.float32)
    inter = side[:, None] * side[None, :]
    area = np.float32(size * size)
    over = (inter / (area + area - inter)).astype(np.float64) > threshold
    return np.asarray(over[:, size:].sum(axis=1) - 1, np.int32)


@kernel
def _suppress(
    xs: Positions, ys: Positions, x0: int, y0: int, reach: NDArray[np.int32], stamp: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Greedy NMS on a raster of positions: keep what is not stamped, stamp what it suppresses."""
    h, w = stamp.shape
    size = reach.size // 2
    kept = np.empty(xs.size, np.int64)
    n = 0
    for i in range(xs.size):
        x, y = xs[i] - x0, ys[i] - y0
        if stamp[y, x]:
            continue
        kept[n] = i
        n += 1
        for row in range(max(y - size, 0), min(y + size + 1, h)):
            r = reach[row - y + size]
            if r >= 0:
                stamp[row, max(x - r, 0) : min(x + r + 1, w)] = 1
    return kept[:n].copy()


def suppress(xs: Positions, ys: Positions, size: int, threshold: float) -> NDArray[np.int64]:
    """Greedy NMS of equal squares in the order given: the indices that are kept.

    Equal to ``torchvision.ops.nms`` on the same boxes in the same order (falling scores, ties as listed).

    Parameters
    ----------
    xs, ys : (B,) int32, left and top of each square, px
    size : side of the squares, px
    threshold : a square whose IoU with a kept one exceeds it is dropped
    """
    if xs.size == 0:
        return np.empty(0, np.int64)
    x0, y0 = int(xs.min()), int(ys.min())
    stamp = np.zeros((int(ys.max()) - y0 + 1, int(xs.max()) - x0 + 1), np.uint8)
    kept: NDArray[np.int64] = _suppress(xs, ys, x0, y0, stencil(size, threshold), stamp)
    return kept


@kernel
def _cover_kernel(
    px: Positions,
    py: Positions,
    xs: Positions,
    ys: Positions,
    kept: NDArray[np.int64],
    size: int,
    x0: int,
    y0: int,
    covered: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Indices, in order, whose pixel lies in no square of `kept` nor in one added before it."""
    h, w = covered.shape
    for k in kept:
        y = ys[k] - y0
        for row in range(max(y, 0), min(y + size, h)):
            covered[row, max(xs[k] - x0, 0) : min(xs[k] - x0 + size, w)] = 1
    added = np.empty(px.size, np.int64)
    n = 0
    for i in range(px.size):
        if covered[py[i] - y0, px[i] - x0]:
            continue
        added[n] = i
        n += 1
        y = ys[i] - y0
        for row in range(max(y, 0), min(y + size, h)):
            covered[row, max(xs[i] - x0, 0) : min(xs[i] - x0 + size, w)] = 1
    return added[:n].copy()


def _cover(
    px: Positions, py: Positions, xs: Positions, ys: Positions, kept: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Squares to add so that every boundary pixel (`px`, `py`) lies in one.

    Below a threshold of 1/3 NMS leaves gaps: two 64 px squares 35 px apart have an IoU of 0.29, and the pixel
    that the dropped one was centred on may lie in no other.
    """
    x0, y0 = int(px.min()), int(py.min())
    covered = np.zeros((int(py.max()) - y0 + 1, int(px.max()) - x0 + 1), np.uint8)
    added: NDArray[np.int64] = _cover_kernel(px, py, xs, ys, kept, size, x0, y0, covered)
    return added


def left_out(boundary: Boundary, boxes: Boxes) -> NDArray[np.bool_]:
    """(B,) bool: which boundary pixels lie in none of the (P, 4) square `boxes`."""
    if len(boundary) == 0 or boxes.shape[0] == 0:
        return np.ones(len(boundary), np.bool_)
    x0, y0 = int(boundary.xs.min()), int(boundary.ys.min())
    h, w = int(boundary.ys.max()) - y0 + 1, int(boundary.xs.max()) - x0 + 1
    ends = np.zeros((h + 1, w + 1), np.int32)  # summed twice, corners of boxes give how many lie over a pixel
    xa, xb = np.clip(boxes[:, 0] - x0, 0, w), np.clip(boxes[:, 2] - x0, 0, w)
    ya, yb = np.clip(boxes[:, 1] - y0, 0, h), np.clip(boxes[:, 3] - y0, 0, h)
    for rows, columns, sign in ((ya, xa, 1), (ya, xb, -1), (yb, xa, -1), (yb, xb, 1)):
        np.add.at(ends, (rows, columns), sign)
    depth = ends.cumsum(axis=0).cumsum(axis=1)
    out: NDArray[np.bool_] = depth[boundary.ys - y0, boundary.xs - x0] == 0
    return out


def drop_full(mask: Mask, boxes: Boxes) -> Boxes:
    """Without the patches that touch the image's border and are all foreground (semantic: Hu et al., section
    4.5).
    """
    at_border = (boxes[:, 0] <= 0) | (boxes[:, 1] <= 0) | (boxes[:, 2] >= mask.width) | (boxes[:, 3] >= mask.height)
    keep = np.ones(boxes.shape[0], np.bool_)
    for i in np.flatnonzero(at_border):
        x0, y0, x1, y1 = boxes[i]
        keep[i] = not mask.window(x0, y0, min(x1, mask.width), min(y1, mask.height)).all()
    return boxes[keep]


# ---- crops -------------------------------------------------------------------------------------------------


@kernel
def _gather(
    image: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    x: int,
    y: int,
    scale: int,
    boxes: Boxes,
    padding: int,
    out: NDArray[np.uint32],
) -> None:
    """out[i] = image and mask (crop at (x, y), times `scale`) over boxes[i] with its padding.

    A pixel is one word, red in its lowest byte: (n, h, w) uint32 is (n, h, w, 4) uint8 in little-endian memory.
    """
    height, width = image.shape[0], image.shape[1]
    h, w = crop.shape
    rows, columns = out.shape[1], out.shape[2]
    for i in range(boxes.shape[0]):
        left, top = boxes[i, 0] - padding, boxes[i, 1] - padding
        inner = left >= 0 and left + columns <= width
        for r in range(rows):
            row = min(max(top + r, 0), height - 1)
            source = image[row]
            target = out[i, r]
            if inner:
                piece = source[left : left + columns]
                for k in range(columns):
                    target[k] = piece[k, 0] | piece[k, 1] << 8 | piece[k, 2] << 16
            else:
                for k in range(columns):
                    column = min(max(left + k, 0), width - 1)
                    target[k] = source[column, 0] | source[column, 1] << 8 | source[column, 2] << 16
            if 0 <= row - y < h:
                line = crop[row - y]
                if inner:
                    for column in range(max(left, x), min(left + columns, x + w)):
                        target[column - left] |= line[column - x] * scale << 24
                else:
                    for k in range(columns):
                        column = min(max(left + k, 0), width - 1) - x
                        if 0 <= column < w:
                            target[k] |= line[column] * scale << 24


def crop_patches(
    image: NDArray[np.uint8],
    mask: Mask,
    boxes: Boxes,
    config: PatchConfig,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Cut the patches, with their padding, at network size.

    Parameters
    ----------
    image : (H, W, 3) uint8 RGB
    mask : of an (H, W) image; its probabilities are cut where it has them, else 0 and 255
    boxes : (P, 4) int32, from `place_patches`
    out : (P, S, S, 4) uint8 to write to, or None

    Returns
    -------
    (P, S, S, 4) uint8: RGB and mask. Where c equals S the pixels are copied; else OpenCV resizes each patch
    on its own (area when it shrinks, linear when it grows), so that none reads across its edge.
    """
    side, n = config.network_size_px, boxes.shape[0]
    if out is None:
        out = np.empty((n, side, side, 4), np.uint8)
    elif out.shape != (n, side, side, 4) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ConfigError(
            "the batch to write to",
            expected=f"C-contiguous uint8 {(n, side, side, 4)}",
            got=f"{out.dtype} {out.shape}",
            fix="allocate it with numpy.empty",
        )
    if n == 0:
        return out
    levels, scale = (mask.crop, 255) if mask.soft is None else (mask.soft, 1)
    padding = config.padding_px
    if config.scheme != "instance" and config.crop_size_px == side:
        _gather(image, levels, mask.x, mask.y, scale, boxes, padding, out.view(_PIXEL)[..., 0])
        return out
    import cv2

    for target, box in zip(out, boxes, strict=True):  # one OpenCV call a patch: it resizes pictures, not batches
        w, h = int(box[2] - box[0]) + 2 * padding, int(box[3] - box[1]) + 2 * padding
        piece = np.empty((1, h, w, 4), np.uint8)
        _gather(image, levels, mask.x, mask.y, scale, box[None], padding, piece.view(_PIXEL)[..., 0])
        cv2.resize(piece[0], (side, side), dst=target, interpolation=resize_method(h, w, side, side))
    return out


def resize_method(h: int, w: int, to_h: int, to_w: int) -> int:
    """OpenCV's interpolation for an (h, w) picture: area where it shrinks, linear where it grows."""
    import cv2

    return int(cv2.INTER_AREA if to_h <= h and to_w <= w else cv2.INTER_LINEAR)
