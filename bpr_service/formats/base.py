"""What every prediction format has in common.

A prediction file is cut into *units*, the predictions of one image: what is refined, retried and reported as one.
``scan`` walks through the file once and yields the units; ``read`` decodes one of them from its address alone, so
any process can do it; ``encode`` turns it back into bytes; ``write`` puts the bytes of all units into one result.
Nothing but one unit is ever held in memory.

Letters: H, W are an image's height and width in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import BprError, ConfigError, FormatError

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

Task = Literal["instance", "semantic", "panoptic"]
TASKS: tuple[Task, ...] = ("instance", "semantic", "panoptic")


@dataclass(frozen=True)
class Paths:
    """Where a prediction file and what belongs to it lie; local paths or fsspec addresses.

    ``within`` confines every local file that is opened, links followed, to these folders.
    """

    images: str
    predictions: str
    dataset: str | None = None
    panoptic_dir: str | None = None
    within: tuple[str, ...] | None = None


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
    """One mask of a unit. ``mask`` is None when it cannot be read; ``problem`` then says why.

    ``record`` is what the file had (a JSON object, a line), kept so that what is not understood comes back unchanged.
    """

    position: int
    mask: Mask | None
    category: int
    score: float | None
    record: Any
    changed: bool = False
    problem: str | None = None


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
    """One label map (H, W) of uint8 or uint16, and the label that is never rewritten."""

    label_map: NDArray[np.integer[Any]]
    ignore_label: int
    picture: Any = None

    def with_label_map(self, label_map: NDArray[np.integer[Any]]) -> SemanticPrediction:
        return replace(self, label_map=label_map)


@dataclass(frozen=True, slots=True)
class PanopticPrediction:
    """Segments that do not overlap: ``segment_map`` (H, W) int32 of ids, 0 is void, and one info for each id."""

    segment_map: NDArray[np.int32]
    segments_info: list[dict[str, Any]]
    record: dict[str, Any]

    def with_segments(self, segment_map: NDArray[np.int32], infos: list[dict[str, Any]]) -> PanopticPrediction:
        return replace(self, segment_map=segment_map, segments_info=infos)


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
    """The result holds a JSON array of records, which ``write`` puts in place."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    @abstractmethod
    def scan(self) -> Iterator[Unit]:
        """Walk through the predictions once.

        Raises:
            FormatError: the file as a whole cannot be used (another format, broken JSON at byte N).
        """

    @abstractmethod
    def read(self, unit: Unit) -> Prediction:
        """Decode one unit. Raises ``FormatError`` or ``MaskError`` with file and position."""

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

    def image_path(self, unit: Unit) -> str:
        """Address of a unit's image. Raises ``FormatError`` when its name leaves the folder."""
        return storage.join_inside(self.paths.images, unit.image, within=self.paths.within)

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
