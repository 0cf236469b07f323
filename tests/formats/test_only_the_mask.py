"""One mask of a file is changed: all other records and files keep every byte, and of it only mask, box, area differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bpr_service.formats import FORMATS, open_predictions
from bpr_service.masks.mask import Mask
from tests.formats.drawing import ring
from tests.formats.samples import kinds, result_paths, sample, write_all

OWN = {"segmentation", "counts", "size", "bbox", "area", "points", "rle", "mask", "shape_type"}
"""Keys of what a mask is, in whatever tool's words."""


def differing(one: Any, other: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    """The paths at which two JSON documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = {(*path, key) for key in one.keys() ^ other.keys()}
        return found.union(*(differing(one[key], other[key], (*path, key)) for key in one.keys() & other.keys()))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return set().union(*(differing(a, b, (*path, i)) for i, (a, b) in enumerate(zip(one, other, strict=True))))
    return set() if one == other else {path}


def pieces(file: Any) -> dict[Any, bytes]:
    """The bytes of every record and file, by position or name."""
    out: dict[Any, bytes] = {}
    for unit in file.scan():
        encoded = file.untouched(unit)
        out |= encoded.records
        out |= encoded.files
    return out


@pytest.mark.parametrize("kind", [kind for kind in kinds("instance") if kind[1] != "ids"], ids="-".join)
def test_the_rest_of_the_file_keeps_every_byte(kind: tuple[str, str], tmp_path: Path) -> None:
    file = sample(kind, tmp_path)
    out = tmp_path / ("out" if FORMATS[kind].result_is_folder else "out.json")
    new, left = Mask.from_array(ring(10, 12)), [1]

    def edit(unit: Any, prediction: Any) -> Any:
        masks = prediction.masks
        if masks and left:
            masks[0] = new
            left.clear()
        return prediction.with_masks(masks)

    assert write_all(file, out, edit) == []
    before, after = pieces(file), pieces(open_predictions(*kind, result_paths(file, out)))
    assert before.keys() == after.keys()
    (changed,) = [key for key in before if before[key] != after[key]]
    one, other = before[changed], after[changed]
    if one.lstrip().startswith((b"{", b"[")):
        assert {path[-1] if isinstance(path[-1], str) else path for path in _words(one, other)} <= OWN
    elif kind[1] in ("yolo", "cvat"):
        lines = [text.decode().splitlines() for text in (one, other)]
        assert len(lines[0]) == len(lines[1])
        assert sum(a != b for a, b in zip(*lines, strict=True)) == 1


def _words(one: bytes, other: bytes) -> set[tuple[Any, ...]]:
    """Where two JSON texts differ, up to the last key of a path (what lies in a list of numbers is its key's)."""
    found = differing(json.loads(one), json.loads(other))
    return {tuple(part for part in path if isinstance(part, str)) for path in found}
