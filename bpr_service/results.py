"""What a refinement gives, and what that can be turned into: a picture, a file, the records of other tools.

Letters: H, W are the image's size, px; n masks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.errors import ConfigError
from bpr_service.masks.mask import Mask

if TYPE_CHECKING:
    import supervision

Labels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What became of one mask.

    Attributes:
        label: its label or segment id in a semantic or panoptic task.
        confidence: the expected boundary F at 2 px of the mask given back, 0 to 1, where the model estimates it.
        scale: what its patches measured in the image over what the model was trained at, where it had patches of its
            own.
        uncertain: the places, (x, y, width, height) in px, worst first, where the network expects many of its decisions
            to be wrong.
    """

    index: int
    status: Literal["refined", "unchanged"]
    reason: str | None
    patches: int
    changed_px: int
    added_px: int
    removed_px: int
    label: int | None = None
    confidence: float | None = None
    scale: float | None = None
    uncertain: tuple[tuple[int, int, int, int], ...] = ()


def unchanged(index: int, reason: str, patches: int = 0, label: int | None = None) -> MaskReport:
    """The report of a mask that was left as it is."""
    return MaskReport(index, "unchanged", reason, patches, 0, 0, 0, label)


def changed(index: int, patches: int, added: int, removed: int, label: int | None = None) -> MaskReport:
    """The report of a mask that went through the network; unchanged when no pixel differs."""
    if added + removed == 0:
        return unchanged(index, "no pixel changed", patches, label)
    return MaskReport(index, "refined", None, patches, added + removed, added, removed, label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What every result says of how it was made. `timings_ms`: milliseconds of each step."""

    model: str
    device: str
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class RefineResult(Provenance):
    """Refined masks, in the order given, and a report for each.

    Attributes:
        masks: n refined masks.
        reports: what became of each.
        coarse: the n masks that came.
        image: (H, W, 3) uint8 RGB, as the network saw it; None where only masks travelled.
    """

    masks: list[Mask]
    reports: list[MaskReport]
    coarse: list[Mask]
    image: NDArray[np.uint8] | None = None

    def picture(self, *, width_px: int = 1200) -> NDArray[np.uint8]:
        """(h, ``width_px``, 3) uint8 RGB: coarse beside refined, and the places that changed most, enlarged.

        Raises:
            ConfigError: the result holds no image.
        """
        from bpr_service.masks.picture import before_after

        if self.image is None:
            fix = "bpr_service.masks.picture.before_after draws masks on any image"
            raise ConfigError("a picture", expected="a result that holds its image", got="masks alone", fix=fix)
        return before_after(self.image, self.coarse, self.masks, width_px=width_px)

    def show(self) -> None:
        """Show `picture`: in the notebook where there is one, else in the system's viewer."""
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if shell is not None and hasattr(shell, "kernel"):
            from IPython.display import display

            display(self)
            return
        from PIL import Image

        Image.fromarray(self.picture()).show()

    def save(self, path: str | Path) -> None:
        """Write ``NAME.png``, the `picture`, or ``NAME.json``, the records of `to_coco`; whole or not at all.

        Raises:
            ConfigError: another suffix, or a picture where the result holds no image.
            StorageError: the place cannot be written.
        """
        from bpr_service.masks.label_maps import encode_png

        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".json"):
            fix = "PNG is the picture, JSON the masks as COCO records; for one mask, mask.to_png()"
            raise ConfigError(f"save({str(path)!r})", expected=".png or .json", got=suffix or "no suffix", fix=fix)
        as_json = suffix == ".json"
        data = (json.dumps(self.to_coco()) + "\n").encode() if as_json else encode_png(self.picture())
        storage.write_bytes(path, data)

    def to_coco(self, image_id: int | str = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The masks as COCO annotations, in their order.

        Args:
            image_id: of the image that they are of.
            category_ids: n of them; None: 1 for each.

        Raises:
            ConfigError: another number of categories than of masks.
        """
        categories = [1] * len(self.masks) if category_ids is None else list(category_ids)
        if len(categories) != len(self.masks):
            raise ConfigError("category_ids", expected=f"{len(self.masks)}, one a mask", got=str(len(categories)))
        return [
            {
                "id": number, "image_id": image_id, "category_id": category, "segmentation": mask.to_rle(),
                "bbox": mask.bbox, "area": mask.area, "iscrowd": 0,
            }
            for number, (mask, category) in enumerate(zip(self.masks, categories, strict=True), 1)
        ]  # fmt: skip

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections` of masks (n, H, W) and their boxes; an empty one where there are none.

        `bpr_service.connect.refine_detections` keeps the classes and scores of detections that come.
        """
        import supervision

        if not self.masks:
            return supervision.Detections.empty()
        masks = np.stack([mask.to_array().astype(bool) for mask in self.masks])
        boxes = np.array([mask.box for mask in self.masks], np.float32)
        return supervision.Detections(xyxy=boxes, mask=masks)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows."""
        from bpr_service.masks.label_maps import encode_png

        return None if self.image is None else encode_png(self.picture())


@dataclass(frozen=True, slots=True, eq=False)
class SemanticResult(Provenance):
    """Refined (H, W) label map, of the dtype given; a report a label; labels that no pixel has any more."""

    label_map: Labels
    reports: list[MaskReport]
    vanished: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class PanopticResult(Provenance):
    """Refined (H, W) segment map; infos with new area and bbox; infos of segments no pixel has any more."""

    segment_map: Labels
    segments_info: list[dict[str, Any]]
    vanished: list[dict[str, Any]]
    reports: list[MaskReport]
