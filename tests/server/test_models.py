"""Models of the package and of a store behind the presets: which goes first, activation, and what stays after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bpr_service.config import PatchConfig, Preset
from bpr_service.errors import ConflictError, ModelError, NotFoundError
from bpr_service.network import weights
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.engine import Engine, EngineConfig
from bpr_service.runtime.follow import StoreFollower
from bpr_service.runtime.model_store import ModelStore
from bpr_service.server import metrics
from bpr_service.server.models import StoreModels
from bpr_service.server.process.build import warm_stages
from tests.server.helpers import Running, body, serving

PRESET = Preset("balanced", "tiny", {"network_size_px": 64})


def export(folder: Path, seed: int) -> str:
    """A randomly initialised model version; its id."""
    torch.manual_seed(seed)
    network = build_network("light_unet_s")
    card = ModelCard(name="tiny", version=str(seed), network=NetworkCard(name="light_unet_s"), patch=PatchConfig())
    return save_model(folder, network, card).sha256[:12]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StoreModels, ModelStore, list[str]]:
    """One bundled version and two in a store, none active there."""
    monkeypatch.setattr(weights, "MODELS", tmp_path / "bundled")
    monkeypatch.setitem(__import__("bpr_service.config").config.PRESETS, "balanced", PRESET)
    bundled = export(tmp_path / "bundled" / "tiny", 1)
    store = ModelStore(str(tmp_path / "store"))
    ids = [bundled]
    for seed in (2, 3):
        export(tmp_path / f"export{seed}", seed)
        ids.append(store.add(str(tmp_path / f"export{seed}"), "tiny").id)
    return StoreModels(["balanced"], "cpu", store), store, ids


def test_the_stores_active_version_goes_before_the_bundled(models: Any) -> None:
    source, store, (bundled, second, third) = models
    assert source.open("balanced").version == bundled
    store.activate(f"tiny@{second}")
    assert source.open("balanced").version == second
    assert source.open("balanced", "tiny", bundled).version == bundled
    assert source.open("balanced", "tiny", third).version == third
    with pytest.raises(NotFoundError, match=bundled):
        source.open("balanced", "tiny", "ffffffffffff")


def test_activation_over_http_is_kept_for_the_next_start(models: Any) -> None:
    source, store, (bundled, second, third) = models
    with serving(None, source, catalogue=source) as server:
        (model,) = server.client.get("/v1/models").json()["models"]
        assert model["active"] == bundled
        assert set(model["versions"]) == {bundled, second, third}
        assert model["card"]["version"] == "1"
        url = "/v1/models/tiny/activate"
        assert server.client.post(url, json={"version": second}).json()["version"] == second
        assert server.client.post("/v1/refine/instance", json=body()).json()["model"]["version"] == second
        assert store.aliases("tiny")["active"] == second
        assert server.client.get("/v1/models").json()["models"][0]["card"]["version"] == "2"
        assert server.client.post(url, json={"version": bundled}).json()["version"] == bundled
        missing = server.client.post(url, json={"version": "ffffffffffff"})
        assert missing.status_code == 404
        assert server.client.post("/v1/models/other/activate", json={}).status_code == 404
        follower = StoreFollower(server.engine, source.chosen)
        follower.look()
        answered(server, bundled)  # the bundled version stays, though the store had an active one
        assert source.open("balanced").version == bundled, "after a restart too"
        newest = server.client.post(url).json()["version"]
        assert newest == store.list("tiny")[-1].id


def test_a_damaged_version_is_not_activated_and_nothing_changes(models: Any) -> None:
    source, store, (bundled, second, _) = models
    with serving(None, source, catalogue=source) as server:
        damage(Path(store.root) / "tiny" / "versions" / second / "model.safetensors")
        response = server.client.post("/v1/models/tiny/activate", json={"version": second})
        assert response.status_code == 422
        assert response.json()["code"] == "invalid_model"
        answered(server, bundled)
        assert store.aliases("tiny")["active"] is None


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.chmod(0o644)
    path.write_bytes(bytes(data))


def answered(server: Running, version: str) -> None:
    answer = server.client.post("/v1/refine/instance", json=body())
    assert answer.status_code == 200
    assert answer.json()["model"]["version"] == version


def test_a_store_that_cannot_keep_the_choice_rolls_it_back(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store, (bundled, second, _) = models
    engine = Engine(source, EngineConfig(), warm=warm_stages)
    engine.start()
    try:

        def refuse(ref: str) -> None:
            raise ConflictError("read-only store")

        monkeypatch.setattr(store, "activate", refuse)
        with pytest.raises(ConflictError):
            source.activate(engine, "tiny", second)
        assert [lane.version for lane in engine.lanes()] == [bundled]
        with pytest.raises((NotFoundError, ModelError)):
            source.activate(engine, "tiny", "eeeeeeeeeeee")
    finally:
        engine.stop()


def test_metrics_ask_for_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(metrics, "device_memory_bytes", lambda device: asked.append(device) or 5)
    engine = Engine(DummyModels(), device="cuda:0")
    exported = metrics.Metrics()
    exported.watch(engine)
    assert b"bpr_device_memory_bytes 5.0" in exported.text()
    assert set(asked) == {"cuda:0"}
