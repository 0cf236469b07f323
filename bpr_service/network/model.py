"""A model version on a device, ready to run: loaded once, however many presets and settings use it.

Letters: n patches of S x S px, C output maps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from bpr_service.config import RefineConfig
from bpr_service.errors import ConfigError
from bpr_service.network.backends import Forward, open_backend
from bpr_service.network.choice import settle
from bpr_service.network.devices import resolve_device
from bpr_service.network.normalise import normalise, normalise_tensor
from bpr_service.network.registry import NETWORKS
from bpr_service.network.weights import ModelCard, check_files, find_model, load_network, read_card, read_int8

if TYPE_CHECKING:
    from torch import nn

Predict = Callable[[Any], Any]
"""(n, S, S, 4) uint8 RGB and mask on the device -> (n, C, S, S) float32 logits there; arrays on a CPU, tensors on
another device, for which it does not wait.
"""


class Runs(Protocol):
    """What a `Refiner` needs of a model: enough to prepare an image, and something that runs the network."""

    card: ModelCard
    device: str
    """Where `predictor` takes crops and gives logits."""
    accelerator: bool
    """Whether the device has a memory of its own, in which patches are cut and averaged."""

    @property
    def name(self) -> str:
        """Name and version."""

    def settle(self, config: RefineConfig) -> RefineConfig:
        """`config` with what the card decides in it; an error where the model cannot run so."""

    def predictor(self, config: RefineConfig) -> Predict:
        """The network as `config` wants it run."""


class Model:
    """A network, its card, its device, and what was opened to run it.

    Attributes:
        card: what it is.
        device: where it runs: ``cpu`` or ``cuda:N``.
        accelerator: whether that has a memory of its own, in which patches are cut and averaged.
        folder: of the version, where its quantised network lies; None for a network that was never saved.
    """

    def __init__(
        self, network: nn.Module | None, card: ModelCard, *, device: str = "cpu", folder: Path | None = None
    ) -> None:
        """From a network in memory, or from that of the version in `folder`.

        The latter (`network` is None) is read when it is needed: a quantised one runs without. Raises DeviceError.
        """
        self.device = resolve_device(device)
        self.accelerator = self.device != "cpu"
        self.card, self.folder = card, folder
        self._network = None if network is None else self._placed(network)
        self._opened: dict[tuple[str, str, int], Forward] = {}
        self._opening = threading.Lock()

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu") -> Model:
        """The model of a bundled name or a version's folder; the one that is in memory while anybody holds it.

        Raises:
            UnknownName, ModelError, DeviceError: as `load_model` and `resolve_device`.
        """
        where = str(resolve_device(device))  # before the weights are read
        folder = find_model(name_or_folder)
        key = (str(folder.resolve()), read_card(folder).model_dump_json(), where)
        with _LOADING:
            model = _LOADED.get(key)
            if model is None:
                card = read_card(folder)
                check_files(folder, card)
                model = cls(None, card, device=device, folder=folder)
                _LOADED[key] = model
            return model

    @property
    def network(self) -> nn.Module:
        """The network in torch, in evaluation mode, on `device`. It is shared: not to be changed.

        Raises:
            ModelError: the weights are of another network.
            ConfigError: torch is not installed.
        """
        if self._network is None:
            assert self.folder is not None
            self._network = self._placed(load_network(self.folder, self.card))
        return self._network

    def _placed(self, network: nn.Module) -> nn.Module:
        import torch

        return network.eval().to(self.device).to(memory_format=torch.channels_last)

    def settle(self, config: RefineConfig) -> RefineConfig:
        """`config` with the backend and precision that ``auto`` stands for here.

        Raises:
            ConfigError: a network size that the network cannot take, a scale that it was not trained for, or a
                precision that the model does not have.
        """
        check_size(self.card, config)
        check_scale(self.card, config)
        return settle(config, self.card, self.device)

    def forward(self, config: RefineConfig) -> Forward:
        """What runs the network on normalised patches: opened once for each backend, precision and network size.

        Raises:
            ConfigError: see `open_backend`.
        """
        backend, precision, size = config.backend, config.precision, config.patch.network_size_px
        key = (backend, precision, size)
        with self._opening:
            if key not in self._opened:
                int8 = read_int8(self.folder, self.card) if precision == "int8" else None
                self._opened[key] = open_backend(backend, precision, lambda: self.network, self.device, size, int8)
            return self._opened[key]

    def predictor(self, config: RefineConfig) -> Predict:
        """The network on crops: normalised, and also mirrored where `config` says so."""
        forward = self.forward(config)

        side = config.patch.network_size_px

        def predict(crops: Any) -> Any:
            if not len(crops):
                return np.empty((0, self.card.outputs, side, side), np.float32)
            patches = normalise(crops)
            logits = forward(patches)
            if config.flip:
                logits = (logits + np.flip(forward(np.flip(patches, 3).copy()), 3)) / 2
            return logits

        def predict_there(crops: Any) -> Any:
            import torch

            if not len(crops):
                return torch.empty((0, self.card.outputs, side, side), device=crops.device)
            with torch.inference_mode():
                patches = normalise_tensor(crops)
                logits = forward(patches)
                if config.flip:
                    logits = (logits + forward(patches.flip(3)).flip(3)) / 2
                return logits.float()

        return predict_there if self.accelerator else predict

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.card.name}@{self.card.version}"


_LOADED: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()
_LOADING = threading.Lock()


def check_size(card: ModelCard, config: RefineConfig) -> None:
    """Raise ConfigError where the card's network cannot take patches of ``network_size_px``."""
    spec, size = NETWORKS.get(card.network.name), config.patch.network_size_px
    if spec is not None and size % spec.multiple_px:
        raise ConfigError(
            f"network_size_px for {card.network.name}",
            expected=f"a multiple of {spec.multiple_px}",
            got=str(size),
            fix=f"use {-(-size // spec.multiple_px) * spec.multiple_px}",
        )


def check_scale(card: ModelCard, config: RefineConfig) -> None:
    """Raise ConfigError where the scale is not one that the card's network was trained for."""
    if config.scale == "auto":
        return
    least, most = card.scales
    if not least <= config.scale <= most:
        raise ConfigError(
            f"scale for {card.name} {card.version}",
            expected=f"{least:g} to {most:g}, what it was trained at" if least < most else f"{least:g}, its only one",
            got=f"{config.scale:g}",
            fix="take one of these",
        )
    if config.patch.scheme == "instance" and config.scale != 1:
        raise ConfigError("scale of scheme instance", expected="1", got=f"{config.scale:g}", fix="take another scheme")
