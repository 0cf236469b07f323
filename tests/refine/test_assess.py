"""Masks judged by the card's estimate."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.mask import Mask
from bpr_service.refine.assess import Surroundings
from bpr_service.refine.estimate import FEATURES
from bpr_service.refine.gate import HESITANT
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
