"""The pixels of one example: a crop of the image around its masks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bpr_service.errors import FormatError, ImageError
from refiner_training.evaluation.common import Crop

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

MARGIN = 0.15  # of the box, on each side
ZOOM_PX = 160  # a wider window is cut to this


def find_images(folder: Path | str | None, names: Iterable[str], source: Path) -> Path | None:
    """Check that a folder has all the images that a file names; None when there is no folder.

    Raises:
        FormatError: no such folder, or an image that is not in it.
    """
    if folder is None:
        return None
    folder = Path(folder)
    if not folder.is_dir():
        raise FormatError(f"{folder}", expected="a folder of images", got="no folder", fix="check the path")
    for name in names:
        if not (folder / name).is_file():
            raise FormatError(
                f"{source}", expected=f"the image {name} in {folder}", got="no such file", fix="check --images"
            )
    return folder


def find_by_stem(folder: Path | str | None, names: Iterable[str], source: Path) -> dict[str, Path] | None:
    """Find the image of each label map: the same name without its ending, whatever the picture's format.

    Raises:
        FormatError: no such folder, or a label map without an image.
    """
    if find_images(folder, (), source) is None:
        return None
    found = {str(p.relative_to(str(folder)).with_suffix("")): p for p in Path(str(folder)).rglob("*.*")}
    out = {}
    for name in names:
        stem = str(Path(name).with_suffix(""))
        if stem not in found:
            raise FormatError(f"{source / name}", expected=f"its image in {folder}", got="none", fix="check --images")
        out[name] = found[stem]
    return out


def cut(path: Path | None, truth: Mask, prediction: Mask, before: Mask | None) -> Crop:
    """Cut image and masks to the box around all of them, or where that is large, to where they differ most.

    An image that cannot be read, or is of another size, is left out: the masks are shown without it.
    """
    from bpr_service.masks.images import read_image

    masks = [m for m in (truth, prediction, before) if m is not None and not m.is_empty]
    boxes = [m.box for m in masks] or [(0, 0, truth.width, truth.height)]
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    x1, y1 = max(b[2] for b in boxes), max(b[3] for b in boxes)
    margin = int(MARGIN * max(x1 - x0, y1 - y0)) + 4
    x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
    x1, y1 = min(x1 + margin, truth.width), min(y1 + margin, truth.height)
    x0, y0, x1, y1 = window = _zoom((x0, y0, x1, y1), truth, prediction, before)
    image = None
    if path is not None:
        try:
            pixels = read_image(path)
            image = pixels[y0:y1, x0:x1] if pixels.shape[:2] == (truth.height, truth.width) else None
        except ImageError:
            image = None
    return Crop(
        image,
        truth.window(*window),
        prediction.window(*window),
        before.window(*window) if before is not None else None,
    )


def _zoom(
    window: tuple[int, int, int, int], truth: Mask, prediction: Mask, before: Mask | None
) -> tuple[int, int, int, int]:
    """Cut a window larger than ZOOM_PX to the square of that size with most pixels that differ."""
    import cv2

    x0, y0, x1, y1 = window
    width, height = min(x1 - x0, ZOOM_PX), min(y1 - y0, ZOOM_PX)
    wrong = truth.window(*window) ^ prediction.window(*window)
    if before is not None:
        wrong |= truth.window(*window) ^ before.window(*window)
    total = cv2.integral(wrong)
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    dy, dx = divmod(int(inside.argmax()), inside.shape[1])
    return x0 + dx, y0 + dy, x0 + dx + width, y0 + dy + height
