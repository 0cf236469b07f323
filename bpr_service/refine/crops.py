"""Step 2, second half: cut the patches out of image and mask (Tang et al., CVPR 2021, section 3.2).

Letters: H, W are the image's size; p is the side of a patch, S ``network_size_px``, c that of a patch with its padding,
all in px; P is the number of patches.

What a crop reads outside the image repeats the image's border.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError
from bpr_service.kernel import kernel
from bpr_service.masks.mask import Mask
from bpr_service.refine.patches import Boxes


@kernel
def _pixel(row: NDArray[np.uint8], line: NDArray[np.uint8], column: int, x: int, scale: int) -> int:
    """One pixel of `gather` as a word: `row` is the image's, `line` the mask's, which begins at column `x`."""
    level = int(line[column - x]) * scale if 0 <= column - x < line.size else 0
    return int(row[3 * column]) | int(row[3 * column + 1]) << 8 | int(row[3 * column + 2]) << 16 | level << 24


@kernel
def gather(
    image: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    x: int,
    y: int,
    scale: int,
    boxes: Boxes,
    padding: int,
    out: NDArray[np.uint8],
) -> None:
    """out[i] = image and mask (crop at (x, y), times `scale`) over boxes[i] with its padding.

    `image` is (H, 3 W) and `out` (n, h, 4 w), a row's bytes in a line: the form whose loops become vector code. As a
    word, a pixel of `out` has red in its lowest byte (little-endian memory).
    """
    height, width = image.shape[0], image.shape[1] // 3
    h, w = crop.shape
    words = out.view(np.uint32)
    rows, columns = words.shape[1], words.shape[2]
    nothing = np.empty(0, np.uint8)
    times = np.uint32(scale)
    for i in range(boxes.shape[0]):
        left, top = boxes[i, 0] - padding, boxes[i, 1] - padding
        first = min(max(-left, 0), columns)  # columns of the patch before it lie left of the image
        last = max(min(width - left, columns), first)  # those from it on lie right of the image
        a, b = max(left + first, x), min(left + last, x + w)  # the mask's columns in it
        for r in range(rows):
            row = min(max(top + r, 0), height - 1)
            source = image[row, 3 * (left + first) : 3 * (left + last)]
            colours = out[i, r, 4 * first : 4 * last]
            for k in range(last - first):
                colours[4 * k] = source[3 * k]
                colours[4 * k + 1] = source[3 * k + 1]
                colours[4 * k + 2] = source[3 * k + 2]
                colours[4 * k + 3] = 0
        for r in range(rows):  # on its own: to read back what was written just now would wait for it
            line = min(max(top + r, 0), height - 1) - y
            if 0 <= line < h and a < b:
                levels, target = crop[line, a - x : b - x], words[i, r, a - left : b - left]
                for k in range(b - a):
                    target[k] |= np.uint32(np.uint32(levels[k]) * times) << np.uint32(24)
        if first == 0 and last == columns:
            continue
        for r in range(rows):
            row = min(max(top + r, 0), height - 1)
            levels = crop[row - y] if 0 <= row - y < h else nothing
            words[i, r, :first] = _pixel(image[row], levels, 0, x, scale)
            words[i, r, last:] = _pixel(image[row], levels, width - 1, x, scale)


def crop_patches(
    image: NDArray[np.uint8],
    mask: Mask,
    boxes: Boxes,
    config: PatchConfig,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Cut the patches, with their padding, at network size.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: of an (H, W) image; its probabilities are cut where it has them, else 0 and 255.
        boxes: (P, 4) int32, from `place_patches`; squares are all of one size, which says what their padding is.
        config: S, and the padding of squares of the usual size.
        out: (P, S, S, 4) uint8 to write to, or None.

    Returns:
        (P, S, S, 4) uint8: RGB and mask. Where c equals S the pixels are copied; else OpenCV resizes each patch on its
        own (area when it shrinks, linear when it grows), so that none reads across its edge.
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
    flat, padding = image.reshape(image.shape[0], -1), config.padding_of(int(boxes[0, 2] - boxes[0, 0]))
    cut(lambda a, b, into: gather(flat, levels, mask.x, mask.y, scale, boxes[a:b], padding, into), boxes, config, out)
    return out


def cut(
    write: Callable[[int, int, NDArray[np.uint8]], None], boxes: Boxes, config: PatchConfig, out: NDArray[np.uint8]
) -> None:
    """Fill `out` (P, S, S, 4) with the patches at the (P, 4) `boxes`, at network size.

    Args:
        write: writes patches from one number to another (exclusive), with their padding and as they are, to the
            (n, h, 4 w) array that it is given.
        boxes: where they lie, at least one; squares are all of one size.
        config: their padding, and the network's size.
        out: what to write to.
    """
    size, side = int(boxes[0, 2] - boxes[0, 0]), config.network_size_px
    padding = config.padding_of(size)
    if config.scheme != "instance" and size + 2 * padding == side:
        write(0, len(boxes), out.reshape(len(boxes), side, 4 * side))
        return
    import cv2

    for i, (target, box) in enumerate(zip(out, boxes, strict=True)):  # one OpenCV call a patch: it resizes pictures
        w, h = int(box[2] - box[0]) + 2 * padding, int(box[3] - box[1]) + 2 * padding
        piece = np.empty((1, h, w, 4), np.uint8)
        write(i, i + 1, piece.reshape(1, h, 4 * w))
        cv2.resize(piece[0], (side, side), dst=target, interpolation=resize_method(h, w, side, side))


def resize_method(h: int, w: int, to_h: int, to_w: int) -> int:
    """OpenCV's interpolation for an (h, w) picture: area where it shrinks, linear where it grows."""
    import cv2

    return int(cv2.INTER_AREA if to_h <= h and to_w <= w else cv2.INTER_LINEAR)
