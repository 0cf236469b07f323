"""`Model`: one network in memory and one of whatever runs it, however many refiners there are of it."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from bpr_service.config import PRESETS
from bpr_service.errors import ConfigError
from bpr_service.network import model as module
from bpr_service.network.backends import batch_sizes
from bpr_service.network.cuda_graphs import SIZES
from bpr_service.network.model import Model
from bpr_service.refine.refiner import Refiner
from tests.scenes import blob, photo, refiner

CROPS = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 4), np.uint8)


def models(refiners: list[Refiner]) -> list[Model]:
    """Each model that they hold, once."""
    found: dict[int, Any] = {id(one.model): one.model for one in refiners}
    return list(found.values())


def test_four_presets_hold_two_networks() -> None:
    held = [Refiner.load(preset) for preset in PRESETS]
    assert len(held) == 4
    assert len(models(held)) == 2
    assert len({id(one.network) for one in models(held)}) == 2
    assert {(refiner.config.backend, refiner.config.precision) for refiner in held} == {("openvino", "int8")}
    assert all([key[1] for key in one._opened].count("int8") == 1 for one in models(held))


def test_threads_that_load_at_once_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = module.open_backend  # type: ignore[attr-defined]

    def counted(backend: str, *rest: Any) -> Any:
        opened.append(backend)
        return real(backend, *rest)

    monkeypatch.setattr(module, "open_backend", counted)
    found: list[Refiner] = []
    together = threading.Barrier(4)

    def load(preset: str) -> None:
        together.wait()
        found.append(Refiner.load(preset, backend="compile"))

    threads = [threading.Thread(target=load, args=(name,)) for name in ("balanced", "lean", "best", "balanced")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models(found)) == 1
    assert opened == ["compile"]


def test_a_network_that_nobody_holds_is_let_go() -> None:
    network = weakref.ref(Model.load("fast").network)
    gc.collect()
    assert network() is None or any(key[0].endswith("fast") for key in module._LOADED)
    held = Refiner.load("fast")
    assert Model.load("fast") is held.model


def test_options_derive_all_that_is_derived_and_share_the_model() -> None:
    one = Refiner.load("balanced")
    other = one.with_options(nms_threshold=0.4, gate=False, scheme="instance", batch_size=3, flip=True)
    assert other.model is one.model
    assert (other.config.patch.nms_threshold, other.config.batch_size) == (0.4, 3)
    assert other.config.patch.patch_size_px == one.config.patch.patch_size_px
    card = one.card.with_options(estimate=None, gate=0.2)  # then a gate of certainty
    assert isinstance(one.model, Model)
    certain = Refiner(Model(None, card, folder=one.model.folder), one.config)
    assert (certain.instance_gate is not None, certain.with_options(gate=False).instance_gate) == (True, None)
    assert one.config.patch.scheme == "dense"
    assert not np.array_equal(one.predict(CROPS), other.predict(CROPS))  # mirrored too
    assert np.array_equal(one.predict(CROPS), other.with_options(flip=False).predict(CROPS))
    with pytest.raises(ConfigError, match="nms_threshold"):
        one.with_options(nms_threshold=2)
    with pytest.raises(ConfigError, match="multiple of 16"):
        one.with_options(network_size_px=100)


def test_a_gate_of_one_s_own_comes_back_with_the_option() -> None:
    engine = refiner(gate=lambda *_: "never")
    off = engine.with_options(gate=False)
    image, frame = photo(90, 90), blob(90, 90)
    assert off.refine(image, [frame]).reports[0].reason != "never"
    assert off.with_options(gate=True).refine(image, [frame]).reports[0].reason == "never"


def test_what_is_warmed_up_is_what_is_prepared_for() -> None:
    cpu, cuda = "cpu", "cuda:0"
    assert batch_sizes("eager", cpu, 64) == [64, 1]
    assert batch_sizes("compile", cpu, 64) == [64]
    assert batch_sizes("graphs", cuda, 64) == [64, 32, 16, 8]
    assert batch_sizes("compile", cuda, 4096) == list(SIZES)
    assert batch_sizes("graphs", cuda, 3) == [8]
