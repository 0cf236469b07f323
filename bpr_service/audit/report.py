"""The report of an audit: findings, sums per class, annotator and picture size, and every mask, worst first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bpr_service import storage
from bpr_service.audit.ranking import Ranking
from bpr_service.audit.suspicion import WRONG_BOUNDARY_F, WRONG_IOU

SIZES_PX = (512, 1024, 2048)
SUSPICIOUS = 0.5
MEANING = (
    "suspicion: the probability that a mask is wrong, that is, that its IoU with the truth is under "
    f"{WRONG_IOU} or its boundary F at 2 px under {WRONG_BOUNDARY_F}"
)
NAMED = 1000
"""Findings of a kind that the report names; their number counts all."""


class Findings:
    """What is wrong with a data set beside its masks: each kind's number, and the first so many."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.named: list[dict[str, Any]] = []

    def add(self, kind: str, **told: Any) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= NAMED:
            self.named.append({"kind": kind, **told})

    def add_unit(self, header: Mapping[str, Any]) -> None:
        """Note what could not be read of a unit: all of it, or some of its masks."""
        whole = header["refined"] == 0 and not header["unchanged"] and len(header["failed"]) == 1
        for line in header["failed"]:
            self.add("unreadable annotations" if whole else "unreadable mask", image=header["image"], problem=line)

    def add_pictures(self, images: str, seen: set[str]) -> None:
        """Note the pictures of a folder that no annotation speaks of."""
        from bpr_service.formats.images import SUFFIXES

        for name in storage.list_files(images, SUFFIXES):
            if name not in seen:
                self.add("a picture without annotations", image=name)


class _Group:
    """Sums over the masks of a class, an annotator, a picture size."""

    def __init__(self) -> None:
        self.masks = self.suspicious = 0
        self.suspicion = self.iou = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        self.masks += 1
        self.suspicion += row["suspicion"]
        self.suspicious += row["suspicion"] >= SUSPICIOUS
        self.iou += row["expected_iou"] or 0.0

    def to_json(self) -> dict[str, Any]:
        n = max(self.masks, 1)
        return {
            "masks": self.masks,
            "suspicious": self.suspicious,
            "expected_wrong_share": round(self.suspicion / n, 4),
            "expected_iou": round(self.iou / n, 4),
        }


class Summary:
    """Sums over all masks, and over those of each class, annotator, picture size and kind of error."""

    def __init__(self, categories: Mapping[Any, str] | None = None) -> None:
        """`categories`: names by id."""
        self.names = categories or {}
        self.all = _Group()
        self.groups: dict[str, dict[str, _Group]] = {
            "category": {}, "annotator": {}, "picture_size": {}, "kind": {},
        }  # fmt: skip

    def add(self, row: Mapping[str, Any]) -> None:
        self.all.add(row)
        longest = max(row["size"])
        sizes = [f"up to {px} px" for px in SIZES_PX if longest <= px] or [f"over {SIZES_PX[-1]} px"]
        self._add("picture_size", sizes[0], row)
        category = row["category_id"]
        if category is not None:
            name = self.names.get(category)
            self._add("category", f"{category} {name}" if name else str(category), row)
        if "annotator" in row:
            self._add("annotator", row["annotator"], row)
        for kind in row["kinds"]:
            self._add("kind", kind, row)

    def _add(self, by: str, name: str, row: Mapping[str, Any]) -> None:
        self.groups[by].setdefault(name, _Group()).add(row)

    def to_json(self) -> dict[str, Any]:
        def worst(groups: dict[str, _Group]) -> list[tuple[str, _Group]]:
            return sorted(groups.items(), key=lambda item: -item[1].suspicion / item[1].masks)

        each = {f"by_{by}": {name: g.to_json() for name, g in worst(found)} for by, found in self.groups.items()}
        return {**self.all.to_json(), **each}


def write_report(address: str, head: Mapping[str, Any], findings: Findings, ranking: Ranking, summary: Summary) -> None:
    """Write the report whole: ``head``, what the figures mean, findings, summary, and every mask on a line of its own.

    Args:
        address: where the report goes, a file or object storage.
        head: what was audited, and how.
        findings: what is wrong with the file itself.
        ranking: every mask, in the order of suspicion.
        summary: is filled with the masks here, so that they are read once.
    """
    with storage.replacing(address) as out:
        out.write(b'{"masks": [')
        for line in _lines(ranking.rows(), summary):
            out.write(line)
        rest = {
            "meaning": MEANING,
            "summary": summary.to_json(),
            "findings": {"counts": findings.counts, "named": findings.named},
            **head,
        }
        out.write(b"\n ],\n" + json.dumps(rest, ensure_ascii=False, indent=1).encode()[2:] + b"\n")


def _lines(rows: Iterable[dict[str, Any]], summary: Summary) -> Iterator[bytes]:
    for number, row in enumerate(rows):
        summary.add(row)
        yield (b",\n  " if number else b"\n  ") + json.dumps(row, ensure_ascii=False).encode()


def suspects(address: str, over: float) -> int:
    """How many masks of a report are more suspicious than `over`; it is read no further than they go."""
    from bpr_service.formats.records.stream import stream_json

    found = 0
    with storage.open_read(address) as file:
        for event in stream_json(file, address):
            if event.kind == "item" and event.key == "masks":
                if event.value["suspicion"] <= over:
                    break
                found += 1
    return found
