"""The three tasks: what may overlap, and who wins a pixel.

Letters: H, W are the image's size, px; P patches of a mask.

A task places patches, opens the canvas that they are cut from and added to, and takes what is complete of it, in any
order: masks one by one, so that no more than those under way are held beside the result; of a label map, tiles.

Instance: masks may overlap, each is thresholded on its own. Semantic and panoptic: each pixel ends with one
label, the one of the highest confidence. A label's confidence at a pixel is its averaged probability where
one of its patches lies, else 1 where the coarse map has it and 0 where not. On a tie the coarse label wins,
then the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import RefineConfig
from bpr_service.errors import MaskError
from bpr_service.masks.mask import Mask
from bpr_service.refine.assess import Assessment, Assessor
from bpr_service.refine.canvas import Canvas, HostCanvas
from bpr_service.refine.labels.boundary import LabelBoundaries
from bpr_service.refine.labels.canvas import LabelCanvas
from bpr_service.refine.labels.contest import Contest
from bpr_service.refine.labels.ledger import Ledger, Settled
from bpr_service.refine.labels.regions import LabelRegions
from bpr_service.refine.labels.soft_labels import SoftLabels
from bpr_service.refine.patches import Boxes, drop_full, place_along, place_patches
from bpr_service.refine.reassemble import NO_DATA, Accumulator, Gate, Valid, map_within, mask_within
from bpr_service.results import MaskReport, PanopticResult, Provenance, RefineResult, SemanticResult, changed, unchanged

Labels = NDArray[Any]
MapScale = Callable[[NDArray[np.uint8], Labels], float]
"""The scale for a label map of an image."""
R = TypeVar("R", bound=Provenance, covariant=True)


class Task(Protocol[R]):
    """What a :class:`bpr_service.refine.prepared.Prepared` works through."""

    def place(self, image: NDArray[np.uint8], config: RefineConfig) -> int:
        """Place the patches; how many."""

    def open(self, image: NDArray[np.uint8], outputs: int, device: str | None) -> Canvas[Any]:
        """What they are cut from and added to, in the memory of `device` or the host's (None)."""

    def take(self, done: Any) -> None:
        """Something of the canvas is complete."""

    def result(self, provenance: Provenance) -> R:
        """The result, once every mask was kept or taken."""


@dataclass(eq=False)
class InstanceTask:
    """Each mask on its own, at its own scale; at several, the one that is expected to give the best boundary."""

    masks: Sequence[Mask]
    scales: Callable[[NDArray[np.uint8], Sequence[Mask]], Sequence[Sequence[float]]]
    """Of each mask of an image, those to try."""
    gate: Gate | None = None
    assess: Callable[[NDArray[np.uint8], Sequence[Mask]], Assessor] | None = None
    valid: Valid | None = None
    """The pixels that may change; None: all."""
    _assessor: Assessor | None = None
    _config: RefineConfig = field(default_factory=RefineConfig)
    _tries: list[tuple[int, float]] = field(default_factory=list)
    """Mask and scale of each try, that are masks to the canvas."""
    _boxes: list[Boxes] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)
    """Patches of each mask, of all its tries."""
    _done: dict[int, _Outcome] = field(default_factory=dict)

    def place(self, image: NDArray[np.uint8], config: RefineConfig) -> int:
        self._config, scales = config, self.scales(image, self.masks)
        self._tries = [(i, scale) for i, tried in enumerate(scales) for scale in tried]
        at = {scale: config.patch.at(scale) for _, scale in self._tries}
        self._boxes = [place_patches(self.masks[i], at[scale]) for i, scale in self._tries]
        self._counts = [0] * len(self.masks)
        for (i, _), boxes in zip(self._tries, self._boxes, strict=True):
            self._counts[i] += len(boxes)
        for i, mask in enumerate(self.masks):
            if not self._counts[i]:
                why = _why_none(mask.area, mask.height * mask.width)
                self._done[i] = _Outcome((0.0, 0), mask, unchanged(i, why))
        return sum(self._counts)

    def open(self, image: NDArray[np.uint8], outputs: int, device: str | None) -> Canvas[tuple[int, Accumulator]]:
        self._assessor = self.assess(image, self.masks) if self.assess else None
        given = (image, [self.masks[i] for i, _ in self._tries], self._boxes)
        if device is None:
            return HostCanvas(*given, outputs=outputs, config=self._config)
        from bpr_service.refine.device_canvas import DeviceCanvas

        return DeviceCanvas(*given, outputs=outputs, config=self._config, device=device)

    def take(self, done: tuple[int, Accumulator]) -> None:
        number, patches = done
        index, scale = self._tries[number]
        mask = coarse = self.masks[index]
        count = self._counts[index]
        reason, assessment = self._judge(coarse, patches, scale)
        rank = (assessment.refined if assessment else 0.0, -number)
        if index in self._done and self._done[index].rank > rank:
            return
        if reason is not None:
            report = unchanged(index, reason, count)
        else:
            refined, change = patches.paste(coarse)
            added, removed = change.added_px, change.removed_px
            if self.valid is not None and added + removed:
                refined, added, removed = mask_within(refined, coarse, self.valid)
            report = changed(index, count, added, removed)
            if change.added_px + change.removed_px and report.status == "unchanged":
                report = unchanged(index, NO_DATA, count)
            mask = refined if report.status == "refined" else coarse
        thought: dict[str, Any] = {}
        if assessment:
            thought = {"confidence": round(assessment.confidence, 4), "uncertain": assessment.uncertain}
        self._done[index] = _Outcome(rank, mask, replace(report, scale=scale, **thought))

    def _judge(self, coarse: Mask, patches: Accumulator, scale: float) -> tuple[str | None, Assessment | None]:
        """Why a coarse mask is kept, or None, and what is thought of the refined one."""
        if self.gate is None and self._assessor is None:
            return None, None
        averaged = patches.averaged(coarse)
        reason = self.gate(coarse, averaged) if self.gate else None
        if self._assessor is None:
            return reason, None
        assessment = self._assessor(coarse, averaged, scale)
        return reason or assessment.reason, assessment

    def result(self, provenance: Provenance) -> RefineResult:
        done = [self._done[i] for i in range(len(self.masks))]
        masks, reports = [each.mask for each in done], [each.report for each in done]
        return RefineResult(masks, reports, coarse=list(self.masks), **_fields(provenance))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one try gave. `rank`: the expected boundary F of the refined mask, then the earlier try."""

    rank: tuple[float, int]
    mask: Mask
    report: MaskReport


class _LabelTask(Generic[R]):
    """What semantic and panoptic share: the labels of a map compete for its pixels."""

    def __init__(
        self,
        label_map: Labels | SoftLabels,
        void: int | None,
        gate: Gate | None,
        scale: MapScale,
        valid: Valid | None = None,
    ) -> None:
        self.regions = LabelRegions(label_map, void)
        self.gate, self.scale, self.valid = gate, scale, valid
        self._counts: list[int] = []  # patches of each label
        self._reasons: dict[int, str] = {}  # of labels that stay as they are

    def place(self, image: NDArray[np.uint8], config: RefineConfig) -> int:
        regions, every = self.regions, []
        patch = config.patch.at(self.scale(image, regions.map))
        height, width = regions.map.shape
        found = LabelBoundaries(regions)
        for i, (x0, y0, x1, y1) in enumerate(regions.boxes.tolist()):
            boxes = place_along(found[i], (x0, y0, x1, y1), height, width, patch)
            every.append(drop_full(boxes, height, width, partial(regions.window, i)))
            self._counts.append(len(every[i]))
            if self._counts[i] == 0:
                self._reasons[i] = _why_none(int(regions.areas[i]), height * width)
        self.ledger, self._config = Ledger(every, regions.numbers, height, width), config
        self.contest = Contest(regions, logit=config.average == "logit")
        return len(self.ledger)

    def open(self, image: NDArray[np.uint8], outputs: int, device: str | None) -> Canvas[Settled]:
        whole = self.gate is not None  # it judges a label as a whole, by all that the network says
        given, summed, config = (image, self.regions, self.ledger), outputs if whole else 1, self._config
        if device is None:
            return LabelCanvas(*given, outputs=summed, config=config, whole=whole)
        from bpr_service.refine.labels.device_canvas import LabelDeviceCanvas

        return LabelDeviceCanvas(*given, outputs=summed, config=config, whole=whole, device=device)

    def take(self, done: Settled) -> None:
        if self.gate is not None:
            self._judge(done, self.gate)
        self.contest.take(done)

    def _judge(self, done: Settled, gate: Gate) -> None:
        """Let the gate decide which labels stay as they are; all tiles are `done`."""
        for i, (count, number) in enumerate(zip(self._counts, self.regions.numbers, strict=True)):
            if count == 0:
                continue
            coarse = self.regions[i]
            if (reason := gate(coarse, self.contest.averaged(done, i, coarse))) is not None:
                self._reasons[i], self.contest.kept[number] = reason, True

    def _settle(self) -> tuple[Labels, list[MaskReport]]:
        """The final map, and what each label won and lost."""
        if self._config.gate:
            self.contest.restrain()
        reports, result, contest = [], self.contest.result(), self.contest
        won = [(int(contest.added[number]), int(contest.removed[number])) for number in self.regions.numbers]
        if self.valid is not None:
            result, won = map_within(result, self.regions.map, self.valid, self.regions.labels)
        for i, (label, (plus, minus)) in enumerate(zip(self.regions.labels, won, strict=True)):
            count, reason = self._counts[i], self._reasons.get(i)
            if reason is not None and plus + minus == 0:
                reports.append(unchanged(i, reason, count, label))
            else:  # a label left out itself can still lose pixels to a neighbour that is surer of them
                reports.append(changed(i, count, plus, minus, label))
        return result, reports


class SemanticTask(_LabelTask[SemanticResult]):
    """Every label of the map but the ignore label, as a mask against the rest."""

    def result(self, provenance: Provenance) -> SemanticResult:
        label_map, reports = self._settle()
        areas = self.regions.areas.tolist()
        vanished = [
            r.label
            for r, px in zip(reports, areas, strict=True)
            if r.label is not None and px + r.added_px == r.removed_px
        ]
        return SemanticResult(label_map, reports, vanished, **_fields(provenance))


class PanopticTask(_LabelTask[PanopticResult]):
    """Every segment, things and stuff together; 0 is void."""

    def __init__(
        self,
        segment_map: Labels,
        segments_info: Sequence[dict[str, Any]],
        gate: Gate | None,
        scale: MapScale,
        valid: Valid | None = None,
    ) -> None:
        super().__init__(segment_map, 0, gate, scale, valid)
        self.infos = _check_infos(self.regions, segments_info)

    def result(self, provenance: Provenance) -> PanopticResult:
        segment_map, reports = self._settle()
        after = LabelRegions(segment_map, 0)
        at = {label: i for i, label in enumerate(after.labels)}
        kept, vanished = [], []
        for info in self.infos:
            if info["id"] not in at:
                vanished.append(dict(info))
                continue
            i = at[info["id"]]
            x0, y0, x1, y1 = (int(v) for v in after.boxes[i])
            kept.append({**info, "area": int(after.areas[i]), "bbox": [x0, y0, x1 - x0, y1 - y0]})
        return PanopticResult(segment_map, kept, vanished, reports, **_fields(provenance))


def _check_infos(regions: LabelRegions, infos: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The infos, whose ids must be those of the map; :class:`MaskError` names the first that is not."""
    ids = []
    for i, info in enumerate(infos):
        value = info.get("id") if isinstance(info, dict) else None
        if not isinstance(value, int) or isinstance(value, bool):
            raise MaskError(
                f"segments_info[{i}]",
                expected="a dict with an integer id",
                got=repr(info)[:60],
                fix="write it as COCO panoptic does",
            )
        ids.append(value)
    here, told = set(regions.labels), set(ids)
    if len(told) != len(ids):
        twice = next(n for n in ids if ids.count(n) > 1)
        raise MaskError("segments_info", expected="each id once", got=f"{twice} twice", fix="merge the two entries")
    if here != told:
        odd = min(here ^ told)
        where = "in the map and not in segments_info" if odd in here else "in segments_info and not in the map"
        raise MaskError(
            "segment map and segments_info disagree",
            expected="the same ids in both (0 is void)",
            got=f"segment {odd} {where}",
            fix="read the PNG as R + 256 G + 65536 B, and check that the two belong together",
        )
    return [dict(info) for info in infos]


def _why_none(area: int, pixels: int) -> str:
    """Why a mask of `area` px has no patches."""
    if area in (0, pixels):
        return "the mask fills the image" if area else "the mask is empty"
    return "no patch holds both foreground and background"


def _fields(provenance: Provenance) -> dict[str, Any]:
    provenance = replace(provenance, timings_ms={k: round(v, 3) for k, v in provenance.timings_ms.items()})
    return {"model": provenance.model, "device": provenance.device, "timings_ms": provenance.timings_ms}
