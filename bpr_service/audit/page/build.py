"""Build the page: for each mask a small picture of its surroundings, its outline and the proposed one.

Pictures go to a local file as they are made, image by image, and into the page in the order of suspicion: memory holds
one image, and the outlines of the page's masks.

Letters: H, W are a picture's height and width in px; h, w those of the part that is shown.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service import storage
from bpr_service.audit.decisions import is_spliced, key_text, with_masks
from bpr_service.audit.ranking import Ranking
from bpr_service.audit.unit import Listed, listed
from bpr_service.errors import BprError
from bpr_service.formats import PredictionFormat, Unit
from bpr_service.formats.base import Prediction
from bpr_service.formats.refining import read_unit
from bpr_service.masks.mask import Mask

SIDE_PX = 288
"""Longer side of a picture in the page."""
AROUND = 0.3
LEAST_AROUND_PX = 16
QUALITY = 68
LATER = ("before", "after", "where", "record")
"""What the page reads of a mask only when it is looked at: so a page of many masks is there at once."""
SMOOTH_PX = 0.6
"""How far a drawn outline may lie from the mask's, px of the picture."""


def write_page(
    address: str,
    ranking: Ranking,
    indices: NDArray[np.int64],
    file: PredictionFormat,
    units: Callable[[set[int]], Iterable[Unit]],
    head: Mapping[str, Any],
    *,
    sampled: Collection[int] = (),
    max_pixels: int,
    ignore_label: int | None = None,
    folder: Path,
) -> None:
    """Write the page of some masks.

    Args:
        address: where the page goes, a file or object storage.
        ranking: every mask of the audit, in the order of suspicion.
        indices: numbers of the masks in the ranking, in the order in which the page shows them.
        file: the annotation file, which reads the units again.
        units: gives the units of some numbers.
        head: ``id``, ``title``, ``images``, ``annotations`` and ``categories`` (names by id).
        sampled: which of the masks belong to the sample.
        max_pixels: the largest picture that is decoded.
        ignore_label: of label maps, the label that is no mask.
        folder: where pictures wait.
    """
    rows: dict[int, dict[str, Any]] = {}
    of_unit: dict[int, list[int]] = defaultdict(list)
    for index in indices.tolist():
        rows[index] = row = ranking.row(index)
        of_unit[row["key"][0]].append(index)
    entries: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryFile(dir=folder) as pictures:
        spans: list[tuple[int, int]] = []
        for unit in units(set(of_unit)):
            mine = {index: rows.pop(index) for index in of_unit[unit.number]}
            entries.update(_entries_of(file, unit, mine, spans, pictures, max_pixels, ignore_label))
        shown = [entries[index] for index in indices.tolist() if index in entries]
        for index, entry in entries.items():
            entry["sample"] = index in sampled
            entry["class"] = _class(entry.pop("category"), head["categories"])
        listed_only = [{key: value for key, value in entry.items() if key not in LATER} for entry in shown]
        text = _json({**_data(head, file), "masks": listed_only})
        with storage.replacing(address) as out:
            before, after = _whole(text)
            out.write(before.encode())
            for entry in shown:
                start, length = spans[entry["picture"]]
                pictures.seek(start)
                out.write(b'<script type="text/plain" id="p%d">' % entry["picture"])
                out.write(base64.b64encode(pictures.read(length)) + b"</script>\n")
                later = _json({key: entry.get(key) for key in LATER}).encode()
                out.write(b'<script type="application/json" id="m%d">%b</script>\n' % (entry["picture"], later))
            out.write(after.encode())


def _json(value: Any) -> str:
    """JSON that ends no script that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _data(head: Mapping[str, Any], file: PredictionFormat) -> dict[str, Any]:
    told = {key: head[key] for key in ("id", "title", "images", "annotations")}
    spliced = is_spliced(file)
    return {**told, "bytes": storage.size_bytes(file.paths.predictions) if spliced else None}


def _class(category: Any, names: Mapping[Any, str]) -> str:
    name = names.get(category)
    return name if name else "" if category is None else str(category)


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def asset(name: str) -> str:
    """A file of the page: ``page.html``, ``page.css`` or ``page.js``."""
    return (resources.files("bpr_service.audit.page") / name).read_text("utf-8")


def skeleton(*, head: str, parts: str, back: str = "") -> str:
    """The page's HTML around what differs between one file and a server: its style, and its data and scripts."""
    text = asset("page.html")
    for mark, given in (("<!--HEAD-->", head), ("<!--BACK-->", back), ("<!--PARTS-->", parts)):
        text = text.replace(mark, given)
    return text


def _whole(data: str) -> tuple[str, str]:
    """The page as one file, before its pictures and after them."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{asset("page.css")}</style>'
    data = f'<script type="application/json" id="data">{data}</script>\n<script>{asset("page.js")}</script>\n'
    before, after = skeleton(head=head, parts="<!--PICTURES-->").split("<!--PICTURES-->")
    return before + data, after


def _entries_of(
    file: PredictionFormat,
    unit: Unit,
    rows: Mapping[int, dict[str, Any]],
    spans: list[tuple[int, int]],
    pictures: IO[bytes],
    max_pixels: int,
    ignore_label: int | None,
) -> dict[int, dict[str, Any]]:
    """What the page knows of a unit's masks; their pictures are written. None where the image went away since."""
    try:
        read, before, _ = read_unit(file, unit, max_pixels)
    except BprError:
        return {}
    masks = {item.position: item for item in listed(file, before, ignore_label)[0]}
    found = {}
    for index, row in rows.items():
        item = masks.get(row["key"][1])
        if item is None or item.mask.is_empty:
            continue
        new = Mask.from_rle(row["replacement"]) if row["replacement"] else None
        x0, y0, x1, y1 = _window(item.mask, new)
        data = _picture(read.pixels[y0:y1, x0:x1])
        spans.append((pictures.tell(), len(data)))
        pictures.write(data)
        entry = _entry(row, item, new, (x0, y0, x1, y1))
        entry["picture"] = len(spans) - 1
        if new is not None:
            entry["record"] = _record(file, unit, before, item.position, new)
        found[index] = entry
    return found


def _window(mask: Mask, new: Mask | None) -> tuple[int, int, int, int]:
    boxes = np.array([one.box for one in (mask, new) if one is not None])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    margin = max(LEAST_AROUND_PX, round(AROUND * int((high - low).max())))
    x0, y0 = (low - margin).clip(0).tolist()
    x1, y1 = np.minimum(high + margin, [mask.width, mask.height]).tolist()
    return x0, y0, x1, y1


def _picture(part: NDArray[np.uint8]) -> bytes:
    import cv2

    scale = SIDE_PX / max(part.shape[:2])
    if scale < 1:
        size = (max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1))
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    colours = cv2.cvtColor(np.ascontiguousarray(part), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".webp", colours, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1])


def _entry(row: Mapping[str, Any], item: Listed, new: Mask | None, window: tuple[int, int, int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = window
    where = [
        {"px": place["px"], "length": place["length_px"],
         "line": [v for x, y in place["line"] for v in (x - x0 + 0.5, y - y0 + 0.5)]}
        for place in row["where"]
    ]  # fmt: skip
    return {
        "key": key_text(row["key"]), "id": row["id"], "image": row["image"], "category": row["category_id"],
        "suspicion": row["suspicion"], "iou": row["expected_iou"], "boundary_f": row["expected_boundary_f"],
        "kinds": row["kinds"], "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "size": row["size"],
        "box": row["bbox"], "before": _rings(item.mask.window(*window)),
        "better": new is not None, "after": None if new is None else _rings(new.window(*window)), "where": where,
    }  # fmt: skip


def _rings(window: NDArray[np.uint8]) -> list[list[float]]:
    """Outlines of a mask's parts and holes, flat [x, y, ...] in px of the window."""
    import cv2

    # twice the size: the outline of a pixel then runs half a pixel outside of its centre, as its edge does
    grown = np.repeat(np.repeat(window, 2, 0), 2, 1)
    contours, _ = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    kept = [cv2.approxPolyDP(one, 2 * SMOOTH_PX, True).reshape(-1) for one in contours]
    return [[round(v / 2 + 0.25, 1) for v in one.tolist()] for one in kept if len(one) >= 6]


def _record(
    file: PredictionFormat, unit: Unit, before: Prediction, position: int, new: Mask
) -> tuple[int, int, str] | None:
    """First byte, bytes and new text of a mask's record, for formats whose result is one file."""
    if not is_spliced(file):
        return None
    row = next(row for row in unit.source if row[0] == position)
    text = file.encode(unit, with_masks(before, {position: new})).records[position].decode()
    return row[1], row[2], text
