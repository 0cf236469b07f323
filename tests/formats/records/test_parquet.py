"""COCO results in Parquet, beside what every format's contract asks."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bpr_service.errors import FormatError
from bpr_service.formats import Paths, open_predictions
from bpr_service.formats.records import parquet
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc, image, ring
from tests.formats.samples import sample, write_all

KIND = ("instance", "parquet")


def opened(root: Path, table: pa.Table) -> parquet.ParquetResults:
    image(root / "images" / "5.jpg")
    pq.write_table(table, root / "a.parquet")
    file = open_predictions(*KIND, Paths(str(root / "images"), str(root / "a.parquet")))
    assert isinstance(file, parquet.ParquetResults)
    return file


def test_only_mask_box_and_area_of_changed_rows_differ(tmp_path: Path) -> None:
    file = sample(KIND, tmp_path)
    mask = Mask.from_array(disc(20, 20))
    write_all(file, tmp_path / "out.parquet", lambda unit, read: read.with_masks([mask, read.masks[1]]))
    old, new = (pq.read_table(path) for path in (file.paths.predictions, tmp_path / "out.parquet"))
    assert new.schema == old.schema
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups == 2
    differ = [{key for key in a if a[key] != b[key]} for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True)]
    assert differ == [{"segmentation", "bbox", "area"}] * 2 + [set()] * 2
    assert new.column("area").to_pylist()[:2] == [mask.area] * 2


def test_the_table_that_batch_writes_is_read_and_written(tmp_path: Path) -> None:
    rle = Mask.from_array(ring(3, 2)).to_rle()
    record = json.dumps({"image_id": 5, "segmentation": rle, "score": 0.5})
    row = {"image_id": "5", "counts": rle["counts"], "height": 40, "width": 52, "record": record}
    file = opened(tmp_path, pa.Table.from_pylist([row]))
    mask = Mask.from_array(disc(20, 20))
    write_all(file, tmp_path / "out.parquet", lambda unit, read: read.with_masks([mask]))
    (new,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert new["counts"] == mask.to_rle()["counts"]
    assert json.loads(new["record"])["segmentation"] == mask.to_rle()


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="columns image_id, other"):
        list(opened(tmp_path, pa.table({"image_id": [5], "other": [1]})).scan())
    (tmp_path / "a.parquet").write_bytes(b"{}")
    with pytest.raises(FormatError, match="no Parquet"):
        list(open_predictions(*KIND, Paths(str(tmp_path / "images"), str(tmp_path / "a.parquet"))).scan())


def test_a_row_group_that_memory_should_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 10)
    with pytest.raises(FormatError, match="row_group_size"):
        list(sample(KIND, tmp_path).scan())
