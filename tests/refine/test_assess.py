"""Masks judged by the card's estimate."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.mask import Mask
from bpr_service.refine.assess import HESITANT, MOST_PLACES, Surroundings, uncertain_places
from bpr_service.refine.estimate import FEATURES
from bpr_service.refine.reassemble import Averaged
from tests.refine.test_estimate import card
from tests.scenes import Smooth, blob, photo, refiner


def rough(side: int = 120) -> Mask:
    """A blob with a boundary that `Smooth` changes."""
    mask = blob(side, side).astype(np.uint8)
    mask[::3, ::3] = 0
    return Mask.from_array(mask)


@pytest.mark.parametrize(("least_gain", "status"), [(-1.0, "refined"), (1.0, "unchanged")])
def test_a_mask_is_taken_where_the_estimate_reaches_the_least_gain(least_gain: float, status: str) -> None:
    engine = refiner(Smooth(), estimate=card(least_gain=least_gain))
    mask = rough()
    result = engine.refine(photo(120, 120), [mask])
    (report,) = result.reports
    assert (report.status, report.reason) == (status, None if status == "refined" else HESITANT)
    assert (result.masks[0].to_array() == mask.to_array()).all() == (status == "unchanged")
    # The card's perceptron says 2 of a refined mask, which no share can be, and 0.25 of a coarse one.
    assert report.confidence == (1.0 if status == "refined" else 0.25)


def test_without_a_gate_nothing_is_refused_and_the_confidence_is_still_given() -> None:
    engine = refiner(Smooth(), estimate=card(least_gain=1.0), gate=None).with_options(gate=False)
    (report,) = engine.refine(photo(120, 120), [rough()]).reports
    assert (report.status, report.confidence) == ("refined", 1.0)


def test_a_gate_that_is_given_decides_alone() -> None:
    engine = refiner(Smooth(), estimate=card(least_gain=1.0), gate=lambda *_: None)
    assert engine.refine(photo(120, 120), [rough()]).reports[0].status == "refined"


def test_a_model_without_an_estimate_has_no_confidence() -> None:
    assert refiner(Smooth()).refine(photo(120, 120), [rough()]).reports[0].confidence is None


def test_the_features_see_the_other_masks_of_the_picture() -> None:
    side = 40
    frame = np.zeros((side, side), np.uint8)
    frame[10:20, 10:20] = 1
    coarse, neighbour = Mask.from_array(frame), Mask.from_array(np.roll(frame, 10, 1))
    probability = np.zeros((side, side), np.float32)
    probability[10:20, 10:25] = 0.95  # grows by 5 columns, all of them the neighbour's
    averaged = Averaged(0, 0, np.ones((side, side), bool), probability, None)
    image = photo(side, side)
    place = FEATURES.index("added on other masks")
    assert Surroundings(image, [coarse, neighbour]).features(coarse, averaged, 1.0)[place] == 1
    assert Surroundings(image, [coarse]).features(coarse, averaged, 1.0)[place] == 0


def test_masks_that_lie_over_each_other_many_times_are_counted_without_overflow() -> None:
    mask = Mask.from_array(np.ones((4, 4), np.uint8))
    assert Surroundings(photo(4, 4), [mask] * 300).depth.max() == 255


def unsure(where: list[tuple[int, int, int, int]], scale: float = 1.0, side: int = 256) -> list[tuple[int, ...]]:
    """The places of a window at (100, 50), in it, whose network expects to be wrong in boxes (x, y, width, height)."""
    log_odds = np.full((side, side), -9.0, np.float32)
    for x, y, width, height in where:
        log_odds[y : y + height, x : x + width] = 1.0
    averaged = Averaged(100, 50, np.ones((side, side), bool), np.zeros((side, side), np.float32), log_odds)
    return [(x - 100, y - 50, w, h) for x, y, w, h in uncertain_places(averaged, scale)]


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
def test_places_where_the_network_expects_to_be_wrong(scale: float) -> None:
    side = round(32 * scale)
    (place,) = unsure([(128, 64, side, side)], scale)
    assert place[2:] == (side, side)
    assert max(abs(place[0] - 128), abs(place[1] - 64)) <= round(4 * scale)
    assert unsure([(128, 64, side, max(round(2 * scale), 1))], scale) == [], "a boundary is always a little unsure"
    first, second = unsure([(20, 20, side // 2, side), (160, 160, side, side)], scale)
    assert first[0] > 100 > second[0], "the worst first"


def test_places_are_few_and_inside_of_the_window() -> None:
    places = unsure([(0, 0, 256, 256)])
    assert len(places) == MOST_PLACES == len(set(places))
    assert all(0 <= x < x + w <= 256 and 0 <= y < y + h <= 256 for x, y, w, h in places)
    nothing = Averaged(0, 0, np.zeros((9, 9), bool), np.zeros((9, 9), np.float32), np.zeros((9, 9), np.float32))
    assert uncertain_places(nothing, 1.0) == ()
    assert uncertain_places(Averaged(0, 0, np.ones((9, 9), bool), np.zeros((9, 9), np.float32), None), 1.0) == ()
