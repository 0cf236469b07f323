"""B2Inst: the score, its targets, the basis' loss and the scoring head; and the two basis models under it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from refiner_training.heads.b2inst import (
    B2InstSettings,
    MaskScoring,
    basis_map,
    boundary_basis_loss,
    rescore,
    score_targets,
)
from refiner_training.segmenters.blendmask import BlendMask
from refiner_training.segmenters.blendmask_layers import blend
from refiner_training.segmenters.registry import build_segmenter
from refiner_training.segmenters.yolact import Yolact
from refiner_training.segmenters.yolact_layers import crop_mask, fast_nms, make_anchors

FORMS: Any = ("probability", "signed", "logits")


def test_mask_score() -> None:
    factors = {"mask": torch.tensor([0.64]), "boundary": torch.tensor([0.25])}
    assert rescore(torch.tensor([0.81]), factors).item() == pytest.approx(0.324)
    assert rescore(torch.tensor([0.81]), {"boundary": torch.tensor([0.25])}).item() == pytest.approx(0.2025)


def test_negative_raw_scores_give_zero_not_nan() -> None:
    score = rescore(
        torch.tensor([0.9, 0.9]), {"mask": torch.tensor([-0.3, 0.5]), "boundary": torch.tensor([0.5, -2.0])}
    )
    assert score.tolist() == [0.0, 0.0]


def test_raw_scores_over_one_are_clamped() -> None:
    factors = {"mask": torch.tensor([3.0]), "boundary": torch.tensor([1.0])}
    assert rescore(torch.tensor([0.5]), factors).item() == pytest.approx(0.5)


def test_score_targets_of_a_shifted_square() -> None:
    one, other = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    one[0, 3:11, 3:11] = 1
    other[0, 4:12, 4:12] = 1
    iou, boundary = score_targets(one, other)
    assert iou.item() == pytest.approx(0.620, abs=1e-3)
    assert boundary.item() == pytest.approx(0.0714, abs=1e-4)
    assert [float(v) for v in score_targets(one, one)] == pytest.approx([1, 1])


def test_score_targets_of_empty_masks_are_finite() -> None:
    iou, boundary = score_targets(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8))
    assert iou.item() == 0
    assert torch.isfinite(boundary).all()


@pytest.mark.parametrize("kinds", [("bce",), ("dice",), ("crisp",), ("bce", "dice", "crisp")])
def test_basis_loss_trains_without_instances(kinds: Any) -> None:
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    loss = boundary_basis_loss(logits, torch.zeros(2, 8, 8), B2InstSettings(basis_losses=kinds))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all(), "an empty target pushes all logits down"


def test_the_basis_loss_is_the_sum_of_its_parts() -> None:
    logits, truth = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 8, 8)
    parts = [boundary_basis_loss(logits, truth, B2InstSettings(basis_losses=(n,))) for n in ("bce", "dice", "crisp")]
    torch.testing.assert_close(boundary_basis_loss(logits, truth, B2InstSettings()), torch.stack(parts).sum())


def test_the_basis_enters_the_sum_as_a_bounded_map() -> None:
    logits = torch.tensor([-30.0, 0.0, 30.0])
    found = {form: basis_map(logits, B2InstSettings(basis_form=form)).tolist() for form in FORMS}
    assert found["probability"] == pytest.approx([0, 0.5, 1])
    assert found["signed"] == pytest.approx([-1, 0, 1])
    assert found["logits"] == [-30, 0, 30]


def scoring() -> MaskScoring:
    torch.manual_seed(0)
    return MaskScoring(6, 4, B2InstSettings(score_channels=8, score_hidden=16))


def test_scoring_head_reads_258_channels_and_ends_at_7() -> None:
    head = MaskScoring(256, 3, B2InstSettings())
    assert head.tower[0].in_channels == 258
    assert head.linear[0].in_features == 256 * 49
    assert [output.out_features for output in head.outputs.values()] == [3, 3]


def test_scoring_must_not_change_the_masks() -> None:
    masks = torch.rand(2, 56, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = scoring()
    scores = head(masks, torch.zeros(2, 6, 14, 14), torch.tensor([1, 2]))
    losses = head.losses(masks, (torch.rand(2, 56, 56) > 0.5).float(), scores)
    (losses["loss_mask_iou"] + losses["loss_mask_boundary"]).backward()
    assert masks.grad is None


def test_scoring_losses_skip_targets_of_zero() -> None:
    head = scoring()
    masks = torch.zeros(2, 28, 28)
    masks[1, 4:20, 4:20] = 1
    truth = torch.zeros(2, 28, 28)
    truth[:, 4:20, 4:20] = 1
    raw = torch.tensor([7.0, 0.5])  # the first has IoU 0 and does not count
    losses = head.losses(masks, truth, {"mask": raw, "boundary": raw})
    assert losses["loss_mask_iou"].item() == pytest.approx(0.5 * 0.25)


def test_scoring_without_instances() -> None:
    head = scoring()
    scores = head(torch.zeros(0, 56, 56), torch.zeros(0, 6, 14, 14), torch.zeros(0).long())
    losses = head.losses(torch.zeros(0, 56, 56), torch.zeros(0, 56, 56), scores)
    assert [float(v.detach()) for v in losses.values()] == [0, 0]


# ---- BlendMask ---------------------------------------------------------------------------------------------------


def test_constant_bases_blend_to_themselves() -> None:
    attention = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blend(torch.full((2, 5, 56, 56), 3.0), attention), torch.full((2, 56, 56), 3.0))


@pytest.mark.parametrize(("head", "kernels", "attention"), [("plain", 4, 14), ("b2inst", 5, 7)])
def test_blendmask_bases_and_attention(configure: Any, head: str, kernels: int, attention: int) -> None:
    model = build_segmenter("blendmask", head, configure("blendmask")).eval()
    assert isinstance(model, BlendMask)
    levels = model.detector.backbone(torch.zeros(1, 3, 512, 640))
    bases = model.basis(list(levels.values()))
    assert bases.shape == (1, kernels, 128, 160)
    outputs = model.detector.head(list(levels.values()))
    assert outputs["attention"].shape[-1] == kernels * attention**2
    if head == "b2inst":
        assert outputs["attention"].shape[-1] == 245


# ---- YOLACT ------------------------------------------------------------------------------------------------------


def test_yolact_prototypes_of_550_pixels(configure: Any) -> None:
    model = build_segmenter("yolact", "b2inst", configure("yolact", **{"model.yolact.size_px": 550})).eval()
    assert isinstance(model, Yolact)
    run = model._run(torch.zeros(1, 3, 550, 550))
    assert run.levels[0].shape[-2:] == (69, 69)
    assert run.prototypes.shape == (1, 9, 138, 138)
    assert run.outputs["coefficients"].shape[1] == len(run.anchors)
    assert run.anchors[:, :2].mean().item() == pytest.approx(275 - (run.anchors[0, 2] - run.anchors[0, 0]) / 2, abs=9)


def test_anchor_centres_span_the_input() -> None:
    anchors = make_anchors([(69, 69)], (24,), 550)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.min().item() == pytest.approx(550 / 69 / 2)
    assert centres.max().item() == pytest.approx(550 - 550 / 69 / 2)
    sides = anchors[:3, 2:] - anchors[:3, :2]
    torch.testing.assert_close(sides.prod(1), torch.full((3,), 576.0))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([1.0, 2.0, 0.5]))


def test_fast_nms_removes_what_a_removed_box_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10], [50, 50, 60, 60]])
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.01]])
    kept, labels, best = fast_nms(boxes, scores, 0.5, 200, 100, 0.05)
    # 0 removes 1; 1, though removed, removes 2 (0 alone would not: IoU 0.43); 3 scores too little.
    assert (kept.tolist(), labels.tolist()) == ([0], [1])
    assert best.tolist() == pytest.approx([0.9])


def test_crop_of_a_tiny_box_has_a_cell() -> None:
    inside = crop_mask(torch.tensor([[3.2, 4.1, 3.4, 4.2], [0, 0, 8, 4]]), 8, 8)
    assert inside.flatten(1).sum(1).tolist() == [1, 32]


# ---- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["blendmask", "yolact"])
def test_rescoring_changes_the_order_never_the_boxes(configure: Any, arch: str) -> None:
    overrides = {f"model.{arch}.score_threshold": 0.0}
    model: Any = build_segmenter(arch, "b2inst", configure(arch, **overrides)).eval()
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.manual_seed(0)
        torch.nn.init.normal_(model.scoring.outputs["mask"].weight, std=0.05)
        for output in model.scoring.outputs.values():
            output.bias.fill_(0.5)
        scored = model([image])[0]
        model.scoring = None
        plain = model([image])[0]
    assert len(scored) == 10
    torch.testing.assert_close(scored.boxes, plain.boxes)
    torch.testing.assert_close(scored.scores, plain.scores)
    torch.testing.assert_close(plain.mask_scores, plain.scores)
    assert (scored.mask_scores <= scored.scores).all()
    assert scored.mask_scores.argsort(descending=True).tolist() != list(range(10))


@pytest.mark.parametrize("arch", ["blendmask", "yolact"])
def test_scoring_can_be_off(configure: Any, arch: str) -> None:
    model = build_segmenter(arch, "b2inst", configure(arch, **{"heads.b2inst.scoring": "none"}))
    assert "loss_boundary_basis" in model.loss_names
    assert "loss_mask_iou" not in model.loss_names
