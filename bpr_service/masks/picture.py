"""Before/after pictures: both outlines on the photograph, and the places that changed most, enlarged.

Shapes: H, W the image's size (px); N masks. Images are RGB uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask

U8 = NDArray[np.uint8]

COARSE_RGB = (255, 77, 77)
REFINED_RGB = (64, 224, 160)
_PAPER_RGB, _INK_RGB = (255, 255, 255), (40, 44, 52)
_GAP_PX, _CAPTION_PX, _MARGIN_PX = 12, 30, 4
_FONT = cv2.FONT_HERSHEY_DUPLEX


def before_after(
    image: U8,
    coarse: Sequence[Mask],
    refined: Sequence[Mask],
    *,
    width_px: int = 1200,
    zooms: int = 4,
    zoom_size_px: int = 56,
) -> U8:
    """Draw N coarse and N refined masks of one image side by side, with enlarged places below.

    Args:
        image: (H, W, 3) uint8.
        coarse: the N masks before.
        refined: the same after, in the same order.
        width_px: width of the picture.
        zooms: how many places to enlarge: those where most pixels changed, apart from each other.
        zoom_size_px: side of such a place in the image.

    Returns:
        (h, ``width_px``, 3) uint8.
    """
    half = (width_px - 3 * _GAP_PX) // 2
    panels = [_panel(image, masks, half, colour) for masks, colour in ((coarse, COARSE_RGB), (refined, REFINED_RGB))]
    rows = [
        _row([_captioned(panels[0], "coarse", COARSE_RGB), _captioned(panels[1], "refined", REFINED_RGB)], width_px)
    ]
    places = _places(image.shape[:2], coarse, refined, zooms, zoom_size_px)
    if places:
        side = (width_px - (zooms + 1) * _GAP_PX) // zooms
        for masks, colour in ((coarse, COARSE_RGB), (refined, REFINED_RGB)):
            tiles = [_zoom(image, masks, place, zoom_size_px, side, colour) for place in places]
            rows.append(_row(tiles, width_px))
    gap = np.full((_GAP_PX, width_px, 3), _PAPER_RGB, np.uint8)
    return np.vstack([part for row in rows for part in (row, gap)])


WRITTEN = (".png", ".jpg", ".jpeg", ".webp", "")
"""How the name of a picture may end."""


def write_picture(path: str, picture: U8) -> None:
    """Write an RGB picture in the type that its name says (`WRITTEN`; PNG without one), whole or not at all."""
    from bpr_service import storage

    _, data = cv2.imencode(Path(path).suffix.lower() or ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    storage.write_bytes(path, data.tobytes())


def _panel(image: U8, masks: Sequence[Mask], width: int, colour: tuple[int, int, int]) -> U8:
    scale = width / image.shape[1]
    size = (width, max(round(image.shape[0] * scale), 1))
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return _outlines(np.ascontiguousarray(canvas), masks, scale, (0, 0), colour, 2)


def _zoom(
    image: U8, masks: Sequence[Mask], place: tuple[int, int], size: int, side: int, colour: tuple[int, int, int]
) -> U8:
    x, y = place
    part = image[y : y + size, x : x + size]
    scale = side / size
    canvas = cv2.resize(part, (side, side), interpolation=cv2.INTER_CUBIC)
    return _outlines(np.ascontiguousarray(canvas), masks, scale, (x, y), colour, 2)


def _outlines(
    canvas: U8,
    masks: Sequence[Mask],
    scale: float,
    origin: tuple[int, int],
    colour: tuple[int, int, int],
    thickness: int,
) -> U8:
    """Draw each mask's outline on a canvas whose pixel (0, 0) is the image's ``origin``, enlarged by ``scale``."""
    height, width = canvas.shape[:2]
    x0, y0 = origin
    x1, y1 = x0 + int(np.ceil(width / scale)), y0 + int(np.ceil(height / scale))
    for mask in masks:
        # A margin, so that the canvas's own edge is not drawn as an outline.
        window = mask.window(x0 - _MARGIN_PX, y0 - _MARGIN_PX, x1 + _MARGIN_PX, y1 + _MARGIN_PX)
        if not window.any():
            continue
        size = (max(round(window.shape[1] * scale), 1), max(round(window.shape[0] * scale), 1))
        soft = cv2.resize(window.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        contours, _ = cv2.findContours((soft >= 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        offset = (-round(_MARGIN_PX * scale),) * 2
        cv2.drawContours(canvas, contours, -1, (20, 20, 20), thickness + 2, cv2.LINE_AA, offset=offset)
        cv2.drawContours(canvas, contours, -1, colour, thickness, cv2.LINE_AA, offset=offset)
    return canvas


def _places(
    shape: tuple[int, int], coarse: Sequence[Mask], refined: Sequence[Mask], count: int, size: int
) -> list[tuple[int, int]]:
    """Left top corners of up to ``count`` squares in which most pixels changed, apart from each other."""
    height, width = shape
    if height < size or width < size:
        return []
    changed = np.zeros((height, width), np.float32)
    for before, after in zip(coarse, refined, strict=True):
        x0, y0 = min(before.x, after.x), min(before.y, after.y)
        x1 = max(before.x + before.crop.shape[1], after.x + after.crop.shape[1])
        y1 = max(before.y + before.crop.shape[0], after.y + after.crop.shape[0])
        changed[y0:y1, x0:x1] += before.window(x0, y0, x1, y1) != after.window(x0, y0, x1, y1)
    found: list[tuple[int, int]] = []
    for _ in range(count):
        sums = cv2.boxFilter(changed, -1, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)
        y, x = np.unravel_index(int(sums.argmax()), sums.shape)
        if sums[y, x] <= 0:
            break
        left = int(np.clip(x - size // 2, 0, width - size))
        top = int(np.clip(y - size // 2, 0, height - size))
        found.append((left, top))
        changed[
            max(top - size // 2, 0) : top + size + size // 2, max(left - size // 2, 0) : left + size + size // 2
        ] = 0
    return found


def _captioned(panel: U8, text: str, colour: tuple[int, int, int]) -> U8:
    caption = np.full((_CAPTION_PX, panel.shape[1], 3), _PAPER_RGB, np.uint8)
    cv2.rectangle(caption, (0, 8), (22, 20), colour, -1)
    cv2.putText(caption, text, (30, 20), _FONT, 0.55, _INK_RGB, 1, cv2.LINE_AA)
    return np.vstack([caption, panel])


def _row(tiles: Sequence[U8], width: int) -> U8:
    """Tiles of one height side by side with gaps, filled up to ``width``."""
    gap = np.full((tiles[0].shape[0], _GAP_PX, 3), _PAPER_RGB, np.uint8)
    row = np.hstack([part for tile in tiles for part in (gap, tile)])
    rest = np.full((row.shape[0], width - row.shape[1], 3), _PAPER_RGB, np.uint8)
    return np.hstack([row, rest])
