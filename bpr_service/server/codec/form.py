"""A form's parts, and of a file of masks those of the one image that is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bpr_service.errors import InputError
from bpr_service.formats.images import NameIndex
from bpr_service.formats.records.dress import BOM, dress_of
from bpr_service.formats.records.record_file import ARRAYS, plain_id
from bpr_service.server.codec.bodies import Part, load_json
from bpr_service.server.codec.faults import located
from bpr_service.server.codec.memory import Allowance

MASK_KEYS = frozenset(("segmentation", "counts", "png"))
"""A JSON object with one of these is one mask."""


@dataclass(slots=True)
class Form:
    """What came in the parts: JSON is read, pictures are still files."""

    image: bytes | None = None
    name: str = ""
    """The image's file name."""
    pngs: list[bytes] = field(default_factory=list)
    masks: Any = None
    segments: Any = None
    options: Any = field(default_factory=dict)
    is_map: bool = False


def read_form(parts: list[Part], allowance: Allowance) -> Form:
    """``image`` (a file), ``masks`` (JSON, or PNG files, one a mask; of the other tasks one map), ``options``.

    Raises:
        BodyError: JSON that is none.
        InputError: a part that is not known, or no image.
    """
    form = Form()
    form.is_map = any(part.name != "masks" and part.name.endswith("_map") for part in parts)
    for part in parts:
        if part.name == "image":
            form.image, form.name = part.data, part.filename
        elif part.name == "options":
            form.options = load_json(part.data, allowance)
        elif part.name == "segments_info":
            form.segments = load_json(part.data, allowance)
        elif part.name in ("masks", "label_map", "segment_map"):
            if _is_json(part):
                form.masks = load_json(part.data, allowance, lines=True)
            else:
                form.pngs.append(part.data)
        else:
            raise InputError(
                "an unknown part of the form",
                expected="image, masks, options, segments_info",
                got=repr(part.name[:60]),
                fix="leave it out",
            )
    if form.image is None:
        got = ", ".join(part.name for part in parts[:8]) or "no parts"
        raise InputError("the form has no image", expected="a part named image", got=got, fix="send the file as image")
    return form


def _is_json(part: Part) -> bool:
    if part.media_type == "application/json" or part.filename.lower().endswith((".json", ".jsonl", ".ndjson")):
        return True
    head = part.data[:64].removeprefix(BOM).lstrip()
    return head[:1] in (b"[", b"{") or (dress_of(head) is not None and not head.startswith(b"PK"))


def masks_of(document: Any, name: str, image_id: Any) -> list[Any]:
    """The masks of one image in the JSON of a file: a list, an object with one, one mask, or a whole data set.

    Args:
        document: as it was read.
        name: the image's file name, by which a data set's file is asked which image it is; "" knows none.
        image_id: the image's id, where names do not say.

    Raises:
        InputError: no masks, or masks of several images of which none, or more than one, is this one.
    """
    images: Any = []
    if isinstance(document, dict):
        images = document.get("images")
        found = [document[key] for key in ARRAYS if key in document]
        if not found and not document.keys() & MASK_KEYS:
            raise located(
                InputError(
                    "masks",
                    expected=f"a list of masks, or an object with one under {', '.join(ARRAYS)}",
                    got=f"keys {', '.join(map(str, list(document)[:6])) or 'of nothing'}",
                    fix="see /docs",
                ),
                "/masks",
            )
        document = next((each for each in found if each), []) if found else [document]
    if not isinstance(document, list):
        kind = type(document).__name__
        raise located(InputError("masks", expected="a JSON list", got=kind, fix="see /docs"), "/masks")
    return _of_image(document, images if isinstance(images, list) else [], name, image_id)


def _of_image(entries: list[Any], images: list[Any], name: str, image_id: Any) -> list[Any]:
    ids = {plain_id(entry["image_id"]): None for entry in entries if _has(entry, "image_id")}
    wanted = [] if image_id is None else [plain_id(image_id)]
    if image_id is None and name:
        index = NameIndex([name])
        listed = [(plain_id(each["id"]), each.get("file_name")) for each in images if _has(each, "id")]
        wanted = [key for key, file in listed or zip(ids, ids, strict=True) if file and index.find(file)]
    if len(wanted) != 1 and len(ids) > 1:
        raise located(
            InputError(
                "masks of several images",
                expected="masks of this image alone, or a data set's file that has its name",
                got=f"image_id {', '.join(str(each)[:40] for each in list(ids)[:4])} and the image {name[:80]!r}",
                fix="name it in options.image_id; a data set's file as a whole is what a job refines",
            ),
            "/masks",
        )
    if len(wanted) != 1 or not ids:
        return entries
    return [entry for entry in entries if _has(entry, "image_id") and plain_id(entry["image_id"]) == wanted[0]]


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and entry.get(key) is not None
