"""The papers' ablations: one contract for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from refiner_training.heads.bmask import BMaskHead
from refiner_training.heads.protocol import RoiHead
from refiner_training.heads.targets import sobel_boundary
from refiner_training.segmenters.ablations import ABLATIONS
from refiner_training.segmenters.base import Detections
from refiner_training.segmenters.data.sets import open_data
from refiner_training.segmenters.data.stream import collate
from refiner_training.segmenters.registry import ROI_HEADS, build_segmenter
from tests.training.heads.test_roi_heads import rois_of

OF_ROIS = [name for name, (arch, _, _) in ABLATIONS.items() if arch == "mask_rcnn"]
OF_BASES = [(arch, name) for name in ABLATIONS if name not in OF_ROIS for arch in ("blendmask", "yolact")]


def narrow(overrides: dict[str, Any]) -> dict[str, Any]:
    """At most 8 channels a stage: what is tested is the wiring."""
    return {
        name: [min(width, 8) for width in value] if name.endswith(".channels") else value
        for name, value in overrides.items()
    }


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def head_of(name: str, configure: Any) -> RoiHead:
    _, head, overrides = ABLATIONS[name]
    small = {f"heads.{own}.channels": 8 for own in ("plain", "bmask", "bsm")} | {"heads.beis.channels": [8] * 4}
    torch.manual_seed(0)
    return ROI_HEADS[head](8, 4, configure("mask_rcnn", **{**small, **narrow(overrides)}))


@pytest.mark.parametrize("name", OF_ROIS)
def test_an_ablation_of_a_roi_head(name: str, configure: Any) -> None:
    head = head_of(name, configure)
    sizes = {own: pooler.size for own, pooler in head.spec.poolers.items()}
    rois = rois_of(2, pooled=sizes)
    losses = head.losses(head(rois), rois)
    assert tuple(losses) == head.spec.loss_names
    total(losses).backward()
    assert torch.isfinite(total(losses))
    for part, parameter in head.named_parameters():
        assert parameter.grad is not None, f"{part} is not used"
        assert torch.isfinite(parameter.grad).all(), part
    side = 28
    if name.startswith("beis"):
        side = {2: 28, 3: 56, 4: 112, 5: 224}[len(head.stages)]  # type: ignore[arg-type]
    head.eval()
    with torch.no_grad():
        masks, factor = head.predict(head(rois), rois.labels)
    assert masks.shape == (2, 1, side, side)
    assert factor is None


@pytest.mark.parametrize(("arch", "name"), OF_BASES, ids=[f"{a}-{n}" for a, n in OF_BASES])
def test_an_ablation_of_a_basis_model(arch: str, name: str, configure: Any) -> None:
    config = configure(arch, **ABLATIONS[name][2])
    settings = config.heads.b2inst
    model = build_segmenter(arch, "b2inst", config)
    dataset = open_data(config.data, "train", augment=False)
    batch = collate([dataset[0, 0]])
    losses = model.train()(*batch)
    assert ("loss_boundary_basis" in losses) == (settings.basis in ("auxiliary", "instance", "holistic"))
    total(losses).backward()
    assert torch.isfinite(total(losses))
    assert all(parameter.grad is not None for parameter in model.parameters()), "no parameter is unused"
    model.eval()
    with torch.no_grad():
        found: Detections = model(batch[0])[0]
    assert found.grids.shape[0] == found.mask_scores.shape[0] == len(found)
    bases = 4 if arch == "blendmask" else 8
    assert model.kernels == bases + (settings.basis in ("unsupervised", "instance", "holistic"))


def test_every_ablation_differs_from_its_head(configure: Any) -> None:
    for name, (arch, head, overrides) in ABLATIONS.items():
        own, changed = configure(arch), configure(arch, **overrides)
        assert getattr(own.heads, head) != getattr(changed.heads, head), name


def test_an_auxiliary_basis_is_no_part_of_the_masks(configure: Any) -> None:
    for basis, changes in (("auxiliary", False), ("holistic", True)):
        model: Any = build_segmenter("yolact", "b2inst", configure("yolact", **{"heads.b2inst.basis": basis})).eval()
        with torch.no_grad():
            before = model.prototype_net(torch.ones(1, 64, 8, 8))[0]
            model.prototype_net.boundary.bias += 3
            after = model.prototype_net(torch.ones(1, 64, 8, 8))[0]
        assert (not torch.equal(before, after)) == changes


def test_sobel_marks_both_sides_of_a_square() -> None:
    mask = torch.zeros(1, 10, 10)
    mask[0, 3:7, 3:7] = 1
    edge = sobel_boundary(mask)[0]
    expected = torch.zeros(10, 10)
    expected[2:8, 2:8] = 1
    expected[4:6, 4:6] = 0
    assert torch.equal(edge, expected)
    assert not sobel_boundary(torch.ones(1, 6, 6), "replicate").any()
    assert sobel_boundary(torch.zeros(0, 6, 6), "none").shape == (0, 4, 4)


def test_the_second_branch_can_be_trained_on_masks(configure: Any) -> None:
    """The same logits cost nothing where the target is the mask, and much where it is the boundary."""
    found = {}
    for name in ("bmask, second branch on masks", "bmask, Sobel"):
        head = head_of(name, configure)
        assert isinstance(head, BMaskHead)
        rois = rois_of(1)
        perfect = 40 * rois.mask_targets(28) - 20
        found[name] = float(head.losses({"mask": perfect, "boundary": perfect}, rois)["loss_boundary"])
    assert found["bmask, second branch on masks"] < 0.01 < 1 < found["bmask, Sobel"]
