"""The quantised network: near enough to float32, written into a version and run from there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError, ModelError
from bpr_service.network.int8 import int8_forward, quantised_files
from bpr_service.network.normalise import normalise
from bpr_service.network.registry import build_network
from bpr_service.network.weights import INT8_FILES, ModelCard, NetworkCard, save_model
from bpr_service.refine.refiner import Refiner

ARGUMENTS = {"widths": [8, 8, 8, 8], "depth": 1}
CROPS = np.random.default_rng(0).integers(0, 256, (16, 48, 48, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny version that holds its quantised network."""
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    network = build_network("light_unet_s", **ARGUMENTS).eval()
    card = ModelCard(
        name="tiny",
        version="1",
        network=NetworkCard(name="light_unet_s", arguments=ARGUMENTS),
        patch=PatchConfig(patch_size_px=32, padding_px=8, network_size_px=48),
    )
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    save_model(folder, network, card, quantised_files(network, 48, CROPS), "noise")
    return folder


def test_it_keeps_nearly_every_pixel() -> None:
    pytest.importorskip("nncf")
    from bpr_service.examples import load_example

    refiner = Refiner.load("fast")
    model: Any = refiner.model
    example = load_example("astronaut")
    prepared = refiner.prepare(example.image, [i["segmentation"] for i in example.instances])
    crops = prepared.crops(0, 24)
    assert isinstance(crops, np.ndarray)
    logits = int8_forward(model.network, 96, crops)(normalise(crops))
    assert np.mean((logits > 0) == (refiner.predict(crops) > 0)) > 0.99


def test_a_version_runs_in_int8(version: Path) -> None:
    refiner = Refiner.load(version, backend="openvino", precision="int8")
    assert refiner.runs_on == "cpu, openvino int8"
    logits, expected = refiner.predict(CROPS), Refiner.load(version).predict(CROPS)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < np.abs(expected).max()
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.97
    assert np.array_equal(refiner.predict(CROPS[:3]), logits[:3])  # any number of patches


def test_what_runs_is_what_the_files_hold(version: Path, tmp_path: Path) -> None:
    """The logits come from ``int8.bin``, not from the weights that are loaded beside it."""
    from bpr_service.network.weights import load_model, read_int8

    loaded = load_model(version)
    with torch.no_grad():
        for parameter in loaded.network.parameters():
            parameter.zero_()
    save_model(tmp_path / "other", loaded.network, loaded.card, read_int8(version, loaded.card))
    other = Refiner.load(tmp_path / "other", backend="openvino", precision="int8")
    same = Refiner.load(version, backend="openvino", precision="int8")
    assert np.array_equal(other.predict(CROPS), same.predict(CROPS))


def test_int8_is_refused_where_there_is_none(version: Path, tmp_path: Path) -> None:
    from bpr_service.network.weights import load_model

    loaded = load_model(version)
    save_model(tmp_path / "without", loaded.network, loaded.card)
    assert Refiner.load(version, precision="int8").runs_on == "cpu, openvino int8"
    with pytest.raises(ConfigError, match=r"expected fp32 or bf16, got int8. Use backend openvino"):
        Refiner.load(version, backend="eager", precision="int8")
    with pytest.raises(ConfigError, match=r"precision int8.*which has none"):
        Refiner.load(tmp_path / "without", backend="openvino", precision="int8")
    with pytest.raises(ConfigError, match=r"network_size_px in int8: expected 48, got 64"):
        Refiner.load(version, backend="openvino", precision="int8", network_size_px=64)


def test_a_changed_file_is_refused(version: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(version, tmp_path / "changed"))
    weights = folder / INT8_FILES[1]
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    for settings in ({}, {"backend": "openvino", "precision": "int8"}):
        with pytest.raises(ModelError, match=r"int8.bin is not the file"):
            Refiner.load(folder, **settings)


def test_a_quantiser_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"expected nncf.*bpr-service\[int8\]"):
        quantised_files(build_network("light_unet_s", **ARGUMENTS).eval(), 48, CROPS)
