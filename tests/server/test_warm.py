"""What a warm server compiles when requests come: nothing. A compilation takes seconds, and the event loop with it."""

from __future__ import annotations

import subprocess
import sys

LATE = """
import gc
import numpy as np
from numba.core.registry import CPUDispatcher
from bpr_service.masks.mask import Mask
from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.process.build import warm_stages

def compiled():
    kernels = (thing for thing in gc.get_objects() if isinstance(thing, CPUDispatcher))
    return {f"{k.__module__}.{k.__name__}{signature}" for k in kernels for signature in k.signatures}

def run(stages):
    stages.add(0, lane.refiner.logits(stages.crops(0, stages.n_patches)))
    stages.finish()

lane = DummyModels().open("balanced")
for stages in warm_stages(lane):
    run(stages)
before = compiled()
image = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
square = np.zeros((200, 260), np.uint8)
square[60:140, 60:200] = 1
run(lane.refiner.prepare(image, [Mask.from_array(square), Mask.from_array(square * np.float32(0.9))]))
for dtype in (np.uint8, np.uint16, np.int32, np.int64):
    run(lane.refiner.prepare_semantic(image, square.astype(dtype) * 3, 255))
    run(lane.refiner.prepare_panoptic(image, square.astype(dtype) * 9, [{"id": 9, "category_id": 1}]))
run(lane.refiner.prepare_panoptic(image, square.astype(np.int32) * 99_999, [{"id": 99_999, "category_id": 1}]))
print(sorted(compiled() - before))
"""


def test_a_request_of_any_task_and_type_of_map_compiles_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stdout + done.stderr
