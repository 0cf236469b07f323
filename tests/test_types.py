"""A user's few lines under pyright's strict mode: every type that they meet is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = {
    "library.py": """
import numpy as np
from bpr_service import Refiner

refiner = Refiner.load("fast", device="cpu")
result = refiner.refine(np.zeros((64, 64, 3), np.uint8), [np.zeros((64, 64), np.uint8)])
for mask, report in zip(result.masks, result.reports):
    print(mask.area, mask.bbox, mask.to_rle(), mask.to_array().shape, report.status, report.confidence, report.reason)
result.save("masks.png")
print(result.to_coco()[0]["segmentation"])
""",
    "maps.py": """
import bpr_service

refiner = bpr_service.Refiner.load("balanced")
maps = refiner.refine_semantic("photo.jpg", "labels.png")
print(maps.label_map.shape, [report.label for report in maps.reports])
""",
    "client.py": """
from bpr_service.client import Client

with Client("http://127.0.0.1:8000") as client:
    answer = client.refine("photo.jpg", ["mask.png"])
print([mask.area for mask in answer.masks])
""",
}


def test_a_users_lines_are_clean_under_pyright_strict(tmp_path: Path) -> None:
    for name, text in LINES.items():
        (tmp_path / name).write_text(text)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "reportMissingModuleSource": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
