"""A results file of any length in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpr_service.masks.mask import Mask
from tests.formats.drawing import H, W, disc

SCRIPT = """
import json, resource, sys
from bpr_service.formats import Paths, open_predictions
file = open_predictions("instance", "coco", Paths("images", sys.argv[1], sys.argv[2]))
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
units = records = 0
for unit in file.scan():
    units += 1
    records += len(unit.source)
    if unit.number % 500 == 0:
        assert file.read(unit).masks[0].area > 0
def all_records():
    for unit in file.scan():
        yield from file.untouched(unit).records.values()
file.write(sys.argv[3], all_records())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"units": units, "records": records, "grown_mb": (peak - base) / 1024}))
"""


@pytest.mark.parametrize("count", [50_000, pytest.param(300_000, marks=pytest.mark.slow)])
def test_bounded_memory(count: int, tmp_path: Path) -> None:
    rle = json.dumps(Mask.from_array(disc(20, 25)).to_rle())
    per_image = 20
    with (tmp_path / "pred.json").open("w") as out:
        out.write("[")
        for i in range(count):
            head = f'{{"image_id": {i // per_image}, "category_id": {i % 80}, "score": 0.{i % 1000:03d}, '
            out.write(("," if i else "") + head + f'"segmentation": {rle}, "pad": "{"x" * 200}"}}')
        out.write("]")
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in range(count // per_image)]
    (tmp_path / "ann.json").write_text(json.dumps({"images": images}))
    paths = [str(tmp_path / name) for name in ("pred.json", "ann.json", "out.json")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (result["units"], result["records"]) == (count // per_image, count)
    assert (tmp_path / "out.json").stat().st_size > 300 * count
    assert result["grown_mb"] < 40 + 120 * count / 1_000_000  # 24 bytes a record, sorted; the file has 350 a record
