"""One contract for every refinement network; each class below inherits it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bpr_service.errors import ConfigError, UnknownName
from bpr_service.network.registry import NETWORKS, build_network

_BUILT: dict[str, nn.Module] = {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests run side by side; threads that wait for each other would be slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(name: str) -> nn.Module:
    """A fresh copy; each network is built once."""
    if name not in _BUILT:
        torch.manual_seed(0)
        _BUILT[name] = build_network(name)
    return copy.deepcopy(_BUILT[name])


class Contract:
    """What every network keeps."""

    name: ClassVar[str]

    @pytest.mark.parametrize(("batch", "side"), [(1, 96), (2, 64), (1, 128)])
    def test_one_finite_logit_a_pixel(self, batch: int, side: int) -> None:
        net = network(self.name).eval()
        with torch.inference_mode():
            logits = net(torch.randn(batch, 4, side, side))
        assert logits.shape == (batch, 1, side, side)
        assert torch.isfinite(logits).all()

    def test_every_parameter_gets_a_gradient(self) -> None:
        net = network(self.name).train()
        logits = net(torch.randn(2, 4, 64, 64))
        nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
        missing = [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert missing == []

    def test_the_mask_channel_matters(self) -> None:
        net = network(self.name).eval()
        patches = torch.randn(1, 4, 64, 64)
        other = patches.clone()
        other[:, 3] *= -1
        with torch.inference_mode():
            assert not torch.equal(net(patches), net(other))

    def test_state_dict_round_trip(self) -> None:
        one, two = network(self.name).eval(), build_network(self.name).eval()
        two.load_state_dict(one.state_dict())
        patches = torch.randn(1, 4, 64, 64)
        with torch.inference_mode():
            assert torch.equal(one(patches), two(patches))

    def test_two_outputs(self) -> None:
        net = build_network(self.name, outputs=2).eval()
        with torch.inference_mode():
            assert net(torch.randn(1, 4, 64, 64)).shape == (1, 2, 64, 64)

    def test_wrong_channels_and_sizes_state_the_fix(self) -> None:
        net = network(self.name).eval()
        with pytest.raises(ConfigError, match=r"\(P, 4, S, S\).*normalise"):
            net(torch.randn(1, 3, 64, 64))
        multiple = NETWORKS[self.name].multiple_px
        with pytest.raises(ConfigError, match=f"multiples of {multiple} px.*network_size_px=96"):
            net(torch.randn(1, 4, 95, 95))


class TestFCNHRNetW18s(Contract):
    name = "fcn_hrnet_w18s"


class TestFCNHRNetW18(Contract):
    name = "fcn_hrnet_w18"


class TestFCNHRNetW48(Contract):
    name = "fcn_hrnet_w48"


class TestFCNResNet18(Contract):
    name = "fcn_resnet18"


class TestFCNResNet50(Contract):
    name = "fcn_resnet50"


class TestDeepLabV3Plus(Contract):
    name = "deeplabv3plus_resnet50"


class TestUNetLite0(Contract):
    name = "unet_lite0"


class TestFastSCNN(Contract):
    name = "fast_scnn"


class TestLightUNetS(Contract):
    name = "light_unet_s"


class TestLightUNetM(Contract):
    name = "light_unet_m"


class TestLightUNetL(Contract):
    name = "light_unet_l"


def test_every_network_is_under_the_contract() -> None:
    assert {c.name for c in Contract.__subclasses__()} == set(NETWORKS)


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(UnknownName, match="fcn_resnet18"):
        build_network("fcn_resnet19")
    with pytest.raises(ConfigError, match="arguments of network fast_scnn"):
        build_network("fast_scnn", depth=3)


@pytest.mark.parametrize(("name", "millions"), [("fcn_hrnet_w18s", 3.94), ("fcn_hrnet_w48", 65.8)])
def test_sizes_are_those_of_the_papers_networks(name: str, millions: float) -> None:
    count: Any = sum(p.numel() for p in network(name).parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02)
