"""What every (architecture, head) keeps: one contract, inherited by all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bpr_service.errors import ConfigError, UnknownName
from refiner_training.segmenters.base import Detections, Segmenter
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.sets import open_data
from refiner_training.segmenters.data.stream import collate
from refiner_training.segmenters.registry import HEADS, build_segmenter

pytestmark = pytest.mark.slow

PAIRS = list(HEADS)
EXPECTED = {
    ("mask_rcnn", "plain"): {"loss_mask"},
    ("mask_rcnn", "bmask"): {"loss_mask", "loss_boundary"},
    ("mask_rcnn", "bsm"): {"loss_mask", "loss_boundary", "loss_contraction", "loss_expansion"},
    ("mask_rcnn", "beis"): {"loss_mask", "loss_ibdl", "loss_cbdl"},
    ("blendmask", "plain"): {"loss_mask", "loss_semantic"},
    ("yolact", "plain"): {"loss_mask", "loss_semantic"},
    ("deeplabv3plus", "plain"): {"loss_ce"},
    ("deeplabv3plus", "bsm"): {"loss_ce", "loss_boundary", "loss_contraction", "loss_expansion"},
}
B2INST = {"loss_boundary_basis", "loss_mask_iou", "loss_mask_boundary"}
DETECTOR = {
    "mask_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
    "blendmask": {"classification", "bbox_regression", "bbox_ctrness"},
    "yolact": {"loss_class", "loss_box"},
    "deeplabv3plus": set(),
}


@pytest.fixture(params=PAIRS, ids=[f"{a}-{h}" for a, h in PAIRS])
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def config(pair: tuple[str, str], configure: Any) -> SegmenterConfig:
    return configure(pair[0])


@pytest.fixture
def model(pair: tuple[str, str], config: SegmenterConfig) -> Segmenter:
    return build_segmenter(*pair, config)


@pytest.fixture
def batch(config: SegmenterConfig) -> Any:
    dataset = open_data(config.data, "train", augment=False)
    return collate([dataset[0, 0], dataset[1, 1]])


def losses_of(model: Segmenter, batch: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model.reseed(seed)
    losses: dict[str, torch.Tensor] = model.train()(*batch)
    return losses


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def without_instances(batch: Any) -> Any:
    images, targets = batch
    if "masks" in targets[0]:
        return images, [{name: value[:0] for name, value in target.items()} for target in targets]
    return images, [{"labels": torch.full_like(target["labels"], 255)} for target in targets]


def test_loss_names(pair: tuple[str, str], model: Segmenter, batch: Any) -> None:
    arch, _ = pair
    own = EXPECTED.get(pair) or EXPECTED[arch, "plain"] | B2INST
    losses = losses_of(model, batch)
    assert tuple(losses) == model.loss_names
    assert set(losses) == own | DETECTOR[arch]
    assert all(value.ndim == 0 for value in losses.values())


PREDICTORS = {
    "mask_rcnn": (".logits.",),
    "blendmask": ("basis.bases.", "basis.semantic.2."),
    "yolact": ("prototype_net.boundary.", "semantic."),
    "deeplabv3plus": ("segmentation_head.0.", "auxiliary."),
}


def test_predictors_start_near_zero(pair: tuple[str, str], model: Segmenter) -> None:
    """Whatever a fresh network's features are, it begins undecided: small weights, no bias."""
    found = [(n, p) for n, p in model.named_parameters() if any(part in n for part in PREDICTORS[pair[0]])]
    found = [(n, p) for n, p in found if pair[0] != "yolact" or n.startswith(("semantic.", "prototype_net."))]
    assert found
    for name, parameter in found:
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.detach().std() < 0.02, name


def test_finite_losses_and_gradients(model: Segmenter, batch: Any) -> None:
    for _ in range(2):  # the second step meets full banks
        losses = losses_of(model, batch)
        model.after_step()
    total(losses).backward()
    assert torch.isfinite(total(losses))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert torch.isfinite(parameter.grad).all(), name


def test_finite_losses_and_gradients_without_instances(model: Segmenter, batch: Any) -> None:
    losses = losses_of(model, without_instances(batch))
    total(losses).backward()
    assert torch.isfinite(total(losses))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} would be reported unused by DDP"
        assert torch.isfinite(parameter.grad).all(), name


def test_one_image_without_instances_among_others(model: Segmenter, batch: Any) -> None:
    images, targets = batch
    mixed = [targets[0], without_instances(batch)[1][1]]
    losses = losses_of(model, (images, mixed))
    total(losses).backward()
    assert torch.isfinite(total(losses))


def test_same_seed_same_results(pair: tuple[str, str], config: SegmenterConfig, batch: Any) -> None:
    first, second = build_segmenter(*pair, config), build_segmenter(*pair, config)
    torch.testing.assert_close(dict(losses_of(first, batch)), dict(losses_of(second, batch)), rtol=0, atol=0)
    other = build_segmenter(*pair, config.with_options(run=config.run.with_options(seed=1)))
    assert total(losses_of(other, batch)) != total(losses_of(first, batch))


def test_building_a_model_leaves_the_random_numbers_alone(pair: tuple[str, str], config: SegmenterConfig) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build_segmenter(*pair, config)
    assert torch.equal(torch.rand(1), expected)


def test_state_dict_round_trip(pair: tuple[str, str], config: SegmenterConfig, model: Segmenter, batch: Any) -> None:
    other = build_segmenter(*pair, config.with_options(run=config.run.with_options(seed=1)))
    other.load_state_dict(model.state_dict())
    model.eval()
    other.eval()
    with torch.no_grad():
        one, two = model(batch[0]), other(batch[0])
    for a, b in zip(one, two, strict=True):
        if isinstance(a, Detections):
            torch.testing.assert_close(a.grids, b.grids)
            torch.testing.assert_close(a.mask_scores, b.mask_scores)
        else:
            torch.testing.assert_close(a, b)


def test_evaluation_leaves_no_state_changed(model: Segmenter, batch: Any) -> None:
    losses_of(model, batch)
    model.after_step()
    state, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(model.training_state())
    model.eval()
    with torch.no_grad():
        model(batch[0])
    model.after_step()
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(model.training_state(), memory, rtol=0, atol=0)


def test_predictions_have_their_shapes(pair: tuple[str, str], model: Segmenter, batch: Any) -> None:
    model.eval()
    with torch.no_grad():
        found = model(batch[0])
    assert len(found) == 2
    if pair[0] == "deeplabv3plus":
        assert found[0].shape == (3, 96, 128)
        torch.testing.assert_close(found[0].sum(0), torch.ones(96, 128))
        return
    each: Detections = found[0]
    count = len(each)
    assert each.boxes.shape == each.rects.shape == (count, 4)
    assert each.labels.shape == each.scores.shape == each.mask_scores.shape == (count,)
    assert each.grids.shape[0] == count
    assert ((each.labels >= 1) & (each.labels <= 2)).all()
    for mask, box in zip(each.masks(96, 128), each.boxes.tolist(), strict=True):
        assert (mask.height, mask.width) == (96, 128)
        x0, y0, x1, y1 = mask.box
        assert mask.is_empty or (x0 >= box[0] - 1 and y0 >= box[1] - 1 and x1 <= box[2] + 1 and y1 <= box[3] + 1)


def test_autocast_agrees_with_float32(pair: tuple[str, str], model: Segmenter, batch: Any) -> None:
    """bfloat16 rounds, and it may move a proposal; it must not change what is computed."""
    expected = losses_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch)
    total(losses).backward()
    assert all(value.dtype == torch.float32 for value in losses.values())
    for name, value in losses.items():
        assert float(value.detach()) == pytest.approx(float(expected[name].detach()), rel=0.35, abs=0.15), name
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("arch", ["mask_rcnn", "blendmask", "yolact", "deeplabv3plus"])
def test_heads_start_from_equal_shared_weights(arch: str, configure: Any) -> None:
    models = [build_segmenter(a, h, configure(a)).state_dict() for a, h in PAIRS if a == arch]
    plain = models[0]
    for other in models[1:]:
        shared = [n for n in plain if n in other and plain[n].shape == other[n].shape]
        if arch == "deeplabv3plus":
            assert all(name in shared for name in plain if ".encoder." in name), "encoder keys are shared"
        for name in shared:
            torch.testing.assert_close(other[name], plain[name], rtol=0, atol=0, msg=name)
        assert len(shared) > 0.5 * len(plain)


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_an_unknown_pair_lists_the_known_ones(configure: Any) -> None:
    with pytest.raises(UnknownName, match=r"mask_rcnn, beis.*yolact, b2inst"):
        build_segmenter("mask_rcnn", "b2inst", configure("mask_rcnn"))


def test_data_of_the_other_kind_is_refused(configure: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected data\.kind semantic"):
        build_segmenter("deeplabv3plus", "plain", configure("mask_rcnn"))


def test_a_label_without_a_class_is_refused(pair: tuple[str, str], model: Segmenter, batch: Any) -> None:
    images, targets = batch
    wrong = [{**target, "labels": torch.full_like(target["labels"], 3)} for target in targets]
    with pytest.raises(ConfigError, match=r"has no class in the model.*got 3"):
        losses_of(model, (images, wrong))


def test_crowds_and_boxes_without_area_are_as_if_they_were_not_there(
    pair: tuple[str, str], model: Segmenter, batch: Any
) -> None:
    if pair[0] == "deeplabv3plus":
        pytest.skip("a label map has no instances")
    images, targets = batch
    again = copy.deepcopy(model)
    expected = losses_of(model, batch)
    dirty = []
    for target in targets:
        box, mask = target["boxes"][:1], target["masks"][:1]
        flat = box.clone()
        flat[:, 2] = flat[:, 0]
        extra = {
            "boxes": torch.cat([target["boxes"], flat, box, box]),
            "labels": torch.cat([target["labels"], torch.tensor([1, 2, 1])]),
            "masks": torch.cat([target["masks"], mask, mask, torch.zeros_like(mask)]),  # flat, crowd, without pixels
        }
        count = len(target["labels"])
        crowd = torch.zeros(count + 3, dtype=torch.bool)
        crowd[count + 1] = True
        dirty.append({**extra, "crowd": crowd})
    torch.testing.assert_close(dict(losses_of(again, (images, dirty))), dict(expected))
