"""The network in int8: static quantisation of its OpenVINO form, calibrated on patches (NNCF's post-training way)."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.core.backends import from_openvino, openvino_model

if TYPE_CHECKING:
    from torch import nn

    from bpr_service.core.backends import Forward

CALIBRATION = 256
"""Patches that ranges are measured on."""


def quantise(network: nn.Module, network_size_px: int, crops: NDArray[np.uint8]) -> Any:
    """An `openvino.Model` in int8.

    Args:
        network: in evaluation mode, on the CPU.
        crops: (n, S, S, 4) uint8 patches like those it will see; of the first, `CALIBRATION` are used.

    Raises:
        ConfigError: openvino is not installed.
        ImportError: nncf is not installed.
    """
    import torch

    with _quiet():
        model = openvino_model(network, network_size_px)
        import nncf

        from bpr_service.core.normalise import normalise

        patches = normalise(torch.from_numpy(crops[:CALIBRATION])).contiguous().numpy()
        batches = [patches[k : k + 8] for k in range(0, len(patches), 8)]
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


def int8_forward(network: nn.Module, network_size_px: int, crops: NDArray[np.uint8]) -> Forward:
    """The quantised network as a function of patches; see `quantise`."""
    return from_openvino(quantise(network, network_size_px, crops))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and advice of the quantiser."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(previous)
