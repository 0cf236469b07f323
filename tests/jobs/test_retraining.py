"""Train jobs from end to end with the trainer itself: patches, training, comparison, registration, promotion."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.jobs.engine import Job
from bpr_service.masks.label_maps import write_panoptic_png
from bpr_service.masks.mask import Mask
from bpr_service.runtime.model_store import ModelStore
from tests.jobs.fleet import Fleet
from tests.jobs.samples import H, W, disc

pytestmark = pytest.mark.slow

RECIPE: dict[str, Any] = {
    "network": {"name": "light_unet_s"},
    "patch": {"patch_size_px": 32, "padding_px": 8, "network_size_px": 48},
    "optim": {"lr": 0.004, "warmup_steps": 2},
    "run": {"steps": 6, "batch_size": 4, "workers": 0, "threads": 1, "precision": "32", "checkpoint_every": 2},
}

STEPS = 40
"""Of the run that is killed: long enough to be caught between its first checkpoint and its end."""


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture with a bright disc, the disc, and a coarse version of it."""
    rng = np.random.default_rng(seed)
    y, x = 30 + int(rng.integers(12)), 40 + int(rng.integers(16))
    truth = disc(y, x, 18)
    image = (60 + 120 * truth[..., None] + rng.integers(0, 30, (H, W, 3))).astype(np.uint8)
    return image, truth, disc(y + 3, x - 2, 17)


def save_scenes(root: Path, images: int) -> None:
    """The same scenes as COCO files, label PNGs and COCO panoptic files, true and coarse."""
    for folder in ("images", "labels", "coarse_labels", "pan", "coarse_pan"):
        (root / folder).mkdir(parents=True)
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    results = []
    panoptic: dict[str, list[Any]] = {"pan": [], "coarse_pan": []}
    for i in range(images):
        image, truth, coarse = scene(i)
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        entry = {"id": i, "file_name": f"{i}.png", "height": H, "width": W}
        coco["images"].append(entry)
        mask = Mask.from_array(truth)
        coco["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1, "segmentation": mask.to_rle(), "bbox": mask.bbox}
            | {"area": mask.area, "iscrowd": 0}
        )
        results.append(
            {"image_id": i, "category_id": 1, "segmentation": Mask.from_array(coarse).to_rle(), "score": 0.9, "gt": i}
        )
        for folder, labels in (("labels", truth), ("coarse_labels", coarse)):
            Image.fromarray(labels).save(root / folder / f"{i}.png")
        for folder, labels in (("pan", truth), ("coarse_pan", coarse)):
            write_panoptic_png(root / folder / f"{i}.png", (labels + 1).astype(np.int32))
            infos = [
                {"id": k + 1, "category_id": k, "isthing": k, "iscrowd": 0, "area": int((labels == k).sum())}
                for k in (0, 1)
            ]
            panoptic[folder].append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
    categories = [{"id": 0, "name": "ground", "isthing": 0}, {"id": 1, "name": "disc", "isthing": 1}]
    for folder, entries in panoptic.items():
        text = json.dumps({"images": coco["images"], "annotations": entries, "categories": categories})
        (root / f"{folder}.json").write_text(text)
    (root / "truth.json").write_text(json.dumps(coco))
    (root / "coarse.json").write_text(json.dumps(results))


DATA: dict[str, dict[str, str]] = {
    "instance": {"ground_truth": "data:truth.json", "predictions": "data:coarse.json"},
    "semantic": {"ground_truth": "data:labels", "predictions": "data:coarse_labels"},
    "panoptic": {
        "ground_truth": "data:pan.json",
        "predictions": "data:coarse_pan.json",
        "panoptic_dir": "data:coarse_pan",
    },
}
DECIDES = {"instance": "boundary_AP", "semantic": "AF", "panoptic": "boundary_PQ"}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, "")
    save_scenes(tmp_path, 3)
    yield fleet
    fleet.close()


def submit(fleet: Fleet, task: str, **values: Any) -> Job:
    data = {"images": "data:images", **DATA[task]}
    held_out = {**data, **({"classes": 2} if task == "semantic" else {})}
    request = {"kind": "train", "name": "mine", "task": task, **data, "held_out": held_out, "recipe": RECIPE}
    return fleet.engine.submit({**request, **values})


@pytest.mark.parametrize("task", sorted(DATA))
def test_a_job_trains_compares_and_registers(task: str, fleet: Fleet) -> None:
    fleet.start()
    done = fleet.wait(submit(fleet, task, promote_if_better=True).id)
    assert done.state == "done", f"{done.message}\n{fleet.engine.log(done.id)}"
    assert done.result is not None
    assert done.progress["done"] == done.progress["total"] == 6
    comparison = done.result["comparison"]
    assert comparison["measure"] == DECIDES[task]
    assert set(comparison["figures"]) == {"coarse", "active", "candidate"}
    assert comparison["better"] is (comparison["candidate_figure"] > comparison["before_figure"])
    store = ModelStore(fleet.settings.models)
    (version,) = store.list("mine")
    assert version.ref == done.result["version"]
    assert done.result["promoted"] is comparison["better"]
    assert "candidate" in version.aliases
    assert ("active" in version.aliases) is comparison["better"]
    assert version.provenance["recipe"]["run"]["steps"] == 6
    assert version.provenance["parent"] is None  # a network of the recipe's own
    assert len(version.provenance["data"]["ground_truth"]) == 64


def test_a_killed_job_goes_on_from_its_checkpoint(fleet: Fleet) -> None:
    worker = fleet.start()
    recipe = {**RECIPE, "run": {**RECIPE["run"], "steps": STEPS}}
    job = submit(fleet, "instance", recipe=recipe, held_out=None)
    checkpoint = fleet.settings.job_folder(job.id) / "run" / "last.ckpt"
    fleet.wait(job.id, lambda job: checkpoint.exists() or job.ended_for_good)
    assert not fleet.engine.get(job.id).ended_for_good
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    fleet.start()
    done = fleet.wait(job.id)
    assert done.state == "done", f"{done.message}\n{fleet.engine.log(done.id)}"
    assert f'"step": {STEPS}, "steps": {STEPS}' in fleet.engine.log(job.id)
    starts = fleet.engine.log(job.id).count("bpr-train refiner")
    assert starts == 2
    assert len(ModelStore(fleet.settings.models).list("mine")) == 1
