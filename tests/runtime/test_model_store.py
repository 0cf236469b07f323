from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bpr_service.config import PatchConfig
from bpr_service.errors import ConfigError, ConflictError, ModelError, NotFoundError
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model
from bpr_service.runtime.model_store import ModelStore

NETWORK = "light_unet_s"


def export(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    network = build_network(NETWORK)
    card = ModelCard(name="mine", version="1", network=NetworkCard(name=NETWORK), patch=PatchConfig())
    save_model(folder, network, card)
    return str(folder)


@pytest.fixture
def exports(tmp_path: Path) -> tuple[str, str]:
    return export(tmp_path / "e1", 1), export(tmp_path / "e2", 2)


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelStore]:
    if request.param == "disk":
        yield ModelStore(str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    else:
        address = request.getfixturevalue("s3")
        yield ModelStore(f"{address}/store", cache=str(tmp_path / "cache"))


def test_the_same_weights_are_the_same_version(store: ModelStore, exports: tuple[str, str]) -> None:
    first = store.add(exports[0], "mine", {"job": "a", "parent": None})
    again = store.add(exports[0], "mine", {"job": "b"})
    other = store.add(exports[1], "mine", {"parent": first.id})
    assert again == first
    assert other.id != first.id
    assert [version.id for version in store.list("mine")] == sorted(
        [first.id, other.id], key=lambda i: (store.get(f"mine@{i}").created, i)
    )
    assert store.names() == ["mine"]
    assert store.get(f"mine@{other.id[:6]}").provenance == {"parent": first.id}
    assert store.card("mine@" + first.id)["name"] == "mine"


def test_a_quantised_network_goes_along(store: ModelStore, exports: tuple[str, str], tmp_path: Path) -> None:
    from bpr_service.network.weights import INT8_FILES, Int8Files, load_model, read_int8

    plain = store.add(exports[0], "mine")
    loaded, files = load_model(exports[0]), Int8Files(b"<net/>", b"weights")
    save_model(tmp_path / "int8", loaded.network, loaded.card, files)
    version = store.add(str(tmp_path / "int8"), "mine")
    assert version.id != plain.id  # the same weights, but int8 answers otherwise
    assert store.add(str(tmp_path / "int8"), "mine") == version
    assert set(version.files) == {"model.safetensors", "card.json", *INT8_FILES}
    folder = Path(store.fetch(version.ref))
    assert read_int8(folder, load_model(folder).card) == files


def test_aliases_and_rollback(store: ModelStore, exports: tuple[str, str]) -> None:
    first, second = (store.add(path, "mine") for path in exports)
    with pytest.raises(NotFoundError, match="an active version"):
        store.get("mine")
    store.activate(first.ref)
    store.propose(second.ref)
    assert store.get("mine").id == first.id
    assert store.get("mine@candidate").id == second.id
    assert store.get("mine@candidate").aliases == ("candidate",)
    store.activate("mine@candidate")
    assert store.get("mine").id == second.id
    with pytest.raises(NotFoundError, match="candidate"):
        store.get("mine@candidate")
    assert store.rollback("mine").id == first.id
    with pytest.raises(ConflictError, match="active before"):
        store.rollback("mine")
    store.activate(first.ref)  # is active already: nothing to roll back to
    with pytest.raises(ConflictError):
        store.rollback("mine")


def test_fetch_gives_files_that_load(store: ModelStore, exports: tuple[str, str]) -> None:
    from bpr_service.network.weights import load_model

    version = store.add(exports[0], "mine")
    folder = store.fetch(version.ref)
    assert store.fetch(version.ref) == folder
    assert load_model(folder).card.sha256 == version.files["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "card.json"])
def test_a_changed_byte_is_found(file: str, tmp_path: Path, exports: tuple[str, str]) -> None:
    store = ModelStore(str(tmp_path / "store"))
    version = store.add(exports[0], "mine")
    assert store.verify(version.ref) == version
    path = tmp_path / "store" / "mine" / "versions" / version.id / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for call in (store.verify, store.fetch, store.activate, store.propose):
        with pytest.raises(ModelError, match=f"{file} was changed: expected SHA-256"):
            call(version.ref)
    assert store.aliases("mine")["active"] is None
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        store.verify(version.ref)


def test_a_cached_download_is_checked(s3: str, tmp_path: Path, exports: tuple[str, str]) -> None:
    store = ModelStore(f"{s3}/store", cache=str(tmp_path / "cache"))
    version = store.add(exports[0], "mine")
    folder = Path(store.fetch(version.ref))
    (folder / "card.json").write_text("{}")
    with pytest.raises(ModelError, match="was changed"):
        store.fetch(version.ref)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "store"))
    (tmp_path / "bad").mkdir()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        store.add(str(tmp_path / "bad"), "mine")
    for name in ("model.safetensors", "card.json"):
        (tmp_path / "bad" / name).write_text("{}")
    with pytest.raises(ModelError):
        store.add(str(tmp_path / "bad"), "mine")
    assert store.list() == []


def test_references(tmp_path: Path, exports: tuple[str, str]) -> None:
    store = ModelStore(str(tmp_path / "store"))
    store.add(exports[0], "mine")
    with pytest.raises(ConfigError, match="model's name"):
        store.get("../mine")
    with pytest.raises(ConfigError, match="name@ID"):
        store.get("mine@latest")
    with pytest.raises(NotFoundError, match="known: "):
        store.get("mine@0000")
    with pytest.raises(NotFoundError):
        store.get("other")


def test_a_damaged_record(tmp_path: Path, exports: tuple[str, str]) -> None:
    store = ModelStore(str(tmp_path / "store"))
    version = store.add(exports[0], "mine")
    (tmp_path / "store" / "mine" / "versions" / version.id / "version.json").write_text('{"created": 1')
    with pytest.raises(ModelError, match="damaged"):
        store.get(version.ref)


def test_a_damaged_record_of_a_version_that_is_not_used_stops_nothing(
    tmp_path: Path, exports: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    store = ModelStore(str(tmp_path / "store"))
    version = store.add(exports[0], "mine")
    other = tmp_path / "store" / "mine" / "versions" / "0123456789ab"
    other.mkdir()
    (other / "version.json").write_text("[")
    assert [found.id for found in store.list()] == [version.id]
    assert store.get(version.ref).id == version.id
    assert "left out" in caplog.text
    with pytest.raises(ModelError, match="damaged"):
        store.get("mine@0123456789ab")


def test_onnx_says_the_same(tmp_path: Path, exports: tuple[str, str]) -> None:
    import onnxruntime

    from bpr_service.runtime.onnx_export import export_onnx

    out = str(tmp_path / "model.onnx")
    result = export_onnx(exports[0], out)
    assert result["largest_difference"] <= 1e-3
    assert result["same_sign"] > 0.999
    session = onnxruntime.InferenceSession(out)
    for count, size in ((1, 96), (5, 64)):  # any number of patches, any size
        batch = torch.rand(count, 4, size, size).numpy()
        assert session.run(None, {"patches": batch})[0].shape[2:] == (size, size)


def test_onnx_that_differs_is_refused(
    tmp_path: Path, exports: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bpr_service.runtime import onnx_export

    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="differs from the model"):
        onnx_export.export_onnx(exports[0], str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_the_files_are_plain_json(tmp_path: Path, exports: tuple[str, str]) -> None:
    store = ModelStore(str(tmp_path / "store"))
    version = store.activate(store.add(exports[0], "mine", {"code": "abc"}).ref)
    folder = tmp_path / "store" / "mine"
    assert json.loads((folder / "aliases.json").read_text())["active"] == version.id
    assert json.loads((folder / "versions" / version.id / "version.json").read_text())["provenance"] == {"code": "abc"}
