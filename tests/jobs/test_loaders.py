"""Loader processes: replaced where they die, and no picture lost or blamed for another."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from bpr_service.config import RefineConfig, build
from bpr_service.errors import ConfigError, DeviceError
from bpr_service.formats import Unit
from bpr_service.jobs.refine import loaders
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.refine.loader_process import RefinerSpec, RemoteModel, Told
from bpr_service.jobs.refine.loaders import RefinerPool
from bpr_service.jobs.refine.plan import open_file
from bpr_service.network import model as network_model
from bpr_service.refine.refiner import Refiner
from tests.jobs.samples import coco_set

IN_PROCESS = Batch(workers=0)


def test_a_loader_that_dies_is_replaced(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 12)
    run_batch(request, IN_PROCESS)
    with RefinerPool(RefinerSpec(request.preset, request.model, request.settings), workers=2) as pool:
        file = open_file(request)
        outcomes = []
        for outcome in pool.run(file, file.scan()):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                os.kill(pool._loaders[0].process.pid or 0, signal.SIGKILL)
    assert sorted(outcome.number for outcome in outcomes) == list(range(12))
    assert not any(outcome.failed for outcome in outcomes)


def test_a_picture_that_kills_its_loader_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, give = coco_set(tmp_path, 8), loaders._Loader.give

    def give_and_die(loader: loaders._Loader, job: Any, unit: Unit) -> None:
        give(loader, job, unit)
        if unit.number == 1:
            os.kill(loader.process.pid or 0, signal.SIGKILL)

    monkeypatch.setattr(loaders._Loader, "give", give_and_die)
    with RefinerPool(RefinerSpec(request.preset, request.model, request.settings), workers=1) as pool:
        file = open_file(request)
        failed = {outcome.number: outcome.failed for outcome in pool.run(file, file.scan())}
    assert sorted(failed) == list(range(8))
    assert [number for number, why in failed.items() if why] == [1]
    assert "died on it twice" in failed[1][0]


def test_a_loader_killed_before_it_is_ready_is_replaced(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 4)
    with RefinerPool(RefinerSpec(request.preset, request.model, request.settings), workers=1) as pool:
        file = open_file(request)
        pool._start()
        os.kill(pool._loaders[0].process.pid or 0, signal.SIGKILL)
        outcomes = list(pool.run(file, file.scan()))
    assert sorted(outcome.number for outcome in outcomes) == list(range(4))
    assert not any(outcome.failed for outcome in outcomes)


def cannot_start(*_: Any) -> None:
    """In place of `loader_main`."""
    os._exit(1)


def test_loaders_that_cannot_start_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = coco_set(tmp_path, 4)
    spec = RefinerSpec(request.preset, request.model, request.settings)
    with RefinerPool(spec, workers=1) as pool:
        file = open_file(request)
        monkeypatch.setattr(loaders, "loader_main", cannot_start)
        with pytest.raises(DeviceError, match="exit code 1"):
            list(pool.run(file, file.scan()))


def test_an_abandoned_run_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    request = coco_set(tmp_path, 8)
    with RefinerPool(RefinerSpec(request.preset, request.model, request.settings), workers=1) as pool:
        file = open_file(request)
        stopped = list(pool.run(file, file.scan(), stop=iter([False] * 12 + [True] * 99).__next__))
        assert len(stopped) < 8
        outcomes = list(pool.run(file, file.scan()))
    assert sorted(outcome.number for outcome in outcomes) == list(range(8))


def test_loaders_open_no_backend() -> None:
    """They may not have the device that it needs; the process that owns the device runs the network."""
    spec = RefinerSpec("fast", settings={"backend": "graphs", "precision": "bf16"})
    with pytest.raises(ConfigError, match="CUDA device"):
        spec.load()
    told = Told(Refiner.load("fast").card, build(RefineConfig, {"backend": "graphs", "precision": "bf16"}), None)
    with mock.patch.object(network_model, "load_network", side_effect=AssertionError("a network was loaded")):
        model = RemoteModel(told, lambda crops: np.zeros((len(crops), 2, *crops.shape[1:3]), np.float32))
        refiner = Refiner(model, told.config)
        assert refiner.predict(np.zeros((2, 96, 96, 4), np.uint8)).shape == (2, 2, 96, 96)
        assert refiner.refine(np.zeros((90, 90, 3), np.uint8), [np.eye(90, dtype=np.uint8)]).reports[0].patches > 0
