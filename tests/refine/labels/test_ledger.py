"""The ledger of a map: block by block the same result as at once, in the room of a strip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bpr_service.network.model import Model
from bpr_service.refine.labels import device_canvas, ledger
from bpr_service.refine.labels.ledger import Ledger, in_blocks
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.tiles import TILE_PX
from tests.scenes import Accelerator, Shift, blob, photo, refiner

KINDS = pytest.mark.parametrize("kind", [Model, Accelerator])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are 96 px."""
    monkeypatch.setattr(ledger, "BLOCK_PX", 100)


def label_map(height: int, width: int) -> NDArray[np.uint8]:
    out = np.full((height, width), 3, np.uint8)
    for i, label in enumerate((0, 7, 255, 9)):
        out[blob(height, width, i, 0.35) > 0] = label
    return out


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
        prepared.add(start, logits if prepared.resides is None else torch.from_numpy(logits))
    return prepared.finish()


@KINDS
@pytest.mark.parametrize("average", ["probability", "logit"])
@pytest.mark.parametrize("order", ["forward", "backward", "mixed"])
def test_blocks_give_the_map_that_one_gives(
    order: str, average: str, kind: type[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, image, engine = label_map(330, 410), photo(330, 410), refiner(kind=kind, average=average)
    whole: Any = engine.prepare_semantic(image, labels)
    monkeypatch.setattr(ledger, "BLOCK_PX", 100)
    blocks: Any = engine.prepare_semantic(image, labels)
    assert (np.diff(blocks.task.ledger.owners) < 0).sum() > 4
    assert (np.diff(whole.task.ledger.owners) >= 0).all()
    assert blocks.n_patches == whole.n_patches
    got, want = run(blocks, order), run(whole, "forward")
    np.testing.assert_array_equal(got.label_map, want.label_map)
    assert got.reports == want.reports
    assert (got.label_map != labels).mean() > 0.05


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("fill", "reasons"), [(3, ["the mask fills the image"]), (255, [])])
def test_a_map_without_a_boundary(fill: int, reasons: list[str]) -> None:
    labels = np.full((330, 410), fill, np.uint8)
    result = refiner(Shift()).refine_semantic(photo(330, 410), labels)
    np.testing.assert_array_equal(result.label_map, labels)
    assert [r.reason for r in result.reports] == reasons
    assert result.vanished == []


@KINDS
@pytest.mark.usefixtures("small_blocks")
def test_a_gate_sees_whole_labels_and_every_output(kind: type[Model]) -> None:
    labels, seen = label_map(330, 410), {}

    def gate(coarse: Any, averaged: Any) -> str | None:
        x, y = averaged.x, averaged.y
        h, w = averaged.covered.shape
        np.testing.assert_array_equal(
            averaged.probability[~averaged.covered], coarse.window(x, y, x + w, y + h)[~averaged.covered]
        )
        assert averaged.auxiliary is not None
        seen[coarse.area] = averaged.covered.sum()
        return "kept" if coarse.area == (labels == 7).sum() else None

    engine = refiner(Shift(outputs=2), gate=gate, kind=kind, outputs=2)
    result = engine.refine_semantic(photo(330, 410), labels)
    areas = [int((labels == v).sum()) for v in (0, 3, 7, 9)]
    assert list(seen) == areas
    assert min(seen.values()) > 330 * 410 / 4
    assert (result.label_map != labels).any()
    assert not (result.label_map[labels != 7] == 7).any()
    assert (result.label_map[labels == 7] == 7).all()
    assert [r.reason for r in result.reports if r.label == 7] == ["kept"]


@KINDS
@pytest.mark.usefixtures("small_blocks")
def test_what_is_held_is_a_strip_of_the_map(kind: type[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_canvas, "GROUP_BYTES", 1)
    labels = np.kron(np.arange(64 * 4).reshape(64, 4) % 3, np.ones((48, 48), int)).astype(np.uint8)
    prepared: Any = refiner(kind=kind).prepare_semantic(photo(*labels.shape), labels)
    book: Ledger = prepared.task.ledger
    run(prepared, "forward")
    assert 0 < book.rooms.size < book._labels.size / 3
    assert book._labels.size > labels.size / TILE_PX**2
    assert book.rooms._free.size == book.rooms.size
    assert not book._waiting.any()


def test_patches_come_block_by_block_and_label_by_label() -> None:
    rng = np.random.default_rng(1)
    boxes = [np.tile(rng.integers(0, (2900, 4900), (n, 2)), 2).astype(np.int32) for n in (300, 0, 200)]
    order = in_blocks(boxes, 5000, 3000)
    every, owners = np.concatenate(boxes)[order], np.repeat([0, 1, 2], [300, 0, 200])[order]
    assert sorted(order.tolist()) == list(range(500))
    blocks = every[:, 1] // 512 * 6 + every[:, 0] // 512
    assert (np.diff(blocks * 3 + owners) >= 0).all()
    same = np.diff(blocks * 3 + owners) == 0
    assert (np.diff(order)[same] > 0).all()


def test_no_patches_have_no_order() -> None:
    assert in_blocks([np.empty((0, 4), np.int32)] * 2, 5000, 3000).size == 0
    assert len(Ledger([], [], 50, 30)) == 0
