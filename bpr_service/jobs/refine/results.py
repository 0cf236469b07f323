"""Results as parts: compressed JSON lines or Parquet, one file a part of the run, and a manifest that names them.

For runs whose result as one file is of no use. Records are those of the one file, grouped by image; within a part and
over the parts images come in the order of their first appearance in the input.

::

    OUT/part-000000.jsonl.gz    one record a line
    OUT/part-000000.parquet     columns position, image_id, category_id, score, counts, height, width, record
    OUT/manifest.json           written last: the format, and name, records, bytes and SHA-256 of every part
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from bpr_service import storage
from bpr_service.formats import PredictionFormat
from bpr_service.formats.records.result_parts import MANIFEST
from bpr_service.jobs.refine.findings import write_audit
from bpr_service.jobs.refine.loader_process import RefinerSpec
from bpr_service.jobs.refine.merge import check_parts, frames_of_part, merge
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import Plan, unit_counts
from bpr_service.jobs.requests import AuditRequest, RefineRequest

Records = list[tuple[int, bytes]]


def put_together(
    request: RefineRequest,
    file: PredictionFormat,
    place: Place,
    plan: Plan,
    spec: RefinerSpec,
    named: RefineRequest | None = None,
) -> Iterator[dict[str, Any]]:
    """Write the result of a run as the request asks for it; yields every unit's header. Raises as the writers do.

    Args:
        request: what was refined, and where it goes.
        file: its predictions.
        place: where the parts lie.
        plan: which parts there are.
        spec: the Refiner that the parts were made with.
        named: the request with its files as results are to name them; by default as they are opened.
    """
    if isinstance(request, AuditRequest):
        return write_audit(request, file, place, plan, spec.card(), named or request)
    if request.result == "file":
        return merge(file, place, plan, request.out)
    return write_results(place, plan, request.out, request.result)


def write_results(place: Place, plan: Plan, out: str, kind: str) -> Iterator[dict[str, Any]]:
    """Write every part of the run as a file of its own, then the manifest; yields every unit's header.

    Args:
        place: where the parts lie.
        plan: which parts there are.
        out: a folder or an address in object storage.
        kind: ``jsonl`` or ``parquet``.

    Raises:
        ConflictError: a part is missing, damaged, or of another plan.
    """
    encode, suffix = _ENCODERS[kind]
    check_parts(place, plan)
    parts = []
    for part, first, units in unit_counts(plan, place):
        records: Records = []
        for frame in frames_of_part(place, plan, part, first, units):
            records += frame.records()
            yield frame.header
        data, name = encode(records), f"part-{part:06d}.{suffix}"
        storage.write_bytes(storage.join(out, name), data)
        digest = hashlib.sha256(data).hexdigest()
        parts.append({"name": name, "records": len(records), "bytes": len(data), "sha256": digest})
    manifest = {"format": kind, "images": plan.units, "records": plan.records, "parts": parts}
    storage.write_bytes(storage.join(out, MANIFEST), json.dumps(manifest, indent=1).encode())


def _json_lines(records: Records) -> bytes:
    lines = b"".join(_one_line(data) + b"\n" for _, data in records)
    return gzip.compress(lines, compresslevel=6, mtime=0)


def _one_line(data: bytes) -> bytes:
    if b"\n" not in data and b"\r" not in data:
        return data
    return json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":")).encode()


def _parquet(records: Records) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for position, data in records:
        record = json.loads(data)
        mask = record.get("segmentation")
        rle = mask if isinstance(mask, dict) and isinstance(mask.get("counts"), str) else {}
        height, width = rle.get("size", (None, None))
        rows.append(
            {
                "position": position, "image_id": str(record.get("image_id")), "category_id": record.get("category_id"),
                "score": record.get("score"), "counts": rle.get("counts"), "height": height, "width": width,
                "record": data.decode(),
            }
        )  # fmt: skip
    whole, text = pa.int64(), pa.string()
    schema = pa.schema(
        {
            "position": whole, "image_id": text, "category_id": whole, "score": pa.float64(), "counts": text,
            "height": whole, "width": whole, "record": text,
        }
    )  # fmt: skip
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out, compression="zstd")
    return out.getvalue()


_ENCODERS: dict[str, tuple[Callable[[Records], bytes], str]] = {
    "jsonl": (_json_lines, "jsonl.gz"),
    "parquet": (_parquet, "parquet"),
}
