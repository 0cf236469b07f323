"""The network in int8: static quantisation of its OpenVINO form, calibrated on patches (NNCF's post-training way).

Shapes: n patches of S x S px.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.errors import ConfigError
from bpr_service.network.backends import from_openvino, openvino_model
from bpr_service.network.weights import INT8_FILES, Int8Files

if TYPE_CHECKING:
    from torch import nn

    from bpr_service.network.backends import Forward

CALIBRATION = 256
"""Patches that ranges are measured on."""


def quantise(network: nn.Module, network_size_px: int, crops: NDArray[np.uint8]) -> Any:
    """An `openvino.Model` in int8.

    Args:
        network: in evaluation mode, on the CPU.
        network_size_px: S.
        crops: (n, S, S, 4) uint8 patches like those it will see; of the first, `CALIBRATION` are used.

    Raises:
        ConfigError: openvino or nncf is not installed.
    """
    with _quiet():
        model = openvino_model(network, network_size_px)
        try:
            import nncf
        except ImportError:
            raise ConfigError(
                "quantisation", expected="nncf", got="no such package", fix='install "bpr-service[int8]"'
            ) from None

        from bpr_service.network.normalise import normalise

        patches = np.ascontiguousarray(normalise(crops[:CALIBRATION]))
        batches = [patches[k : k + 8] for k in range(0, len(patches), 8)]
        # The slow correction of biases takes seconds more, and changes about half as many pixels.
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), fast_bias_correction=False)


def quantised_files(network: nn.Module, network_size_px: int, crops: NDArray[np.uint8]) -> Int8Files:
    """The quantised network as a model version holds it; see `quantise`."""
    model = quantise(network, network_size_px, crops)
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        xml, bin_ = (Path(folder, name) for name in INT8_FILES)
        openvino.save_model(model, xml, compress_to_fp16=False)  # what is left in float32 stays as exact as it was
        return Int8Files(xml.read_bytes(), bin_.read_bytes())


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
