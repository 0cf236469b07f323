"""What every prediction format has in common.

A prediction file is cut into *units*, the predictions of one image: what is refined, retried and reported as one.
``scan`` walks through the file once and yields the units; ``read`` decodes one of them from its address alone, so
any process can do it; ``encode`` turns it back into bytes; ``write`` puts the bytes of all units into one result.
Nothing but one unit is ever held in memory.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, BprError, ConfigError, FormatError
from bpr_service.formats.images import ImageFolder, NamePattern, image_size
from bpr_service.formats.options import FileOptions
from bpr_service.masks.encoding import Encoding, Parts
from bpr_service.masks.images import Exif
from bpr_service.storage import Span

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.labels.soft_labels import SoftLabels

Task = Literal["instance", "semantic", "panoptic"]
TASKS: tuple[Task, ...] = ("instance", "semantic", "panoptic")


@dataclass(frozen=True)
class Paths:
    """Where a prediction file and what belongs to it lie; local paths or fsspec addresses.

    ``within`` confines every local file that is opened, links followed, to these folders. ``image`` is the one image
    of the folder that is wanted; None is all of them. ``soft`` is a folder of the masks' probabilities: see
    `bpr_service.formats.soft_folder`.
    """

    images: str
    predictions: str
    dataset: str | None = None
    panoptic_dir: str | None = None
    within: tuple[str, ...] | None = None
    image: str | None = None
    soft: str | None = None
    options: FileOptions = field(default_factory=FileOptions)


@dataclass(frozen=True, slots=True)
class Unit:
    """The predictions of one image, by address: JSON-ready, so that a plan of them can be stored.

    Attributes:
        number: position in the order of first appearance, from 0.
        image: file name relative to the folder of images; '' when the file names none that is known.
        name: what the report calls it: the image's id or the prediction's file name.
        source: the format's own address of the records.
        size: (H, W) when the data set states it.
        problem: why nothing of it can be refined; it is then passed through as it is.
    """

    number: int
    image: str
    name: str
    source: Any
    size: tuple[int, int] | None = None
    problem: str | None = None

    def to_json(self) -> list[Any]:
        return [self.number, self.image, self.name, self.source, self.size, self.problem]

    @classmethod
    def from_json(cls, values: list[Any]) -> Unit:
        number, image, name, source, size, problem = values
        return cls(number, image, name, source, tuple(size) if size else None, problem)


@dataclass(frozen=True, slots=True)
class Instance:
    """One mask of a unit.

    ``mask`` is None when it cannot be read (``problem`` says why) or when there is none to refine (``skipped`` says
    why: absent, a crowd).

    ``record`` is what the file had (a JSON object, a line), kept so that what is not understood comes back unchanged.
    ``parts`` are the mask's outlines with few corners, where that was asked for.
    """

    position: int
    mask: Mask | None
    category: int
    score: float | None
    record: Any
    changed: bool = False
    problem: str | None = None
    skipped: str | None = None
    parts: Parts | None = None


@dataclass(frozen=True, slots=True)
class InstancePrediction:
    """The instances of one image, in the file's order."""

    instances: tuple[Instance, ...]

    @property
    def masks(self) -> list[Mask]:
        """The readable masks, in order."""
        return [item.mask for item in self.instances if item.mask is not None]

    def with_masks(self, masks: Iterable[Mask]) -> InstancePrediction:
        """The same instances with new masks, one for each readable one."""
        new = iter(masks)
        items = [
            item if item.mask is None else _with_mask(item, mask) if (mask := next(new)) else item
            for item in self.instances
        ]
        return InstancePrediction(tuple(items))


def _with_mask(item: Instance, mask: Mask) -> Instance:
    old = item.mask
    assert old is not None
    same = mask is old or (mask.box == old.box and np.array_equal(mask.window(*mask.box), old.window(*old.box)))
    return item if same else replace(item, mask=mask, changed=True)


@dataclass(frozen=True, slots=True)
class SemanticPrediction:
    """One label map (H, W) of integers, and the label that is never rewritten; ``soft`` where it came as that."""

    label_map: NDArray[np.integer[Any]]
    ignore_label: int | None
    picture: Any = None
    warnings: tuple[str, ...] = ()
    soft: SoftLabels | None = None

    def with_label_map(self, label_map: NDArray[np.integer[Any]]) -> SemanticPrediction:
        return replace(self, label_map=label_map)


@dataclass(frozen=True, slots=True)
class PanopticPrediction:
    """Segments that do not overlap: ``segment_map`` (H, W) int32 of ids, 0 is void, and one info for each id.

    ``record`` and ``before`` are what the file had.
    """

    segment_map: NDArray[np.int32]
    segments_info: list[dict[str, Any]]
    record: dict[str, Any]
    before: NDArray[np.int32]

    def with_segments(self, segment_map: NDArray[np.int32], infos: list[dict[str, Any]]) -> PanopticPrediction:
        return replace(self, segment_map=segment_map, segments_info=infos)


Softened = tuple[InstancePrediction, "list[Mask]", list[str]]
"""Instances, what is to be refined of each readable one, and what a person should know."""
Prediction = InstancePrediction | SemanticPrediction | PanopticPrediction


@dataclass(slots=True)
class Encoded:
    """A unit as bytes: whole files by relative name, JSON records by position in the array, and warnings."""

    files: dict[str, bytes] = field(default_factory=dict)
    records: dict[int, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class PredictionFormat(ABC):
    """One published format. Subclasses are built from `Paths` and keep no state of the units."""

    name: ClassVar[str]
    task: ClassVar[Task]
    result_is_folder: ClassVar[bool] = True
    has_records: ClassVar[bool] = False
    """The result is one file of records, which ``write`` puts in place."""
    records_are_json: ClassVar[bool] = True
    encodings: ClassVar[tuple[Encoding, ...]] = ("same",)
    """The ways in which the format can hold a mask, beside as it came."""
    exif: ClassVar[Exif] = "ignore"
    """The format's convention: do its masks speak of the upright photograph ("apply"), or of the stored pixels?"""

    soften: Callable[[Unit, InstancePrediction], Softened] | None = None
    """What to refine in place of the masks of a unit, where there is a folder of their probabilities."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    @abstractmethod
    def scan(self) -> Iterator[Unit]:
        """Walk through the predictions once.

        Raises:
            FormatError: the file as a whole cannot be used (another format, broken JSON at byte N).
        """

    @abstractmethod
    def read(self, unit: Unit, size: tuple[int, int] | None = None) -> Prediction:
        """Decode one unit of an image of ``size`` (H, W); None reads it from the image's header.

        Raises ``FormatError`` or ``MaskError`` with file and position.
        """

    @abstractmethod
    def encode(self, unit: Unit, prediction: Any) -> Encoded:
        """One unit back as bytes; boxes and areas are computed from the masks."""

    @abstractmethod
    def untouched(self, unit: Unit) -> Encoded:
        """One unit as it was, byte for byte, for when it cannot be refined."""

    def write(self, out: str, records: Iterable[bytes]) -> None:
        """Put the JSON records, in the input's order, into the result. Folder formats have none."""
        for _ in records:
            raise AssertionError(f"{self.name} has no records")

    @cached_property
    def folder(self) -> ImageFolder:
        """The folder of images."""
        return ImageFolder(self.paths.images, self.paths.image)

    @property
    def options(self) -> FileOptions:
        return self.paths.options

    @property
    def orientation(self) -> Exif:
        """What was asked for, else the format's convention."""
        return self.options.exif or self.exif

    def image_path(self, unit: Unit) -> str:
        """Address of a unit's image, which lies in the folder of images whatever name a file gives.

        Raises ``FormatError`` when the name leaves the folder, or nothing there fits it.
        """
        return storage.join_inside(self.paths.images, self.folder.present(unit.image), within=self.paths.within)

    @property
    def is_remote(self) -> bool:
        """Images or predictions lie on object storage."""
        return any(map(storage.is_remote, (self.paths.images, self.paths.predictions)))

    def reads(self, unit: Unit) -> list[Span]:
        """What of the storage is needed to work on a unit, as far as its plan says: so it can be asked for ahead."""
        if unit.problem:
            return []
        images = [Span(self.image_path(unit))] if storage.is_remote(self.paths.images) else []
        return images + self.reads_predictions(unit)

    def reads_predictions(self, unit: Unit) -> list[Span]:
        """What of it the predictions are."""
        if isinstance(unit.source, str):
            return [Span(storage.join_inside(self.paths.predictions, unit.source, within=self.paths.within))]
        return []

    def size(self, unit: Unit, size: tuple[int, int] | None) -> tuple[int, int]:
        """(H, W) of a unit's image: as given, else from its header, else as the file states."""
        if size is not None:
            return size
        try:
            return image_size(self.image_path(unit), self.orientation)
        except OWN_FAULTS:
            if unit.size is None:
                raise
            return unit.size

    def files(self, suffixes: str | tuple[str, ...], what: str) -> Iterator[Unit]:
        """One unit a file of the folder of predictions, by the files' names.

        Raises:
            FormatError: the folder has no file of these suffixes that fits the pattern.
        """
        pattern, number = NamePattern(self.options.match), 0
        suffixes = (suffixes,) if isinstance(suffixes, str) else suffixes
        for name in storage.list_files(self.paths.predictions, suffixes):
            wanted = pattern.image(name)
            if wanted is None:
                continue
            try:
                unit = Unit(number, self.image_of(name, wanted), name, name)
            except OWN_FAULTS as error:
                if not self.is_prediction(name):
                    continue
                unit = Unit(number, "", name, name, problem=str(error))
            yield unit
            number += 1
        if not number:
            raise FormatError(
                f"{self.paths.predictions}: another format",
                expected=what,
                got=f"no {', '.join(suffixes)} file"
                + (f" that fits {self.options.match}" if self.options.match else ""),
                fix="check the folder, --format and --match",
            )

    def image_of(self, name: str, wanted: str) -> str:
        """The image of a file of the folder of predictions, whose name asks for ``wanted``. Raises ``FormatError``."""
        return self.folder.find(wanted)

    def is_prediction(self, name: str) -> bool:
        """False for a file of no image that holds no prediction either, as lists of classes and notes."""
        return True

    def source(self, unit: Unit) -> bytes:
        """The bytes of a unit that is a file of the folder of predictions."""
        return storage.read_bytes(storage.join_inside(self.paths.predictions, unit.source, within=self.paths.within))

    def need(self, field_name: str, option: str, what: str) -> str:
        """A path that this format cannot do without. Raises ``ConfigError``."""
        value = getattr(self.paths, field_name)
        if not value:
            raise ConfigError(f"format {self.name}", expected=what, got="nothing", fix=f"pass {option}")
        return str(value)


def at(file: str, position: object, error: BaseException | str, fix: str = "") -> FormatError:
    """A `FormatError` that begins with file and position."""
    text = error if isinstance(error, str) else str(error) if isinstance(error, BprError) else repr(error)
    return FormatError(f"{file}: {position}: {text}", fix=fix)
