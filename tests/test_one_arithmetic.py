"""Python, the service's engine, batch and its loaders go through the same stages: on one device, the same bits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.loaders import RefinerPool, TimedModel
from bpr_service.jobs.refine.plan import open_file
from bpr_service.masks.images import read_image
from bpr_service.network.model import Model
from bpr_service.refine.refiner import Refiner
from bpr_service.runtime.engine import Engine, EngineConfig
from bpr_service.runtime.work import Lane
from tests.jobs.samples import SETTINGS, coco_set, semantic_set
from tests.scenes import Accelerator


class OneModel:
    """A source of one lane."""

    def __init__(self, refiner: Refiner) -> None:
        self.refiner = refiner

    def presets(self) -> list[str]:
        return ["balanced"]

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        return Lane(preset, "one", "v1", self.refiner.config.patch.network_size_px, self.refiner)


def by_engine(refiner: Refiner, prepare: Any) -> Any:
    """As the service does it: from its threads, in batches of its own size."""
    engine = Engine(OneModel(refiner), EngineConfig(max_batch_wait_ms=0.0))
    engine.start()
    try:
        lane = engine.lane(None)
        work = engine.submit(
            engine.admit(),
            lambda _: (lane, prepare(lane.refiner)),
            lambda _, result: result,
            deadline=time.monotonic() + 60,
        )
        return work.future.result(60)
    finally:
        engine.stop()


def on_double(spec: RefinerSpec, request: Any) -> tuple[Any, list[Any], list[list[Any]]]:
    """The file, its units, and for no and one loader process the encoded outcomes of all of them."""
    file = open_file(request)
    units = list(file.scan())
    found = []
    for workers in (0, 1):
        with RefinerPool(spec, workers=workers) as pool:
            assert isinstance(pool.refiner.model, TimedModel)
            model = pool.refiner.model.model
            assert isinstance(model, Model)
            double = Accelerator(model.network, model.card, folder=model.folder)
            pool.refiner = Refiner(TimedModel(double, pool.busy), pool.refiner.config)
            outcomes = sorted(pool.run(file, units), key=lambda outcome: outcome.number)
            assert [outcome.failed for outcome in outcomes] == [[]] * len(units)
            assert pool.busy.patches == sum(outcome.patches for outcome in outcomes) > 0
            assert pool.busy.seconds > 0
            found.append(outcomes)
    return file, units, found


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_every_door_gives_the_same_bits_on_a_device(tmp_path: Path, kind: str) -> None:
    request = (coco_set if kind == "instance" else semantic_set)(tmp_path, 3)
    spec = RefinerSpec(request.preset, request.model, SETTINGS)
    plain = spec.load()
    assert isinstance(plain.model, Model)
    refiner = Refiner(Accelerator(plain.model.network, plain.model.card), plain.config)
    assert refiner.resides is not None
    file, units, (inline, loaders) = on_double(spec, request)
    for unit, a, b in zip(units, inline, loaders, strict=True):
        assert a.encoded == b.encoded
        assert a.changed_px == b.changed_px
        image, prediction = read_image(Path(file.image_path(unit))), file.read(unit)
        want: Any
        if kind == "instance":
            want = refiner.refine(image, prediction.masks)
            got = by_engine(refiner, lambda one, i=image, p=prediction: one.prepare(i, p.masks))
            assert [m.to_rle() for m in got.masks] == [m.to_rle() for m in want.masks]
            assert file.encode(unit, prediction.with_masks(want.masks)) == a.encoded
        else:
            want = refiner.refine_semantic(image, prediction.label_map)
            got = by_engine(refiner, lambda one, i=image, p=prediction: one.prepare_semantic(i, p.label_map))
            np.testing.assert_array_equal(got.label_map, want.label_map)
            assert file.encode(unit, prediction.with_label_map(want.label_map)) == a.encoded
        assert got.reports == want.reports
