"""The mask heads of Mask R-CNN: shapes, parameters, and who depends on whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from refiner_training.heads.bmask import BMaskHead, BMaskSettings
from refiner_training.heads.boundary_squeeze import BoundarySqueezeHead, SqueezeSettings, warp
from refiner_training.heads.plain import PlainMaskHead, PlainSettings
from refiner_training.heads.protocol import RoiBatch, RoiTruth


def rois_of(count: int, channels: int = 8, *, pooled: dict[str, int] | None = None, seed: int = 0) -> RoiBatch:
    """Random features of ``count`` RoIs on one image with one round instance."""
    generator = torch.Generator().manual_seed(seed)
    sizes = pooled or {"mask": 14, "boundary": 28, "fine": 28}
    features = {n: torch.randn(count, channels, s, s, generator=generator) for n, s in sizes.items()}
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = (((xs - 32) ** 2 + (ys - 32) ** 2) < 20**2).to(torch.uint8)[None]
    corner = torch.rand(count, 2, generator=generator) * 10
    boxes = torch.cat([corner + 5, corner + 44], dim=1)
    labels = torch.ones(count, dtype=torch.int64)
    truth = RoiTruth([mask], [torch.ones(1, dtype=torch.int64)], [torch.zeros(count, dtype=torch.int64)])
    return RoiBatch(features, [boxes], labels, truth)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: PlainMaskHead(256, 91, PlainSettings()), 2_646_107),
        (lambda: BMaskHead(256, 91, BMaskSettings()), 5_423_798),
        (lambda: BoundarySqueezeHead(256, 91, SqueezeSettings()), 8_306_796),
    ],
)
def test_parameters_at_91_classes(make: Any, count: int) -> None:
    assert parameters(make()) == count


def test_plain_has_torchvisions_parameters() -> None:
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    stock = parameters(MaskRCNNHeads(256, (256,) * 4, 1)) + parameters(MaskRCNNPredictor(256, 256, 91))
    assert parameters(PlainMaskHead(256, 91, PlainSettings())) == stock


# ---- BMask R-CNN -----------------------------------------------------------------------------------------------


@pytest.fixture
def bmask() -> BMaskHead:
    torch.manual_seed(0)
    head = BMaskHead(8, 5, BMaskSettings(channels=8))
    for predictor in (head.mask_predictor, head.boundary_predictor):  # so small that differences would vanish
        torch.nn.init.normal_(predictor.logits.weight)
    return head


def test_bmask_logits_of_all_classes(bmask: BMaskHead) -> None:
    mask, boundary = bmask.features(rois_of(3).pooled)
    assert bmask.mask_predictor(mask).shape == bmask.boundary_predictor(boundary).shape == (3, 5, 28, 28)


def test_one_class_is_that_row_of_all_classes(bmask: BMaskHead) -> None:
    mask, _ = bmask.features(rois_of(3).pooled)
    labels = torch.tensor([1, 4, 2])
    chosen = bmask.mask_predictor(mask)[torch.arange(3), labels]
    torch.testing.assert_close(bmask.mask_predictor(mask, labels), chosen, atol=1e-4, rtol=1e-4)


def test_bmask_without_rois(bmask: BMaskHead) -> None:
    rois = rois_of(0)
    mask, _ = bmask.features(rois.pooled)
    assert bmask.mask_predictor(mask).shape == (0, 5, 28, 28)
    losses = bmask.losses(bmask(rois), rois)
    assert {name: float(value.detach()) for name, value in losses.items()} == {"loss_mask": 0, "loss_boundary": 0}
    sum(losses.values(), torch.zeros(())).backward()  # attached to the graph
    assert all(p.grad is not None for p in bmask.parameters())


def test_bmask_adds_one_loss_to_plain(bmask: BMaskHead) -> None:
    plain = PlainMaskHead(8, 5, PlainSettings(channels=8))
    assert bmask.spec.loss_names == (*plain.spec.loss_names, "loss_boundary")


def test_bmask_reads_the_finest_level_at_28(bmask: BMaskHead) -> None:
    from torchvision.ops import MultiScaleRoIAlign

    pooler = bmask.spec.poolers["boundary"]
    assert (pooler.levels, pooler.size) == (("0",), 28)
    pool = MultiScaleRoIAlign(list(pooler.levels), pooler.size, 2)
    pool({"0": torch.zeros(1, 8, 16, 24)}, [torch.tensor([[0.0, 0, 9, 9]])], [(64, 96)])
    assert pool.scales == [0.25]


def test_bmask_mask_depends_on_the_boundary_through_b2m_alone(bmask: BMaskHead) -> None:
    bmask.eval()
    one, other = rois_of(2).pooled, rois_of(2).pooled
    other["boundary"] = other["boundary"] + 1
    labels = torch.tensor([1, 2])

    def logits(pooled: dict[str, torch.Tensor]) -> torch.Tensor:
        return bmask(RoiBatch(pooled, [], labels))["mask"]

    assert not torch.allclose(logits(one), logits(other))
    torch.nn.init.zeros_(bmask.boundary_to_mask.weight)
    torch.testing.assert_close(logits(one), logits(other))


def test_bmask_boundary_gradient_reaches_the_mask_tower(bmask: Any) -> None:
    rois = rois_of(2)
    bmask.losses(bmask(rois), rois)["loss_boundary"].backward()
    first = bmask.mask_tower[0].weight.grad
    assert first is not None
    assert first.abs().sum() > 0


def test_bmask_eval_skips_the_boundary_predictor_not_its_features(bmask: Any) -> None:
    bmask.eval()
    rois = rois_of(2)
    before = bmask(rois)
    assert set(before) == {"mask"}
    torch.nn.init.ones_(bmask.boundary_predictor.logits.weight)
    torch.testing.assert_close(bmask(rois)["mask"], before["mask"])
    with torch.no_grad():
        bmask.boundary_tower[0].weight.add_(1)
    assert not torch.allclose(bmask(rois)["mask"], before["mask"])


# ---- BoundarySqueeze ---------------------------------------------------------------------------------------------


def test_zero_flow_is_the_identity() -> None:
    features = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    assert (warp(features, torch.zeros(2, 2, 14, 14)) - features).abs().max() < 1e-5


def test_flow_of_one_cell_shifts_the_content_left() -> None:
    features = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(1, 2, 9, 12)
    flow[:, 0] = 1
    torch.testing.assert_close(warp(features, flow)[..., :-1], features[..., 1:], atol=1e-5, rtol=1e-5)


def test_flow_down_one_row_shifts_the_content_up() -> None:
    features = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(1, 2, 9, 12)
    flow[:, 1] = 1
    torch.testing.assert_close(warp(features, flow)[:, :, :-1], features[:, :, 1:], atol=1e-5, rtol=1e-5)


def test_warp_is_float32_under_autocast_and_works_without_rois() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert warp(torch.zeros(1, 2, 4, 4).bfloat16(), torch.zeros(1, 2, 4, 4)).dtype == torch.float32
    assert warp(torch.zeros(0, 2, 14, 14), torch.zeros(0, 2, 14, 14)).shape == (0, 2, 14, 14)


@pytest.fixture
def squeeze() -> BoundarySqueezeHead:
    torch.manual_seed(0)
    return BoundarySqueezeHead(8, 5, SqueezeSettings(channels=8))


def test_squeeze_has_four_outputs_in_training_and_one_in_evaluation(squeeze: BoundarySqueezeHead) -> None:
    rois = rois_of(3)
    out = squeeze(rois)
    assert {name: tuple(value.shape) for name, value in out.items()} == dict.fromkeys(
        ("mask", "boundary", "contraction", "expansion"), (3, 28, 28)
    )
    features = squeeze.squeeze(torch.zeros(3, 8, 14, 14), torch.zeros(3, 8, 14, 14))
    assert squeeze.predictors["mask"](features["mask"]).shape == (3, 5, 28, 28)
    assert set(squeeze.eval()(rois)) == {"mask"}


def test_squeeze_flows_start_at_zero_and_learn(squeeze: Any) -> None:
    flow = squeeze.squeeze.directions["contraction"].flow
    assert not flow.weight.any()
    torch.nn.init.normal_(squeeze.predictors["contraction"].logits.weight)
    rois = rois_of(2)
    squeeze.losses(squeeze(rois), rois)["loss_contraction"].backward()
    assert flow.weight.grad is not None
    assert flow.weight.grad.abs().sum() > 0


def test_squeeze_on_a_fresh_module_reaches_the_finest_level(squeeze: BoundarySqueezeHead) -> None:
    """What is warped is the tower's output, so P2 counts and the directions differ before any training."""
    features, fine = (torch.randn(2, 8, 14, 14, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    one, other = squeeze.squeeze(features, fine), squeeze.squeeze(features, fine + 1)
    assert not torch.allclose(one["mask"], other["mask"])
    assert not torch.allclose(one["contraction"], one["expansion"])
    one["mask"].square().sum().backward()
    for direction in squeeze.squeeze.directions.values():
        gradients = [layer.weight.grad for layer in direction.tower if hasattr(layer, "weight")]
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


ABLATIONS: list[tuple[Any, set[str]]] = [
    (BMaskSettings(channels=8, fusion="none", bce_weight=0), {"mask", "boundary"}),
    (BMaskSettings(channels=8, fusion="mask_to_boundary"), {"mask", "boundary"}),
    (BMaskSettings(channels=8, fusion="boundary_to_mask"), {"mask", "boundary"}),
    (SqueezeSettings(channels=8, fine=False), {"mask", "boundary", "contraction", "expansion"}),
    (SqueezeSettings(channels=8, expansion=False), {"mask", "boundary", "contraction"}),
    (SqueezeSettings(channels=8, contraction=False), {"mask", "boundary", "expansion"}),
    (SqueezeSettings(channels=8, auxiliary=()), {"mask"}),
    (PlainSettings(channels=8, convs=8), {"mask"}),
]


@pytest.mark.parametrize(
    ("settings", "outputs"),
    ABLATIONS,
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:60],
)
def test_ablations_of_the_papers_train_every_parameter(settings: Any, outputs: set[str]) -> None:
    makers: dict[type, Any] = {BMaskSettings: BMaskHead, SqueezeSettings: BoundarySqueezeHead}
    head = makers.get(type(settings), PlainMaskHead)(8, 5, settings)
    rois = rois_of(2)
    out = head(rois)
    losses = head.losses(out, rois)
    assert set(out) == outputs
    assert tuple(losses) == head.spec.loss_names
    sum(losses.values(), torch.zeros(())).backward()
    unused = {name for name, parameter in head.named_parameters() if parameter.grad is None}
    assert unused == set()


def test_detach_sum_stops_the_gradient_in_the_sum_only() -> None:
    from refiner_training.heads.boundary_squeeze import BoundarySqueezeModule

    seen = []
    for detach in (False, True):
        torch.manual_seed(0)
        module: Any = BoundarySqueezeModule(4, detach)
        torch.nn.init.normal_(module.directions["contraction"].flow.weight, std=0.1)
        features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        fine = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        module(features, fine)["mask"].square().sum().backward()
        seen.append(features.grad)
    assert seen[1] is not None
    assert seen[1].abs().sum() > 0
    assert not torch.allclose(seen[0], seen[1])


def test_or_boundary_changes_the_contraction_target() -> None:
    values = {}
    for flag in (False, True):
        torch.manual_seed(0)
        head = BoundarySqueezeHead(8, 5, SqueezeSettings(channels=8, or_boundary=flag))
        rois = rois_of(2)
        values[flag] = float(head.losses(head(rois), rois)["loss_contraction"].detach())
    assert values[False] != values[True]


@pytest.mark.parametrize("head", ["plain", "bmask", "bsm", "beis"])
def test_masks_of_the_boxes_that_were_found_are_those_that_were_found(head: str, configure: Any) -> None:
    from refiner_training.segmenters.registry import build_segmenter

    model: Any = build_segmenter("mask_rcnn", head, configure("mask_rcnn")).eval()
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        found = model([image])[0]
        again = model.masks_of(image, found.boxes, found.labels)
    assert len(found) > 0
    torch.testing.assert_close(again.grids, found.grids, atol=1e-4, rtol=1e-3)
