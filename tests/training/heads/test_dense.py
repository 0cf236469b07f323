"""BoundarySqueeze on DeepLabV3+: shapes, ignored pixels, and images of one class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpr_service.errors import ConfigError
from refiner_training.heads.boundary_squeeze_dense import AUXILIARY, DenseSqueezeSettings, dense_squeeze_losses
from refiner_training.heads.targets import laplace_boundary, squeeze_targets
from refiner_training.segmenters.registry import build_segmenter


@pytest.fixture
def model(configure: Any) -> Any:
    config = configure("deeplabv3plus", **{"data.num_classes": 19, "model.deeplabv3plus.decoder_channels": 256})
    return build_segmenter("deeplabv3plus", "bsm", config)


def test_logits_and_decoder_shapes(model: Any) -> None:
    image = torch.zeros(2, 3, 128, 128)
    out = model.train().logits(image)
    assert out["mask"].shape == (2, 19, 128, 128)
    assert {name: tuple(out[name].shape) for name in AUXILIARY} == dict.fromkeys(AUXILIARY, (2, 19, 32, 32))
    assert set(model.eval().logits(image)) == {"mask"}
    decoded = model.model.decoder(model.model.encoder(image[:1]))
    assert decoded["mask"].shape == (1, 256, 32, 32)


def test_the_concatenation_with_fine_features_stays_and_they_reach_the_squeeze(model: Any) -> None:
    model = model.eval()
    features = model.model.encoder(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    decoder = model.model.decoder
    before = decoder(features)
    assert not torch.allclose(before["contraction"], before["expansion"])
    with torch.no_grad():
        decoder.fine.weight.zero_()
        decoder.fine.bias.zero_()
        alone = decoder(features)["mask"]  # the stride-4 features reach it through the concatenation only
        features[2] = features[2] + 1
        assert not torch.allclose(decoder(features)["mask"], alone)
        decoder.fine.weight.normal_()
        assert not torch.allclose(decoder(features)["mask"], alone)


def random_logits(classes: int = 3, size: int = 16, batch: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(batch, classes, size, size, generator=generator).requires_grad_() for name in AUXILIARY}


def test_all_ignored_gives_finite_zeros(configure: Any) -> None:
    model = build_segmenter("deeplabv3plus", "bsm", configure("deeplabv3plus")).train()
    images = [torch.rand(3, 96, 96)] * 2
    losses = model(images, [{"labels": torch.full((96, 96), 255)}] * 2)
    assert {float(value.detach()) for value in losses.values()} == {0.0}
    torch.stack(list(losses.values())).sum().backward()


def test_one_class_has_no_shells_and_no_boundary() -> None:
    maps = torch.ones(1, 1, 40, 40)
    boundary = laplace_boundary(maps, "replicate")
    contraction, expansion = squeeze_targets(maps, boundary, 15, False)
    assert boundary.sum() == contraction.sum() == expansion.sum() == 0


@pytest.mark.parametrize("stride", [1, 4])
def test_ignored_pixels_and_their_neighbourhood_do_not_count(stride: Any) -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, 20:50, 20:50] = 1
    labels[:, :, 40:44] = 255
    settings = DenseSqueezeSettings(window_px=5, target_stride=stride)
    logits = random_logits()
    changed = {name: value.detach().clone() for name, value in logits.items()}
    for value in changed.values():
        value[:, :, :, 10] = 30.0  # under the ignored columns 40 to 43
    before = dense_squeeze_losses(logits, labels, 255, settings)
    if stride == 4:
        after = dense_squeeze_losses(changed, labels, 255, settings)
        for name, value in before.items():
            torch.testing.assert_close(after[name], value.detach())
    torch.stack(list(before.values())).sum().backward()
    for value in logits.values():
        assert value.grad is not None
        assert value.grad[:, :, :, 5].abs().sum() > 0
        if stride == 4:
            assert not value.grad[:, :, :, 8:13].any(), "5 x 5 around column 10"


def test_absent_classes_do_not_enter_dice() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, 20:50, 20:50] = 1
    logits = random_logits()
    dense_squeeze_losses(logits, labels, 255, DenseSqueezeSettings(window_px=5))["loss_contraction"].backward()
    gradient = logits["contraction"].grad
    assert gradient is not None
    assert gradient[:, :2].abs().sum() > 0
    assert not gradient[:, 2].any()


def test_images_need_not_divide(configure: Any) -> None:
    model = build_segmenter("deeplabv3plus", "bsm", configure("deeplabv3plus"))
    image = torch.rand(3, 75, 101)
    losses = model.train()([image, image], [{"labels": torch.zeros(75, 101, dtype=torch.int64)}] * 2)
    assert all(torch.isfinite(value) for value in losses.values())
    with torch.no_grad():
        assert model.eval()([image])[0].shape == (3, 75, 101)


def test_another_norm_is_refused(configure: Any) -> None:
    for name, value in (("norm", "group"), ("stride_in_1x1", True)):
        with pytest.raises(ConfigError, match="expected norm batch"):
            build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus", **{f"model.backbone.{name}": value}))


def test_a_batch_of_one_is_refused(configure: Any) -> None:
    model = build_segmenter("deeplabv3plus", "plain", configure("deeplabv3plus")).train()
    with pytest.raises(ConfigError, match="two images a process or more"):
        model([torch.rand(3, 96, 96)], [{"labels": torch.zeros(96, 96, dtype=torch.int64)}])
