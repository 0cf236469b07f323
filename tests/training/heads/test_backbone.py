"""The backbone's options: what is frozen, and where a stride lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bpr_service.errors import ConfigError
from refiner_training.segmenters.backbone import BackboneConfig, create_body

STRIDES = [4, 8, 16, 32]


@pytest.mark.parametrize(("stages", "trained"), [(1, "layer1"), (2, "layer2"), (3, "layer3")])
def test_frozen_stages(stages: int, trained: str) -> None:
    body = create_body(BackboneConfig(name="resnet18", frozen_stages=stages), STRIDES).train()
    grads = {name for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in grads} == {f"layer{i}" for i in range(stages, 5)}
    assert trained in {name.split(".")[0] for name in grads}
    before = {name: value.clone() for name, value in body.state_dict().items()}
    body(torch.rand(2, 3, 64, 64))
    changed = {n.split(".")[0] for n, v in body.state_dict().items() if not torch.equal(before[n], v)}
    assert changed == {f"layer{i}" for i in range(stages, 5)}, "a frozen stage's statistics stay"


def test_frozen_stages_serve_every_architecture(configure: Any) -> None:
    from refiner_training.segmenters.registry import HEADS, build_segmenter

    for arch in {arch for arch, _ in HEADS}:
        model = build_segmenter(arch, "plain", configure(arch, **{"model.backbone.frozen_stages": 2}))
        still = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert still
        assert all(".conv1" in n or ".bn1" in n or ".layer1." in n for n in still), still[:3]


def test_a_backbone_that_cannot_be_frozen_so() -> None:
    with pytest.raises(ConfigError, match="stages that can be frozen"):
        create_body(BackboneConfig(name="efficientnet_b0", frozen_stages=5), STRIDES)


def test_the_stride_of_detectron2s_resnets() -> None:
    body = create_body(BackboneConfig(name="resnet50", stride_in_1x1=True), STRIDES)
    strided = {n for n, m in body.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"conv1"} | {f"layer{i}.0.{c}" for i in (2, 3, 4) for c in ("conv1", "downsample.0")}
    with pytest.raises(ConfigError, match="a ResNet of bottlenecks"):
        create_body(BackboneConfig(name="resnet18", stride_in_1x1=True), STRIDES)
