"""Pairs of coarse and true masks, read image by image from the data sets' own formats.

===================  =====================================================  ========================
reader               ground truth                                           predictions (optional)
===================  =====================================================  ========================
CocoPairs            COCO or LVIS annotations                               COCO results
CityscapesPairs      ``*_gtFine_instanceIds.png``                           ``*_pred.txt`` and PNGs
PanopticPairs        COCO panoptic JSON and PNGs                            the same
LabelPairs           folder of label PNGs                                   the same
RegionPairs          ``STEM_K.png``, 16-bit region ids of annotator K       none
===================  =====================================================  ========================

A reader checks its files when it is made, so that a wrong path or size stops the run before any long work, and
reads an image only when it is asked for it. Readers are picklable and ``read(i)`` needs nothing but `i`, so
that processes can share one and an interrupted run can go on. :func:`stream` skips what is broken and says so.

Without predictions a pair's coarse mask is None: it is for the caller to simulate one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from bpr_service.errors import FormatError, InputError
from bpr_service.masks.images import read_image
from bpr_service.masks.mask import Mask
from refiner_training.data.label_pngs import png_size
from refiner_training.metrics.boundary import mask_iou

MATCH_IOU = 0.5  # the paper's: a prediction trains the refiner when its IoU with the truth is higher


@dataclass(frozen=True, slots=True)
class Pair:
    """One object: its coarse mask where there are predictions, and its true one."""

    coarse: Mask | None
    truth: Mask
    category: int
    key: str  # names the object in its file
    iou: float | None  # of coarse and truth


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, (H, W, 3) uint8 RGB, with its pairs; `void` are pixels that must not be learnt from."""

    index: int
    name: str
    image: NDArray[Any]
    pairs: list[Pair]
    void: Mask | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """An image that could not be read."""

    index: int
    name: str
    error: str


class PairReader(ABC):
    """A data set as a sequence of images with their pairs of masks."""

    kind: ClassVar[str]
    names: list[str]  # of the images, in reading order; a name is unique
    images: list[Path]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        """Read one image and its pairs.

        Raises:
            InputError: the image, its annotations or its predictions cannot be read.
        """
        image = read_image(self.images[index])
        pairs, void = self._pairs(index, image.shape[0], image.shape[1])
        for pair in pairs:
            if (pair.truth.height, pair.truth.width) != image.shape[:2]:
                raise FormatError(
                    f"{self.images[index]}",
                    expected=f"the size of its annotation, {pair.truth.height} x {pair.truth.width}",
                    got=f"{image.shape[0]} x {image.shape[1]}",
                    fix="use the images the annotations were made on",
                )
        return Sample(index, self.names[index], image, pairs, void)

    @abstractmethod
    def _pairs(self, index: int, height: int, width: int) -> tuple[list[Pair], Mask | None]:
        """Read the pairs of one image, and its void pixels."""


def stream(reader: PairReader, indices: Iterable[int] | None = None) -> Iterator[Sample | Broken]:
    """Yield the samples of all images, or of some; a broken one comes as :class:`Broken` and stops nothing."""
    for index in range(len(reader)) if indices is None else indices:
        try:
            yield reader.read(index)
        except InputError as error:
            yield Broken(index, reader.names[index], str(error))


def match(predictions: Sequence[tuple[int, str, Mask]], truths: Sequence[tuple[int, str, Mask]]) -> list[Pair]:
    """Pair each prediction with the true mask of its category that it overlaps most, over IoU 0.5.

    Both are (category, key, mask); predictions that match nothing are left out, several may match one truth.
    """
    pairs = []
    for category, key, coarse in predictions:
        best: tuple[float, Mask] | None = None
        for other, _, truth in truths:
            if other == category and (iou := mask_iou(coarse, truth)) > (best[0] if best else MATCH_IOU):
                best = (iou, truth)
        if best is not None:
            pairs.append(Pair(coarse, best[1], category, key, best[0]))
    return pairs


def without_coarse(truths: Sequence[tuple[int, str, Mask]]) -> list[Pair]:
    """Make pairs of true masks alone."""
    return [Pair(None, mask, category, key, None) for category, key, mask in truths if not mask.is_empty]


def check_images(images: Sequence[Path], sizes: Sequence[tuple[int, int]], source: Path) -> None:
    """Check by their headers that all images are there and of the size their annotation says.

    An image that is there but damaged passes: it is reported when its turn comes.

    Raises:
        FormatError: names the first image that is missing or of another size.
    """
    for path, size in zip(images, sizes, strict=True):
        if not path.is_file():
            raise FormatError(
                f"{source}", expected=f"the image {path}", got="no such file", fix="check the folder of images"
            )
        try:
            found = png_size(path)
        except FormatError:
            continue
        if found != size:
            raise FormatError(
                f"{source}",
                expected=f"{path.name} of {size[0]} x {size[1]} px (height x width)",
                got=f"{found[0]} x {found[1]}",
                fix="use the images the annotations were made on, unscaled and unrotated",
            )


def find_pictures(folder: Path | str, stems: Sequence[str], source: Path) -> list[Path]:
    """Find the picture of each stem (relative, without ending) in a folder, whatever its format.

    Raises:
        FormatError: no such folder, or the first stem without a picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FormatError(f"{folder}", expected="a folder of images", got="no folder", fix="check the path")
    found = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.*"))}
    for stem in stems:
        if stem not in found:
            raise FormatError(
                f"{source}", expected=f"the image {stem} in {folder}", got="none", fix="check both folders"
            )
    return [found[stem] for stem in stems]
