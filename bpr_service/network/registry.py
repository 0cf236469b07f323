"""Step 3: the refinement networks of the paper's Table 6, and light ones made for CPUs.

Shapes: P patches of S x S px; every network maps (P, 4, S, S), normalised RGB + mask, to (P, outputs, S, S)
logits. What their names mean is known without torch; a network is built with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bpr_service.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from torch import nn

CHANNELS = 4
"""RGB and the mask."""


def _hrnet(name: str, **arguments: Any) -> nn.Module:
    from bpr_service.network.fcn import hrnet

    return hrnet(name, CHANNELS, **arguments)


def _resnet(name: str, **arguments: Any) -> nn.Module:
    from bpr_service.network.fcn import resnet

    return resnet(name, CHANNELS, **arguments)


def _deeplab(**arguments: Any) -> nn.Module:
    from bpr_service.network.fcn import deeplab

    return deeplab(CHANNELS, **arguments)


def _unet_lite0(**arguments: Any) -> nn.Module:
    from bpr_service.network.fcn import UNetLite0

    return UNetLite0(CHANNELS, **arguments)


def _fast_scnn(outputs: int = 1) -> nn.Module:
    from bpr_service.network.fast_scnn import FastSCNN

    return FastSCNN(CHANNELS, outputs)


def _light(defaults: dict[str, Any], **arguments: Any) -> nn.Module:
    from bpr_service.network.light_unet import LightUNet

    return LightUNet(**{**defaults, **arguments})


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How a named network is built, and what its network size must be a multiple of."""

    build: Callable[..., nn.Module]
    multiple_px: int


NETWORKS: dict[str, NetworkSpec] = {
    "fcn_hrnet_w18s": NetworkSpec(partial(_hrnet, "hrnet_w18_small_v2"), 32),
    "fcn_hrnet_w18": NetworkSpec(partial(_hrnet, "hrnet_w18"), 32),
    "fcn_hrnet_w48": NetworkSpec(partial(_hrnet, "hrnet_w48"), 32),
    "fcn_resnet18": NetworkSpec(partial(_resnet, "resnet18"), 8),
    "fcn_resnet50": NetworkSpec(partial(_resnet, "resnet50"), 8),
    "deeplabv3plus_resnet50": NetworkSpec(_deeplab, 16),
    "unet_lite0": NetworkSpec(_unet_lite0, 32),
    "fast_scnn": NetworkSpec(_fast_scnn, 32),
    "light_unet_s": NetworkSpec(partial(_light, {"widths": (24, 48, 64, 96), "depth": 1}), 16),
    "light_unet_m": NetworkSpec(partial(_light, {"widths": (48, 96, 160, 224), "depth": 1}), 16),
    "light_unet_l": NetworkSpec(partial(_light, {"widths": (64, 128, 192, 256), "depth": 2}), 16),
}


def build_network(name: str, **arguments: Any) -> nn.Module:
    """A refinement network with fresh weights.

    Args:
        name: a key of `NETWORKS`.
        arguments: ``outputs`` (maps out, default 1) for all of them; ``widths`` and ``depth`` for the light ones.

    Raises:
        UnknownName: no network has that name.
        ConfigError: an argument the network does not know. The network itself raises it when it is given patches of a
            shape it cannot take, and says which it can.
    """
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    spec = NETWORKS[name]
    try:
        network = spec.build(**arguments)
    except TypeError as cause:
        raise ConfigError(
            f"arguments of network {name}",
            expected="what its builder takes",
            got=str(cause),
            fix="see bpr_service.network.registry.build_network",
        ) from None
    network.register_forward_pre_hook(partial(_check_patches, name, spec.multiple_px))
    return network


def _check_patches(name: str, multiple: int, _network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise :class:`ConfigError` for a batch of another shape than (P, 4, S, S), S a multiple of `multiple`."""
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or shape[1] != CHANNELS:
        raise ConfigError(
            f"patches for {name}",
            expected="shape (P, 4, S, S): RGB and mask",
            got=str(shape),
            fix="normalise a (P, S, S, 4) uint8 batch with bpr_service.network.normalise",
        )
    height, width = shape[2:]
    if height % multiple or width % multiple:
        fit = max(multiple, -(-max(height, width) // multiple) * multiple)
        raise ConfigError(
            f"patches for {name}",
            expected=f"sides that are multiples of {multiple} px",
            got=f"{height} x {width}",
            fix=f"set network_size_px={fit}",
        )
