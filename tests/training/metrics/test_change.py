from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpr_service.errors import InputError
from bpr_service.masks.mask import Mask
from refiner_training.metrics.change import pair_change
from tests.training import oracles
from tests.training.synthetic import blob, disturb


def triples(count: int = 12) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(1)
    truths = [blob(rng) for _ in range(count)]
    return [disturb(rng, t, 0.16) for t in truths], [disturb(rng, t, 0.06) for t in truths], truths


@pytest.mark.parametrize("workers", [1, 3])
def test_pair_change_equals_its_definition(workers: int) -> None:
    coarse, refined, truth = triples()
    sides = [[Mask.from_array(a) for a in side] for side in (coarse, refined, truth)]
    got = pair_change(*sides, workers=workers)
    f: dict[str, list[Any]] = {"before": [], "after": []}
    for when, side in (("before", coarse), ("after", refined)):
        ious = [oracles.iou(m, t) for m, t in zip(side, truth, strict=True)]
        f[when] = [oracles.boundary_f(m, t, 1) for m, t in zip(side, truth, strict=True)]
        np.testing.assert_allclose(got[f"iou_{when}"], ious, atol=1e-12)
        np.testing.assert_allclose(got[f"f1px_{when}"], f[when], atol=1e-12)
        wrong, total = np.array([oracles.band_error(m, t, 5) for m, t in zip(side, truth, strict=True)]).sum(0)
        assert got["summary"][f"band_error_{when}"] == pytest.approx(wrong / total, abs=1e-12)
    gain = got["iou_after"] - got["iou_before"]
    removed = 1 - sum(1 - v for v in f["after"]) / sum(1 - v for v in f["before"])
    assert got["summary"]["share_removed"] == pytest.approx(removed, abs=1e-9)
    assert got["summary"]["worse_share"] == sum(g < -0.005 for g in gain) / len(gain)
    assert got["summary"]["better_share"] == sum(g > 0.005 for g in gain) / len(gain)
    assert got["summary"]["better_share"] > 0.5


def test_nothing_to_remove() -> None:
    _, spoilt, truth = ([Mask.from_array(a) for a in side] for side in triples(3))
    assert pair_change(truth, truth, truth)["summary"]["share_removed"] == 0
    assert pair_change(truth, spoilt, truth)["summary"]["share_removed"] == -np.inf


def test_lists_that_do_not_belong_together_are_refused() -> None:
    masks = [Mask.from_array(np.ones((4, 5), np.uint8))]
    with pytest.raises(InputError, match="1, 2 and 1 masks"):
        pair_change(masks, masks * 2, masks)
    with pytest.raises(InputError, match="at least one mask"):
        pair_change([], [], [])
    with pytest.raises(InputError, match=r"masks 0.*\(4, 5\) and \(5, 4\)"):
        pair_change(masks, masks, [Mask.from_array(np.ones((5, 4), np.uint8))])
