"""CVAT for images 1.1: one XML file of ``<image>`` elements with ``<polygon>`` and ``<mask>`` in them.

A polygon is one ring, ``points="x,y;x,y;..."``; a mask's ``rle`` has the lengths of runs, background first, row by
row in the box ``left top width height``. Both are px on the upright photograph, as CVAT makes its tasks. The file is
read as a stream; a document type, and with it every entity of one's own, is refused.
Source: docs.cvat.ai, "XML annotation format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Encoded, Instance, InstancePrediction, PredictionFormat, Task, Unit, at
from bpr_service.formats.records.record_file import copy_range, read_at
from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

WHAT = "CVAT for images: an XML file of <image> elements"
MAX_IMAGE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_START = re.compile(r"<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*\s*/?>")
_ATTRIBUTE = re.compile(r"(\s+)([^\s=]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_GEOMETRY = {"polygon": ("points",), "mask": ("rle", "left", "top", "width", "height")}


@dataclass
class Element:
    """An element of one depth of the document: its bytes from ``start`` to ``end``."""

    tag: str
    attributes: dict[str, str]
    start: int
    end: int = -1


class CvatImages(PredictionFormat):
    """CVAT for images; other shapes than polygons and masks, and all attributes, are left alone."""

    name: ClassVar[str] = "cvat"
    task: ClassVar[Task] = "instance"
    result_is_folder: ClassVar[bool] = False
    has_records: ClassVar[bool] = True
    records_are_json: ClassVar[bool] = False
    exif: ClassVar[Exif] = "apply"
    encodings: ClassVar[tuple[Encoding, ...]] = ("same", "polygon", "rle")

    def scan(self) -> Iterator[Unit]:
        for number, image in enumerate(self._images()):
            name, source = image.attributes.get("name", ""), [[number, image.start, image.end - image.start]]
            try:
                yield Unit(number, self.folder.find(name), name, source, _size(image.attributes))
            except OWN_FAULTS as error:
                yield Unit(number, "", name, source, problem=str(at(self.paths.predictions, f"image {number}", error)))

    def _images(self) -> Iterator[Element]:
        with storage.open_read(self.paths.predictions) as file:
            blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
            found = False
            for element in elements(blocks, self.paths.predictions, depth=1):
                if element.tag == "track":
                    raise self._other("CVAT for video: <track>", "export it from CVAT as 'CVAT for images 1.1'")
                if element.tag == "image":
                    found = True
                    yield element
        if not found:
            raise self._other("no <image>", "check the file and --format")

    def _other(self, got: str, fix: str) -> FormatError:
        return FormatError(f"{self.paths.predictions}: another format", expected=WHAT, got=got, fix=fix)

    def _data(self, unit: Unit) -> bytes:
        with storage.open_read(self.paths.predictions) as file:
            return read_at(file, unit.source[0][1], unit.source[0][2])

    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> InstancePrediction:
        size, data = self.size(unit, size), self._data(unit)
        shapes = [self._shape(unit, i, each, size) for i, each in enumerate(elements([data], unit.name, depth=1))]
        return InstancePrediction(tuple(shapes))

    def _shape(self, unit: Unit, number: int, shape: Element, size: tuple[int, int]) -> Instance:
        item = Instance(number, None, -1, None, (shape.tag, shape.attributes))
        if shape.tag not in _GEOMETRY:
            return replace(item, skipped=f"a shape that is no mask: {shape.tag}")
        try:
            read = _polygon if shape.tag == "polygon" else _mask
            return replace(item, mask=read(shape.attributes, size))
        except OWN_FAULTS as error:
            where = f"image {unit.name}: {shape.tag} {number}"
            return replace(item, problem=str(at(self.paths.predictions, where, error)))

    def encode(self, unit: Unit, prediction: InstancePrediction) -> Encoded:
        data, encoded = self._data(unit), Encoded()
        parts, done = [], 0
        for item, shape in zip(prediction.instances, elements([data], unit.name, depth=1), strict=True):
            other = self.options.encoding not in ("same", "polygon" if shape.tag == "polygon" else "rle")
            if item.mask is None or not (item.changed or other):
                continue
            if item.mask.is_empty:
                encoded.warnings.append(
                    f"{unit.name}: {shape.tag} {item.position}: CVAT cannot hold an empty mask; it is as it was"
                )
                continue
            parts += [data[done : shape.start], _written(data[shape.start : shape.end], item, self.options.encoding)]
            done = shape.end
        encoded.records[unit.source[0][0]] = b"".join([*parts, data[done:]])
        return encoded

    def untouched(self, unit: Unit) -> Encoded:
        return Encoded(records={unit.source[0][0]: self._data(unit)})

    def write(self, out: str, records: Iterable[bytes]) -> None:
        with storage.open_read(self.paths.predictions) as source, storage.replacing(out) as target:
            done = 0
            for image, record in zip(self._images(), records, strict=True):
                copy_range(source, target, done, image.start)
                target.write(record)
                done = image.end
            copy_range(source, target, done, None)


def elements(blocks: Iterable[bytes], name: str, *, depth: int) -> Iterator[Element]:
    """The elements at one depth of an XML document (0 is its top) in UTF-8, with their places in its bytes.

    Raises:
        FormatError: no well-formed XML, an element of more than `MAX_IMAGE_BYTES`, another encoding, a document type.
    """
    parser = expat.ParserCreate()
    level, ready = 0, list[Element]()
    open_, ended = list[Element](), list[Element]()

    def mark(*_: object) -> None:  # whatever comes behind an end tag says where that ends
        if ended:
            ended[0].end = parser.CurrentByteIndex
            ready.append(ended.pop())

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal level
        mark()
        if level == depth:
            open_.append(Element(tag, attributes, parser.CurrentByteIndex))
        level += 1

    def end(_: str) -> None:
        nonlocal level
        mark()
        level -= 1
        if level == depth:
            ended.append(open_.pop())

    def refuse(*_: object) -> None:
        raise FormatError(f"{name}: a document type", expected="XML without one", got="<!DOCTYPE", fix="remove it")

    def declared(_: str, encoding: str | None, __: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii"):
            raise FormatError(f"{name}: XML in {encoding}", expected="UTF-8", got=encoding, fix="convert it with iconv")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler, parser.XmlDeclHandler, parser.DefaultHandler = refuse, declared, mark
    total = 0
    try:
        for block in blocks:
            if block.startswith((b"\xff\xfe", b"\xfe\xff")) and not total:
                raise FormatError(f"{name}: UTF-16", expected="XML as UTF-8", got="UTF-16", fix="convert it with iconv")
            total += len(block)
            parser.Parse(block, False)
            yield from ready
            ready.clear()
            if open_ and total - open_[0].start > MAX_IMAGE_BYTES + _BLOCK_BYTES and depth == 1:
                raise FormatError(f"{name}: one element of more than {MAX_IMAGE_BYTES >> 20} MiB", got=open_[0].tag)
        parser.Parse(b"", True)
        yield from ready
    except expat.ExpatError as error:
        raise FormatError(
            f"{name}: broken XML at byte {parser.ErrorByteIndex}",
            expected=WHAT,
            got=str(error),
            fix="the file may be cut off or damaged",
        ) from None


def _size(attributes: dict[str, str]) -> tuple[int, int] | None:
    try:
        height, width = int(attributes["height"]), int(attributes["width"])
    except (KeyError, ValueError):
        return None
    return (height, width) if min(height, width) > 0 else None


def _polygon(attributes: dict[str, str], size: tuple[int, int]) -> Any:
    from bpr_service.masks.mask import Mask

    try:
        pairs = [[float(value) for value in pair.split(",")] for pair in attributes["points"].split(";")]
    except (KeyError, ValueError):
        pairs = [[]]
    if any(len(pair) != 2 for pair in pairs):
        got = attributes.get("points", "nothing")[:60]
        raise FormatError("points", expected="x,y;x,y;x,y", got=got, fix="export the task again")
    return Mask.from_polygons([np.asarray(pairs).reshape(-1).tolist()], *size)


def _mask(attributes: dict[str, str], size: tuple[int, int]) -> Any:
    try:
        left, top, width, height = (int(float(attributes[key])) for key in _GEOMETRY["mask"][1:])
        runs = [int(run) for run in attributes["rle"].split(",")]
    except (KeyError, ValueError, OverflowError) as error:
        raise FormatError("a mask", expected="rle, left, top, width and height", got=str(error)) from None
    return mask_of_runs(runs, (left, top, left + width, top + height), size)


def mask_of_runs(lengths: Sequence[float], box: tuple[int, int, int, int], size: tuple[int, int]) -> Mask:
    """A mask of an (H, W) image of ``size`` from the lengths of runs, background first, row by row in a box.

    Args:
        lengths: of the runs, px.
        box: (x0, y0, x1, y1) px, half-open.
        size: (H, W) of the image.

    Raises:
        FormatError: the box leaves the image, or the runs do not fill it.
    """
    from bpr_service.masks.mask import Mask

    x0, y0, x1, y1 = box
    runs, pixels = np.asarray(lengths, np.int64), (x1 - x0) * (y1 - y0)
    if min(x0, y0) < 0 or x1 <= x0 or y1 <= y0 or y1 > size[0] or x1 > size[1]:
        got = f"{y1 - y0} x {x1 - x0} at x={x0}, y={y0}"
        raise FormatError("a mask leaves the image", expected=f"a box inside {size[0]} x {size[1]}", got=got)
    if not runs.size or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        got = f"{runs.size} runs of {int(runs.sum())} px"
        raise FormatError("rle", expected=f"runs of {pixels} px in all", got=got)
    values = (np.arange(runs.size) % 2).astype(np.uint8)
    return Mask.from_window(np.repeat(values, runs).reshape(y1 - y0, x1 - x0), x0, y0, *size)


def runs_of(mask: Mask) -> list[int]:
    """The lengths of the runs of a mask, background first, row by row in its box."""
    flat = mask.window(*mask.box).reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs: list[int] = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def _written(data: bytes, item: Instance, encoding: Encoding) -> bytes:
    """An element with its new mask: a polygon stays one where one ring holds the mask without a slit."""
    from bpr_service.masks.encoding import one_outline, parts_of

    mask, tag = item.mask, item.record[0]
    assert mask is not None
    parts = item.parts or parts_of(mask)
    lone = len(parts) == 1 and len(parts[0]) == 1
    if encoding == "polygon" or (encoding == "same" and tag == "polygon" and lone):
        return _retagged(data, tag, "polygon", [";".join(f"{x:.2f},{y:.2f}" for x, y in one_outline(parts))])
    x0, y0, x1, y1 = mask.box
    rle = ", ".join(map(str, runs_of(mask)))
    return _retagged(data, tag, "mask", [rle, str(x0), str(y0), str(x1 - x0), str(y1 - y0)])


def _retagged(data: bytes, old: str, new: str, values: list[str]) -> bytes:
    """The element under the tag ``new`` with these values of its geometry; all else in it stays."""
    text = data.decode("utf-8")
    match = _START.match(text)
    assert match is not None
    head, pairs = match.group(), dict(zip(_GEOMETRY[new], values, strict=True))

    def attribute(found: re.Match[str]) -> str:
        space, name = found[1], found[2]
        if name not in _GEOMETRY[old]:
            return found[0]
        if old == new:
            return f"{space}{name}={quoteattr(pairs[name])}"
        if name != _GEOMETRY[old][0]:
            return ""
        return space + " ".join(f"{key}={quoteattr(value)}" for key, value in pairs.items())

    head = f"<{new}{_ATTRIBUTE.sub(attribute, head[1 + len(old) :])}"
    rest = re.sub(rf"</{old}(\s*>)$", rf"</{new}\1", text[match.end() :])
    return (head + rest).encode("utf-8")
