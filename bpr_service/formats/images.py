"""The folder of images: which image a prediction belongs to, and its size."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError, ImageError
from bpr_service.masks.images import Exif, read_header

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif")
_CITYSCAPES = re.compile(r"^[A-Za-z-]+_\d{6}_\d{6}(?=_|$|\.)")


def plain(name: str) -> str:
    """A name with ``/`` between its parts, in Unicode's composed form, without ``./`` in front."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def is_foreign(name: str) -> bool:
    """Whether a name is none below a folder: absolute, of another system, an address, or on its way up."""
    return name.startswith("/") or "\\" in name or "://" in name or "::" in name or ".." in name.split("/")


def cityscapes_key(stem: str) -> str:
    """``city_000000_000019_leftImg8bit`` -> ``city_000000_000019``; other stems as they are."""
    match = _CITYSCAPES.match(stem)
    return match.group() if match else stem


def _bare(name: str) -> str:
    """The name without its suffix; a dot in a folder's name is none."""
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _tails(name: str) -> list[str]:
    """The name, and what is left of it without its first folder, its first two, ..."""
    parts = [part for part in name.split("/") if part]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _last(key: Callable[[str], str]) -> Callable[[str], list[str]]:
    return lambda name: [key(name)]


_RULES: tuple[tuple[Callable[[str], str], Callable[[str], list[str]]], ...] = (
    (lambda name: name, _tails),  # the same path, perhaps below another folder
    (_bare, lambda name: [*_tails(name), *_tails(_bare(name))]),  # up to the suffix, which the name may lack
    (lambda name: PurePosixPath(name).name, _last(lambda name: PurePosixPath(name).name)),  # in whatever folder
    (lambda name: PurePosixPath(name).stem, _last(lambda name: PurePosixPath(name).stem)),
)


class NameIndex:
    """Finds a name among many by rules, the strictest first; a rule decides as soon as anything fits it.

    A name fits by its whole path, by its path up to the suffix, by its last part in whatever folder, by that up to
    the suffix; then by the same in whatever letter case; then by the frame of Cityscapes' names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    @cached_property
    def _tables(self) -> list[tuple[dict[str, list[str]], Callable[[str], list[str]]]]:
        def table(key: Callable[[str], str]) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for name in self.names:
                found.setdefault(key(plain(name)), []).append(name)
            return found

        def folded(key: Callable[[str], str]) -> Callable[[str], str]:
            return lambda name: key(name).casefold()

        def asked(tries: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
            return lambda name: [part.casefold() for part in tries(name)]

        def frame(name: str) -> str:
            return cityscapes_key(PurePosixPath(name).stem)

        exact = [(table(key), tries) for key, tries in _RULES]
        any_case = [(table(folded(key)), asked(tries)) for key, tries in _RULES]
        return [*exact, *any_case, (table(frame), _last(frame))]

    @cached_property
    def _numbers(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in self.names:
            stem = PurePosixPath(name).stem
            if stem.isascii() and stem.isdigit():
                found.setdefault(int(stem), []).append(name)
        return found

    def find(self, name: str | int) -> list[str]:
        """All names that fit ``name`` by the first rule that any fits; 139 fits ``139.jpg``, ``000000000139.jpg``."""
        if isinstance(name, int):
            return self.find(str(name)) or self._numbers.get(name, [])
        for wanted in dict.fromkeys((plain(name), plain(unquote(name)))):  # %20, as addresses have it
            for table, tries in self._tables:
                for key in tries(wanted):
                    if key in table:
                        return table[key]
        return []


class ImageFolder:
    """Finds images by the name of a prediction; the folder is listed once, when first needed.

    ``only`` is the one image of the folder that is looked for.
    """

    def __init__(self, address: str, only: str | None = None) -> None:
        self.address, self.only = address, only

    @cached_property
    def _index(self) -> NameIndex:
        return NameIndex([self.only] if self.only else storage.list_files(self.address, SUFFIXES))

    def present(self, name: str) -> str:
        """``name`` where a file of the folder has it, else the one that fits it by the rules of `NameIndex`.

        Raises:
            FormatError: none, or several, fit.
        """
        here = storage.join(self.address, name)
        if name and (is_foreign(name) or (not storage.is_remote(here) and not storage.exists(here))):
            return self.find(name)
        return name

    def find(self, name: str | int) -> str:
        """The image for a prediction file ``name``, by the rules of `NameIndex`.

        Raises:
            FormatError: none, or several, match.
        """
        match = self._index.find(name)
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
            fix="check --images; names must match up to the suffix, or by a pattern (--match '*_mask.png')",
        )


class NamePattern:
    """Which files of a folder are predictions, and of which image: ``*_mask.png``, the first star is the image's name.

    Letter case does not matter. A pattern with a ``/`` is of the path below the folder (``*/mask.png``), one without of
    its last part. Without a pattern every file is a prediction, of the image of its own name.
    """

    def __init__(self, pattern: str | None) -> None:
        self._expression: re.Pattern[str] | None = None
        if pattern is not None:
            if "*" not in pattern:
                raise FormatError(
                    "--match", expected="a pattern with a star, as *_mask.png", got=repr(pattern), fix="add the star"
                )
            first, *rest = (re.escape(part) for part in plain(pattern).split("*"))
            self._expression = re.compile(first + "(?P<stem>.+?)" + ".*".join(rest), re.IGNORECASE)
            self._of_path = "/" in pattern

    def image(self, name: str) -> str | None:
        """The name to look for among the images; None for a file that is no prediction."""
        if self._expression is None:
            return name
        folder, _, last = ("", "", plain(name)) if self._of_path else plain(name).rpartition("/")
        match = self._expression.fullmatch(last)
        return None if match is None else storage.join(folder, match["stem"]) if folder else match["stem"]


def image_size(address: str, exif: Exif = "ignore") -> tuple[int, int]:
    """(H, W) of an image file as `exif` has it, from its header. Raises ``ImageError`` or ``NotFoundError``."""
    with storage.open_read(address) as file:
        try:
            return read_header(file).size(exif)
        except OWN_FAULTS as error:
            raise ImageError(f"{address}: {error}") from None
