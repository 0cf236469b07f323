"""A model that costs what it is told to: the pipeline and the service around it are the real ones.

For load tests and for tests of the service: what is measured is everything but the network.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpr_service.config import PatchConfig, RefineConfig, get_preset
from bpr_service.errors import NotFoundError
from bpr_service.runtime.work import Lane

if TYPE_CHECKING:
    import torch
    from torch import nn


def dummy_network(shift_px: int = 0, call_ms: float = 0.0, patch_ms: float = 0.0) -> nn.Module:
    """A network whose answer is the mask it is given, moved right by ``shift_px``.

    A call takes ``call_ms`` and ``patch_ms`` a patch more (slept, not computed).
    """
    import torch
    from torch import nn

    class Dummy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(4.0))

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            if call_ms or patch_ms:
                time.sleep((call_ms + patch_ms * patches.shape[0]) / 1e3)
            mask = patches[:, 3:4]
            return self.scale * (torch.roll(mask, shift_px, dims=3) if shift_px else mask)

    return Dummy()


class DummyModels:
    """A source of lanes around `dummy_network`; any version name that starts with ``v`` can be activated."""

    def __init__(
        self, presets: Sequence[str] = ("balanced",), shift_px: int = 2, call_ms: float = 0.0, patch_ms: float = 0.0
    ) -> None:
        self._presets = [get_preset(name).name for name in presets]
        self._network = (shift_px, call_ms, patch_ms)

    def presets(self) -> list[str]:
        return self._presets

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        """`NotFoundError` for a version that does not start with ``v``."""
        from bpr_service.network.model import Model
        from bpr_service.network.weights import ModelCard, NetworkCard
        from bpr_service.refine.refiner import Refiner

        version = version or "v1"
        if not version.startswith("v"):
            raise NotFoundError("no such version", expected="v1, v2, ...", got=repr(version[:60]))
        chosen = get_preset(preset)
        patch = chosen.patch(PatchConfig(network_size_px=32))
        card = ModelCard(name="dummy", version=version, network=NetworkCard(name="dummy"), patch=patch)
        refiner = Refiner(Model(dummy_network(*self._network), card), RefineConfig(patch=patch, backend="eager"))
        return Lane(preset, "dummy", version, patch.network_size_px, refiner)
