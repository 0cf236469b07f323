from __future__ import annotations

import numpy as np
import pytest

from bpr_service.audit import sample
from bpr_service.audit.sample import Stratum, draw, estimate
from bpr_service.errors import ConfigError


def suspicions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.15, 1.4, count).astype(np.float32)


def wrong_in(drawn: object, wrong: np.ndarray) -> list[int]:
    return np.bincount(drawn.stratum, wrong[drawn.indices], minlength=len(drawn.strata)).astype(int).tolist()  # type: ignore[attr-defined]


def test_a_sample_has_as_many_masks_as_asked_each_once() -> None:
    suspicion = suspicions(5000)
    drawn = draw(suspicion, 300)
    assert len(set(drawn.indices.tolist())) == 300 == sum(s.drawn for s in drawn.strata)
    assert sum(s.masks for s in drawn.strata) == 5000
    for k, stratum in enumerate(drawn.strata):
        mine = suspicion[drawn.indices[drawn.stratum == k]]
        assert len(mine) == stratum.drawn >= min(8, stratum.masks)
    assert draw(suspicion, 300).indices.tolist() == drawn.indices.tolist()
    assert draw(suspicion, 300, seed=1).indices.tolist() != drawn.indices.tolist()


@pytest.mark.parametrize("count", [0, 5, 40])
def test_few_masks_are_all_drawn_and_known_for_sure(count: int) -> None:
    drawn = draw(suspicions(count), 100)
    assert sorted(drawn.indices.tolist()) == list(range(count))
    if count:
        share = estimate(drawn.strata, [s.drawn for s in drawn.strata])
        assert (share.share, share.low, share.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("power", [1.0, 1.4, 0.75])  # suspicion is right, too high, too low
def test_the_interval_holds_the_true_share_as_often_as_it_says(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "DRAWS", 2000)  # of 20,000: what is drawn 900 times here need not be that smooth
    suspicion = suspicions(8000)
    held, share, draws = 0, [], 300
    for seed in range(draws):
        wrong = np.random.default_rng(1000 + seed).random(8000) < suspicion**power
        drawn = draw(suspicion, 300, seed)
        found = estimate(drawn.strata, wrong_in(drawn, wrong))
        held += found.low <= wrong.mean() <= found.high
        share.append(found.share - wrong.mean())
    assert 0.92 <= held / draws <= 0.98  # .93 to .97, and what 300 draws leave to chance
    assert abs(np.mean(share)) < 0.004


def test_a_result_of_another_sample_is_refused() -> None:
    with pytest.raises(ConfigError):
        estimate([Stratum(10, 0.1, 5)], [6])
    with pytest.raises(ConfigError):
        estimate([Stratum(10, 0.1, 5)], [1, 1])
