"""Results as parts, as ``bpr-train evaluate`` reads them: the same records whatever the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bpr_service.errors import FormatError
from bpr_service.formats.records.result_parts import is_parts, read_results
from bpr_service.masks.mask import Mask
from refiner_training.data.coco import read_dataset
from refiner_training.data.coco import read_results as read_coco
from tests.formats.drawing import H, W

RLE = Mask.from_array(np.ones((H, W), np.uint8)).to_rle()
RECORDS: list[dict[str, Any]] = [
    {"image_id": i, "category_id": 1, "segmentation": RLE, "score": 0.5, "name": "é"} for i in (1, 2)
]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


def results(root: Path, suffix: str) -> Path:
    path = root / f"results{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"record": [json.dumps(record) for record in RECORDS]}), path)
    elif suffix == ".json":
        path.write_text(json.dumps(RECORDS))
    else:
        path.write_bytes(gzip.compress(LINES) if suffix.endswith(".gz") else LINES + b"\n")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".jsonl.gz", ".parquet"])
def test_evaluate_reads_the_same_records_from_every_file(tmp_path: Path, suffix: str) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in (1, 2)]
    truth: dict[str, Any] = {"images": images, "categories": [{"id": 1, "name": "a"}]}
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": RLE, "iscrowd": 0}]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    path = results(tmp_path, suffix)
    assert is_parts(str(path)) == (suffix != ".json")
    assert read_coco(path, read_dataset(tmp_path / "truth.json")) == RECORDS


@pytest.mark.parametrize(
    ("suffix", "data"), [(".jsonl.gz", gzip.compress(LINES)[:-9]), (".parquet", b"PAR1 and no more"), (".parquet", b"")]
)
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"results{suffix}"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="results"):
        list(read_results(str(path)))


def test_parquet_without_the_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match="record"):
        list(read_results(str(tmp_path / "a.parquet")))
