"""The journal of a prediction: finished images, and what they were made with, until the result can be written whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import ConflictError
from refiner_training.prediction.images import ImageRecord
from refiner_training.prediction.options import Options


def made_with(checkpoint: Path, form: str, options: Options) -> dict[str, Any]:
    """What two parts of one result must agree in: the checkpoint's hash, the format, and the options that count."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": digest, "format": form, **options.record()}


def check_same(path: Path, found: Any, wanted: dict[str, Any]) -> None:
    """Raise :class:`ConflictError` where what was begun differs from what is to go on, naming the difference."""
    found = found if isinstance(found, dict) else {}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConflictError(
                str(path),
                expected=f"a part with {name} {str(value)[:12]}",
                got=str(found.get(name, "none"))[:12],
                fix="predict without resuming, or with the checkpoint and options of the first try",
            )


class Journal:
    """Results of finished images, one JSON line each; line 0 is what they were made with."""

    def __init__(self, out: Path, head: dict[str, Any], resume: bool) -> None:
        self.out, self.path = out, out.with_name(out.name + ".partial.jsonl")
        if out.exists() and resume:
            fix = "remove it, or predict without resuming"
            raise ConflictError(str(out), expected="a file that is not there yet", got="a finished one", fix=fix)
        self.done: set[int] = set()
        out.parent.mkdir(parents=True, exist_ok=True)
        if resume and self.path.is_file():
            self._recover(head)
        else:
            self.path.write_text(json.dumps(head) + "\n")
        self._file = self.path.open("a")

    def _recover(self, head: dict[str, Any]) -> None:
        """Keep whole lines; a line that an interruption cut is dropped."""
        kept = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                content = json.loads(line)
                if number == 0:
                    check_same(self.path, content, head)
                else:
                    self.done.add(int(content["image_id"]))
                kept += len(line)
        os.truncate(self.path, kept)
        if kept == 0:
            self.path.write_text(json.dumps(head) + "\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, image_id: int, found: Any) -> None:
        """Keep one image's results."""
        self._file.write(json.dumps({"image_id": image_id, "found": found}) + "\n")
        self._file.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every image's ``image_id`` and ``found``."""
        with self.path.open() as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def finish_list(self) -> None:
        """Write all results as one JSON list."""
        with storage.replacing(str(self.out)) as file:
            file.write(b"[")
            first = True
            for line in self.lines():
                for result in line["found"]:
                    file.write((("" if first else ",") + "\n" + json.dumps(result)).encode())
                    first = False
            file.write(b"\n]\n")
        self.path.unlink()

    def finish_panoptic(self, records: Sequence[ImageRecord], record: dict[str, Any]) -> None:
        """Write a COCO panoptic file."""
        things = set(record["config"]["data"].get("things", record["class_ids"]))
        pairs = zip(record["class_ids"], record["class_names"], strict=True)
        categories = [{"id": i, "name": name, "isthing": int(i in things)} for i, name in pairs]
        names = {each.id: each.name for each in records}
        images, annotations = [], []
        for line in self.lines():
            found = line["found"]
            height, width = found.pop("size")
            image = {"id": found["image_id"], "file_name": names[found["image_id"]], "height": height, "width": width}
            images.append(image)
            annotations.append(found)
        content = {"images": images, "annotations": annotations, "categories": categories}
        storage.write_bytes(self.out, json.dumps(content).encode())
        self.path.unlink()


def begin_folder(folder: Path, head: dict[str, Any], resume: bool) -> None:
    """Note beside a folder of PNGs what they are made with; a folder made otherwise is not gone on with.

    Raises:
        ConflictError: it holds PNGs that were made otherwise, or nobody knows how.
    """
    note = folder.with_name(folder.name + ".made_with.json")
    if resume and any(folder.rglob("*.png")):
        check_same(note, json.loads(note.read_text()) if note.is_file() else None, head)
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(note, json.dumps(head, indent=1).encode())
