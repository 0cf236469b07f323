"""Folders of label PNGs that belong together by file name, checked by their headers before any is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bpr_service.errors import FormatError
from bpr_service.masks.images import PICTURE_FORMATS
from bpr_service.storage import beneath


def match_label_pngs(folders: Sequence[Path]) -> list[str]:
    """Give the names, relative and sorted, of the PNGs that all folders have; the first is the ground truth.

    Raises:
        FormatError: no folder, an empty one, a name that one of them lacks or has too many, a file that is no
            PNG of one channel, sizes that differ.
    """
    names = [_names(folder) for folder in folders]
    for folder, found in zip(folders[1:], names[1:], strict=True):
        missing, extra = sorted(names[0] - found), sorted(found - names[0])
        if missing:
            raise FormatError(
                f"{folder}",
                expected=f"a label PNG for each of the {len(names[0])} in {folders[0]}",
                got=f"none named {missing[0]} ({len(missing)} missing)",
                fix="predict the missing images, and keep the names",
            )
        if extra:
            raise FormatError(
                f"{folder / extra[0]}",
                expected=f"a label map of the same name in {folders[0]}",
                got=f"none ({len(extra)} such files)",
                fix="both folders must be of the same data set and split",
            )
    for name in sorted(names[0]):
        sizes = [png_size(folder / name) for folder in folders]
        for folder, size in zip(folders[1:], sizes[1:], strict=True):
            if size != sizes[0]:
                raise FormatError(
                    f"{folder / name}",
                    expected=f"the size of {folders[0] / name}, {sizes[0][0]} x {sizes[0][1]} (height x width)",
                    got=f"{size[0]} x {size[1]}",
                    fix="resize the predictions to the image, with nearest-neighbour",
                )
    return sorted(names[0])


def png_size(path: Path) -> tuple[int, int]:
    """Read height and width of a picture from its header alone.

    Raises:
        FormatError: the file is missing or is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb", opener=beneath.opener) as file, Image.open(file, formats=PICTURE_FORMATS) as picture:
            return picture.height, picture.width
    except (OSError, UnidentifiedImageError) as error:
        raise FormatError(
            f"{path}", expected="a PNG", got=str(error), fix="write the file again, it may be cut off"
        ) from error


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise FormatError(f"{folder}", expected="a folder of label PNGs", got="no folder", fix="check the path")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    if not found:
        raise FormatError(f"{folder}", expected="label PNGs", got="none", fix="check the path; the files end in .png")
    return found
