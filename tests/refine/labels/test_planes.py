"""Labels in pieces, block by block: the same result as whole labels, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from bpr_service.refine import tasks
from bpr_service.refine.labels import regions
from bpr_service.refine.labels.planes import LabelPlanes
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.reassemble import TILE_PX
from tests.scenes import Shift, blob, photo, refiner


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of 200 px are large, and their blocks are 96 px."""
    monkeypatch.setattr(tasks, "SPLIT_PX", 200)
    monkeypatch.setattr(regions, "BLOCK_PX", 100)


def label_map(height: int, width: int) -> NDArray[np.uint8]:
    out = np.full((height, width), 3, np.uint8)
    for i, label in enumerate((0, 7, 255, 9)):
        out[blob(height, width, i, 0.35) > 0] = label
    return out


def in_one(prepare: Callable[[], Prepared[Any]]) -> Prepared[Any]:
    """As if the map were small."""
    with mock.patch.object(tasks, "SPLIT_PX", 1 << 30):
        return prepare()


def run(prepared: Prepared[Any], order: str) -> Any:
    """Add logits that follow from where a patch lies and what it shows, so that numbering does not matter."""
    starts = list(range(0, prepared.n_patches, 5))
    if order == "backward":
        starts.reverse()
    if order == "mixed":
        np.random.default_rng(3).shuffle(starts)
    for start in starts:
        crops = np.asarray(prepared.crops(start, start + 5)).astype(np.float32)
        shifted = np.roll(crops[..., 3], 9, axis=2) - 127
        logits = (shifted * crops[..., 0] / 127 + crops[..., 1])[:, None] / 80
        prepared.add(start, logits)
    return prepared.finish()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("average", ["probability", "logit"])
@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_pieces_give_the_map_that_whole_labels_give(dtype: Any, order: str, average: str) -> None:
    labels, image, engine = label_map(330, 410).astype(dtype), photo(330, 410), refiner(average=average)
    pieces, whole = engine.prepare_semantic(image, labels), in_one(lambda: engine.prepare_semantic(image, labels))
    assert pieces.n_masks > 4 * whole.n_masks
    assert pieces.n_patches == whole.n_patches
    got, want = run(pieces, order), run(whole, "forward")
    np.testing.assert_array_equal(got.label_map, want.label_map)
    assert got.label_map.dtype == dtype
    assert got.reports == want.reports
    assert (got.label_map != labels).mean() > 0.05


@pytest.mark.usefixtures("small_blocks")
def test_pieces_of_segments_too() -> None:
    ids = np.array([0, 5, 70_000, 300, 1_000_000], np.int32)[label_map(330, 410) % 5]
    infos = [{"id": int(i), "category_id": k} for k, i in enumerate(np.unique(ids)[1:])]
    image, engine = photo(330, 410), refiner(Shift())
    pieces, whole = (take(lambda: engine.prepare_panoptic(image, ids, infos)) for take in (lambda f: f(), in_one))
    got, want = run(pieces, "forward"), run(whole, "forward")
    np.testing.assert_array_equal(got.segment_map, want.segment_map)
    assert (got.reports, got.segments_info) == (want.reports, want.segments_info)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("fill", "reasons"), [(3, ["the mask fills the image"]), (255, [])])
def test_a_large_map_without_a_boundary(fill: int, reasons: list[str]) -> None:
    labels = np.full((330, 410), fill, np.uint8)
    result = refiner(Shift()).refine_semantic(photo(330, 410), labels)
    np.testing.assert_array_equal(result.label_map, labels)
    assert [r.reason for r in result.reports] == reasons
    assert result.vanished == []


@pytest.mark.usefixtures("small_blocks")
def test_a_gate_sees_whole_labels() -> None:
    labels, seen = label_map(330, 410), []
    engine = refiner(Shift(), gate=lambda coarse, averaged: seen.append(coarse.area))
    engine.refine_semantic(photo(330, 410), labels)
    assert seen == [int((labels == v).sum()) for v in (0, 3, 7, 9)]


@pytest.mark.usefixtures("small_blocks")
def test_what_is_held_is_a_strip_of_the_map() -> None:
    labels = np.kron(np.arange(64 * 4).reshape(64, 4) % 3, np.ones((48, 48), int)).astype(np.uint8)
    prepared = refiner().prepare_semantic(photo(*labels.shape), labels)
    planes: LabelPlanes = prepared.task.planes
    run(prepared, "forward")
    tiles = labels.size // TILE_PX**2
    assert 0 < planes._confidence.tiles.shape[0] < tiles / 3
    assert 0 < planes._sums.tiles.shape[0] < tiles / 3
    assert planes._confidence._free.size == planes._confidence.tiles.shape[0]
    assert planes._sums._free.size == planes._sums.tiles.shape[0]
    assert not planes._waiting.any()
