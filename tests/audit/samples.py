"""Small data sets to audit, and a tiny model whose card can: its answers are noise, but the same noise every time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from PIL import Image

from bpr_service.jobs import refine_steps
from bpr_service.jobs.context import Context
from bpr_service.jobs.engine import Job, JobEngine
from bpr_service.jobs.requests import AuditRequest
from bpr_service.masks.mask import Mask
from bpr_service.network.weights import CARD_FILE, AuditCard, bundled_models, find_model, read_card
from tests.jobs.samples import SETTINGS, H, W, disc, picture, tiny_model


@cache
def card() -> AuditCard:
    """What the bundled model knows of wrong masks."""
    assert "balanced" in bundled_models()
    found = read_card(find_model("balanced")).audit
    assert found is not None
    return found


def auditing_model(folder: Path) -> str:
    """A tiny model with the bundled model's audit in its card."""
    tiny_model(folder)
    path = folder / CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "audit": card().model_dump()}))
    return str(folder)


def audit_set(root: Path, images: int = 4) -> dict[str, Any]:
    """An annotation file with everything that can be wrong: fields of an `AuditRequest`, ``out`` included.

    Its records: of each picture two discs by two annotators; then one twice (id 100), an empty mask (101), a damaged
    one (102), one of an unknown picture (103), a crowd (104); and there is a picture that nothing speaks of.
    """
    (root / "images").mkdir(parents=True)
    entries, records = [], []
    for i in range(images + 1):
        Image.fromarray(picture(i)).save(root / "images" / f"{i}.png")
        entries.append({"id": i + 1, "file_name": f"{i}.png", "height": H, "width": W})
    for i in range(images):
        for k in range(2):
            mask = Mask.from_array(disc(30 + 5 * k, 30 + 35 * k, 13 + i))
            records.append({"id": 10 * i + k, "image_id": i + 1, "category_id": k, "segmentation": mask.to_rle(),
                            "annotator": ("ann", "bob")[k], "note": f"{i}/{k}"})  # fmt: skip
    first = records[0]
    records += [
        {**first, "id": 100},
        {**first, "id": 101, "segmentation": Mask.from_array(np.zeros((H, W), np.uint8)).to_rle()},
        {**first, "id": 102, "segmentation": {"size": [H, W], "counts": "\x7f"}},
        {**first, "id": 103, "image_id": 77},
        {**first, "id": 104, "iscrowd": 1},
    ]
    document = {"images": entries, "annotations": records, "categories": [{"id": 0, "name": "disc"}]}
    (root / "ann.json").write_text(json.dumps(document, indent=1))
    return {
        "kind": "audit",
        "task": "instance",
        "images": str(root / "images"),
        "predictions": str(root / "ann.json"),
        "out": str(root / "report.json"),
        "model": auditing_model(root / "model"),
        "settings": SETTINGS,
        "part_images": 2,
    }


def request(values: dict[str, Any]) -> AuditRequest:
    return AuditRequest(**values)


def work(engine: JobEngine, job: Job) -> None:
    """What a worker does of a job."""
    context = Context(engine.settings, engine.database, "cpu", 0, "here")
    row = engine.database.job(job.id)
    assert row is not None
    for part in range(refine_steps.plan_job(context, row)):
        refine_steps.run_part(context, row, part)
    refine_steps.merge_job(context, row)
    with engine.database.engine.begin() as c:
        done = "UPDATE workflow_status SET status = 'SUCCESS' WHERE workflow_uuid = :id"
        c.execute(sa.text(done), {"id": row.workflow})
