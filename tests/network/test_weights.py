"""Model versions: what is saved is what is loaded, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError, ModelError, UnknownName
from bpr_service.network.registry import build_network
from bpr_service.network.weights import (
    CARD_FILE,
    INT8_FILES,
    WEIGHTS_FILE,
    Candidate,
    Chosen,
    Int8Files,
    ModelCard,
    NetworkCard,
    RuntimeCard,
    bundled_models,
    load_model,
    read_card,
    read_int8,
    save_model,
)

ARGUMENTS = {"widths": [8, 8, 8, 8], "depth": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_network("light_unet_s", outputs=2, **ARGUMENTS)
    card = ModelCard(
        name="tiny",
        version="3",
        network=NetworkCard(name="light_unet_s", arguments=ARGUMENTS),
        patch=PatchConfig(padding_px=0, network_size_px=64),
        outputs=2,
        figures={"iou": 0.5},
    )
    save_model(tmp_path / "tiny", network, card)
    return tmp_path / "tiny"


def test_round_trip(folder: Path) -> None:
    loaded = load_model(folder)
    assert (loaded.card.name, loaded.card.version, loaded.card.outputs) == ("tiny", "3", 2)
    assert loaded.card.patch.network_size_px == 64
    assert not loaded.network.training
    torch.manual_seed(0)
    fresh = build_network("light_unet_s", outputs=2, **ARGUMENTS).eval()
    patches = torch.randn(1, 4, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.network(patches), fresh(patches))
    assert sorted(p.name for p in folder.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_halves_are_stored_as_halves_and_nothing_else_is(folder: Path) -> None:
    before = (folder / WEIGHTS_FILE).stat().st_size
    loaded = load_model(folder)
    odd = torch.nn.Parameter(torch.tensor(1 / 3))
    network = loaded.network.half().float()
    network.residual = odd
    save_model(folder, network, loaded.card)
    assert (folder / WEIGHTS_FILE).stat().st_size < 0.6 * before
    after = load_model(folder).network.state_dict()
    assert after["residual"] == odd
    assert all(v.dtype == torch.float32 for v in after.values() if v.is_floating_point())
    assert all(torch.equal(v, network.state_dict()[name]) for name, v in after.items())


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown model") as caught:
        load_model("no-such-model")
    assert all(name in str(caught.value) for name in bundled_models())


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / CARD_FILE).read_text())
        change(card)
        (folder / CARD_FILE).write_text(json.dumps(card))

    return apply


def _resign(data: bytes) -> Callable[[Path], Any]:
    import hashlib

    def apply(folder: Path) -> None:
        (folder / WEIGHTS_FILE).write_bytes(data)
        _edit(lambda card: card.update(sha256=hashlib.sha256(data).hexdigest()))(folder)

    return apply


def _flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip_a_bit, "SHA-256"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), "no weights"),
        (lambda f: (f / CARD_FILE).unlink(), "not a model version"),
        (lambda f: (f / CARD_FILE).write_text("{"), "damaged"),
        (_edit(lambda card: card.pop("network")), "network"),
        (_edit(lambda card: card.update(sha256="")), "SHA-256"),
        (_edit(lambda card: card["network"].update(name="resnet")), "cannot be built"),
        (_edit(lambda card: card["network"].update(arguments={"breadth": 1})), "cannot be built"),
        (_edit(lambda card: card["network"].update(arguments={"widths": [8, 8, 8, 16]})), "does not fit"),
        (_edit(lambda card: card.update(outputs=1)), "does not fit"),
        (_edit(lambda card: card.update(normalisation={"mean": [0, 0, 0], "std": [1, 1, 1]})), "normalisation"),
        (_resign(b"\x80\x04pickle"), "safetensors"),
    ],
)
def test_damage_is_refused(folder: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=says):
        load_model(folder)


RUNTIME = RuntimeCard(
    processor="an abacus",
    threads=2,
    patches="some patches",
    candidates=[
        Candidate(backend="eager", precision="fp32", patches_per_s=9.5, pixels_equal=1.0),
        Candidate(backend="compile", precision="fp32", missing="no compiler"),
        Candidate(backend="openvino", precision="int8", patches_per_s=80.0, pixels_equal=0.9995),
    ],
    chosen=Chosen(backend="openvino", precision="int8"),
)
QUANTISED = Int8Files(b"<net/>", b"\x01\x02")


def test_a_card_without_the_records_of_later_releases_is_valid(folder: Path) -> None:
    _edit(lambda card: (card.pop("runtime"), card.pop("int8")))(folder)
    card = load_model(folder).card
    assert card.runtime is None
    assert card.int8 is None
    with pytest.raises(ConfigError, match=r"precision int8.*tiny@3, which has none.*--calibrate"):
        read_int8(folder, card)


@pytest.fixture
def quantised(folder: Path) -> Path:
    loaded = load_model(folder)
    card = loaded.card.with_options(runtime=RUNTIME.model_dump())
    save_model(folder, loaded.network, card, QUANTISED, "256 patches")
    return folder


def test_the_measurement_and_the_quantised_network_come_back(quantised: Path) -> None:
    loaded = load_model(quantised)
    assert loaded.folder == quantised
    assert loaded.card.runtime == RUNTIME
    assert loaded.card.int8 is not None
    assert loaded.card.int8.calibration == "256 patches"
    assert read_int8(quantised, loaded.card) == QUANTISED
    with pytest.raises(ConfigError, match="precision int8"):
        read_int8(None, loaded.card)


def test_a_version_saved_without_a_quantised_network_keeps_none(quantised: Path) -> None:
    loaded = load_model(quantised)
    save_model(quantised, loaded.network, loaded.card)
    assert sorted(p.name for p in quantised.iterdir()) == [CARD_FILE, WEIGHTS_FILE]
    assert read_card(quantised).int8 is None


@pytest.mark.parametrize("name", INT8_FILES)
def test_a_damaged_quantised_network_is_refused(quantised: Path, name: str) -> None:
    data = (quantised / name).read_bytes()
    (quantised / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"{name} is not the file its card speaks of.*SHA-256"):
        load_model(quantised)
    (quantised / name).unlink()
    with pytest.raises(ModelError, match=rf"no quantised network.*{name}.*[Ee]xport the model again"):
        load_model(quantised)
    (quantised / name).write_bytes(data)
    _edit(lambda card: card["int8"]["sha256"].pop(name))(quantised)
    with pytest.raises(ModelError, match="the card has none"):
        load_model(quantised)
