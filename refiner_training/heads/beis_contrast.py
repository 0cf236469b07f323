"""The boundary contrast of one BEIS stage: draw queries and keys, compute IBDL and CBDL, remember afterwards.

Letters: N RoIs, M cells a side, P = M * M cells, D channels, Q queries, C classes with 0 as background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed
from torch.nn import functional as F

from refiner_training.heads.beis_memory import ConfusionMatrix, FeatureBank, class_weights, weighted_sample
from refiner_training.heads.losses import contrastive_loss, zero_loss
from refiner_training.heads.protocol import HeadSettings, OwnRandom, RoiBatch
from refiner_training.heads.targets import boundary_band


class ContrastSettings(HeadSettings):
    """Settings of the two contrast losses; what the paper leaves open is named here.

    Attributes:
        ibdl, cbdl: the two losses; both off leaves the multi-stage head alone.
        contrast_weight: of both losses; 1 in the paper (eq. 9).
        contrast_ramp: steps over which that weight rises from 0; the paper has none.
        aqs, aks: adaptive query and key selection; off draws uniformly.
        band_px: t, half the width of the band, in cells of the stage.
        hardness: delta of the query selection.
        queries: most queries a mask and side (IBDL) or a mask (CBDL).
        ibdl_keys, cbdl_keys: positive and negative keys of a query.
        bank_size: entries a side and stage; bank_warmup: entries each side must hold before CBDL starts.
        normalize, tau: unit-length features and temperature of both losses. The paper states neither, likens its losses
            to SupCon and InfoNCE, which normalise, and measures cosines (Table 1, eq. 7). Features as they are give the
            backbone a gradient a hundred times the classifier's.
        pos_same_class: CBDL's positives also share the class.
    """

    ibdl: bool = True
    cbdl: bool = True
    contrast_weight: float = Field(default=1.0, gt=0)
    contrast_ramp: int = Field(default=0, ge=0)
    aqs: bool = True
    aks: bool = True
    band_px: int = Field(default=3, ge=1)
    hardness: float = Field(default=0.97, gt=0.5, lt=1)
    queries: int = Field(default=16, ge=1)
    ibdl_keys: tuple[int, int] = (4, 32)
    cbdl_keys: tuple[int, int] = (16, 128)
    bank_size: int = Field(default=65536, ge=1)
    bank_warmup: int = Field(default=128, ge=1)
    normalize: bool = True
    tau: float = Field(default=1.0, gt=0)
    pos_same_class: bool = False

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.bank_warmup > self.bank_size:
            raise ValueError(f"bank_warmup {self.bank_warmup} is over bank_size {self.bank_size}")
        return self


@dataclass(frozen=True)
class StageInput:
    """One stage's tensors: features (N, D, M, M); masks, contour, probability, others (N, M, M); labels (N,).

    ``others`` holds the class of the instance that covers a cell (0: none); only cells outside the RoI's own mask
    are read. ``probability`` is the detached mask of the RoI's class.
    """

    features: Tensor
    masks: Tensor
    contour: Tensor
    probability: Tensor
    labels: Tensor
    others: Tensor


@dataclass(frozen=True)
class _Cells:
    """A stage flattened: features (N, P, D); sides, a pair (outside, inside) of (N, P) bool; hard likewise."""

    features: Tensor
    sides: tuple[Tensor, Tensor]
    hard: tuple[Tensor, Tensor]
    classes: Tensor


def roi_class_maps(rois: RoiBatch, size: int) -> Tensor:
    """(N, M, M) int64: the class of the instance under each cell's centre, 0 where there is none.

    Smaller instances lie on top of larger ones.
    """
    assert rois.truth is not None
    maps = []
    for boxes, masks, labels in zip(rois.boxes, rois.truth.masks, rois.truth.labels, strict=True):
        if len(boxes) == 0:
            continue
        height, width = masks.shape[-2:]
        order = masks.flatten(1).sum(1).argsort()
        covered = masks[order] > 0
        painted = torch.where(covered.any(0), labels[order][covered.int().argmax(0)], 0)
        centres = (torch.arange(size, device=boxes.device) + 0.5) / size
        xs = (boxes[:, :1] + centres * (boxes[:, 2:3] - boxes[:, :1])).long().clamp(0, width - 1)
        ys = (boxes[:, 1:2] + centres * (boxes[:, 3:] - boxes[:, 1:2])).long().clamp(0, height - 1)
        maps.append(painted[ys[:, :, None], xs[:, None, :]])
    return torch.cat(maps) if maps else torch.zeros((0, size, size), dtype=torch.int64)


class StageContrast:
    """Losses and memory of one stage: two banks (outside, inside) and a confusion matrix.

    The memory is written by :meth:`remember`, after the step, so a loss never sees its own features in the bank.
    """

    def __init__(self, settings: ContrastSettings, classes: int, random: OwnRandom) -> None:
        self.settings, self._random = settings, random
        self.banks = (FeatureBank(settings.bank_size), FeatureBank(settings.bank_size))
        self.confusion = ConfusionMatrix(classes)
        self._pending: list[tuple[Tensor, ...]] = []

    def losses(self, stage: StageInput) -> dict[str, Tensor]:
        """``loss_ibdl`` and ``loss_cbdl`` of the stage, as far as they are switched on."""
        cells = self._cells(stage)
        generator = self._random.on(stage.features.device)
        losses: dict[str, Tensor] = {}
        if self.settings.ibdl:
            losses["loss_ibdl"] = self._within(cells, stage.labels, generator)
        if self.settings.cbdl:
            losses["loss_cbdl"] = self._across(cells, stage.labels, generator)
        self._observe(cells, stage.labels)
        return losses

    def _cells(self, stage: StageInput) -> _Cells:
        inside, outside = boundary_band(stage.masks, stage.contour, self.settings.band_px)
        inside, outside = inside.flatten(1), outside.flatten(1)
        y = stage.probability.flatten(1)
        hard = (outside, inside)
        if self.settings.aqs:  # AQS (sec. 3.3.3): queries whose mask is not sure yet
            hard = (outside & (y > 1 - self.settings.hardness), inside & (y < self.settings.hardness))
        features = stage.features.float().flatten(2).transpose(1, 2)
        return _Cells(features, (outside, inside), hard, stage.others.flatten(1))

    def _within(self, cells: _Cells, labels: Tensor, generator: torch.Generator) -> Tensor:
        """IBDL: mean over queries, sum over both sides, mean over RoIs that have queries."""
        settings = self.settings
        positives, negatives = settings.ibdl_keys
        per_roi = cells.features.new_zeros(len(labels))
        has_query = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for side in (0, 1):
            queries, query_valid = weighted_sample(cells.hard[side].float(), settings.queries, generator)
            # One key more than wanted is drawn for all queries of a mask; each then drops itself, or the last.
            keys, key_valid = weighted_sample(cells.sides[side].float(), positives + 1, generator)
            own = keys[:, None, :] == queries[:, :, None]
            usable = key_valid[:, None, :] & ~own
            usable[..., -1] &= own.any(-1)
            weights = cells.sides[1 - side].float()
            if side == 1 and settings.aks:
                weights = class_weights(self.confusion.rows(labels), cells.classes, cells.sides[0])
            others, other_valid = weighted_sample(weights, negatives, generator)
            loss = contrastive_loss(
                _take(cells.features, queries),
                _take(cells.features, keys),
                _take(cells.features, others),
                usable,
                other_valid,
                normalize=settings.normalize,
                tau=settings.tau,
            )
            valid = query_valid & usable.any(-1)
            per_roi = per_roi + (loss * valid).sum(1) / valid.sum(1).clamp(min=1)
            has_query = has_query | valid.any(1)
        return per_roi.sum() / has_query.sum().clamp(min=1)

    def _across(self, cells: _Cells, labels: Tensor, generator: torch.Generator) -> Tensor:
        """CBDL: queries of both sides against the banks; mean over queries, then over RoIs that have queries."""
        settings = self.settings
        if min(len(bank) for bank in self.banks) < settings.bank_warmup:
            return zero_loss(cells.features)
        positives, negatives = settings.cbdl_keys
        queries, query_valid = weighted_sample((cells.hard[0] | cells.hard[1]).float(), settings.queries, generator)
        for bank in self.banks:  # observed by another process, it may lie elsewhere
            bank.to(cells.features.device)
        features, inside = _take(cells.features, queries), cells.sides[1].gather(1, queries)
        total = features.new_zeros(queries.shape)
        for side, bank in enumerate(self.banks):
            opposite = self.banks[1 - side]
            same = torch.ones((len(labels), len(bank)), device=labels.device)
            if settings.pos_same_class:
                same = (bank.classes[None] == labels[:, None]).float()
            keys, key_valid = weighted_sample(same, positives, generator)
            present = torch.ones(len(opposite), dtype=torch.bool, device=labels.device)
            weights = present.float().expand(len(labels), -1)
            if settings.aks:
                weights = class_weights(self.confusion.rows(labels), opposite.classes, present)
            others, other_valid = weighted_sample(weights, negatives, generator)
            loss = contrastive_loss(
                features,
                bank.features[keys],
                opposite.features[others],
                key_valid[:, None, :].expand(-1, settings.queries, -1),
                other_valid,
                normalize=settings.normalize,
                tau=settings.tau,
            )
            total = torch.where(inside == bool(side), loss, total)
        per_roi = (total * query_valid).sum(1) / query_valid.sum(1).clamp(min=1)
        return per_roi.sum() / query_valid.any(1).sum().clamp(min=1)

    @torch.no_grad()
    def _observe(self, cells: _Cells, labels: Tensor) -> None:
        """Band means R^0, R^1 of each mask, and cosines between a mask and what lies next to it in its RoI."""
        outside, inside = (side.float() for side in cells.sides)
        means = [
            torch.bmm(side[:, None], cells.features)[:, 0] / side.sum(1, keepdim=True).clamp(min=1)
            for side in (outside, inside)
        ]
        roi, cell = cells.sides[0].nonzero(as_tuple=True)
        classes = self.confusion.values.shape[0]
        pairs = roi * classes + cells.classes[roi, cell]
        groups, group = pairs.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        sums = cells.features.new_zeros((len(groups), cells.features.shape[-1]))
        sums.index_add_(0, group, cells.features[roi, cell])  # a sum has the direction of the mean
        owner, other = groups // classes, groups % classes
        cosine = F.cosine_similarity(means[1][owner], sums, dim=1)
        known = inside.any(1)[owner]
        present = [side.any(1) for side in cells.sides]
        self._pending.append(
            (
                means[0][present[0]],
                labels[present[0]],
                means[1][present[1]],
                labels[present[1]],
                labels[owner][known],
                other[known],
                cosine[known],
            )
        )

    def remember(self) -> None:
        """Write what the last losses observed, in all processes, into the banks and the confusion matrix.

        Every process writes the same in the same order, so they share one memory and any one's checkpoint holds it.
        """
        for outside, outside_class, inside, inside_class, own, other, cosine in _of_all_processes(self._pending):
            self.banks[0].push(outside, outside_class)
            self.banks[1].push(inside, inside_class)
            self.confusion.update(own, other, cosine)
        self._pending.clear()

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"banks": [bank.state() for bank in self.banks], "confusion": self.confusion.values}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        for bank, saved in zip(self.banks, state["banks"], strict=True):
            bank.load_state(saved)
        self.confusion.values = state["confusion"]


def _of_all_processes(observed: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """What all processes observed, in their order; alone, what this one did."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return list(observed)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, [tuple(each.cpu() for each in entry) for entry in observed])
    device = observed[0][0].device if observed else None
    return [tuple(each.to(device) for each in entry) for part in gathered for entry in part]


def _take(features: Tensor, indices: Tensor) -> Tensor:
    """features (N, P, D), indices (N, Q) -> (N, Q, D)."""
    return features.gather(1, indices[:, :, None].expand(-1, -1, features.shape[-1]))
