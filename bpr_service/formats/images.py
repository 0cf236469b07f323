"""The folder of images: which image a prediction belongs to, and its size."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import PurePosixPath

from bpr_service import storage
from bpr_service.errors import FormatError, ImageError
from bpr_service.masks.images import PICTURE_FORMATS

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_CITYSCAPES = re.compile(r"^[A-Za-z-]+_\d{6}_\d{6}(?=_|$|\.)")


class ImageFolder:
    """Finds images by the name of a prediction; the folder is listed once, when first needed."""

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in storage.list_files(self.address, SUFFIXES):
            stem = PurePosixPath(name).stem
            for key in {name.rsplit(".", 1)[0], stem, cityscapes_key(stem)}:
                found.setdefault(key, []).append(name)
        return found

    def find(self, name: str) -> str:
        """The image for a prediction file ``name``: same path, same stem, or same Cityscapes frame.

        Raises:
            FormatError: none, or several, match.
        """
        path = PurePosixPath(name)
        for key in (name.rsplit(".", 1)[0], path.stem, cityscapes_key(path.stem)):
            match = self._by_stem.get(key, [])
            if len(match) == 1:
                return match[0]
            if match:
                raise FormatError(
                    f"{name}: several images match",
                    expected="one image",
                    got=", ".join(match[:3]),
                    fix="give predictions the same relative path as their image",
                )
        raise FormatError(
            f"{name}: no image",
            expected=f"an image of that name in {self.address}",
            got="none",
            fix="check --images; names must match up to the suffix",
        )


def cityscapes_key(stem: str) -> str:
    """``city_000000_000019_leftImg8bit`` -> ``city_000000_000019``; other stems as they are."""
    match = _CITYSCAPES.match(stem)
    return match.group() if match else stem


def image_size(address: str) -> tuple[int, int]:
    """(H, W) of an image file, from its header. Raises ``ImageError`` or ``NotFoundError``."""
    from PIL import Image

    with storage.open_read(address) as file:
        try:
            with Image.open(file, formats=PICTURE_FORMATS) as picture:
                return picture.height, picture.width
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(f"{address}: not an image", got=str(error), fix="send a whole image file") from None
