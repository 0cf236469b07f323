"""The do-no-harm gate, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bpr_service.masks.mask import Mask
from bpr_service.refine.assess import HESITANT, CertaintyGate
from bpr_service.refine.reassemble import Averaged


def averaged(probability: np.ndarray) -> Averaged:
    return Averaged(2, 3, np.ones(probability.shape, bool), probability.astype(np.float32), None)


@pytest.fixture
def coarse() -> Mask:
    array = np.zeros((20, 20), np.uint8)
    array[5:10, 5:10] = 1
    return Mask.from_array(array)


def test_certain_changes_are_taken_and_hesitant_ones_are_not(coarse: Mask) -> None:
    probability = coarse.window(2, 3, 14, 15) * 0.98 + 0.01
    probability[0, :4] = 0.65  # four added pixels of certainty 0.3
    assert CertaintyGate(0.29)(coarse, averaged(probability)) is None
    assert CertaintyGate(0.31)(coarse, averaged(probability)) == HESITANT


def test_nothing_changed_is_no_matter_for_the_gate(coarse: Mask) -> None:
    probability = coarse.window(2, 3, 14, 15) * 0.2 + 0.4
    assert CertaintyGate(1.0)(coarse, averaged(probability)) is None


def test_pixels_under_no_patch_do_not_count(coarse: Mask) -> None:
    probability = coarse.window(2, 3, 14, 15) * 0.98 + 0.01
    probability[0, :4] = 0.65
    covered = np.ones(probability.shape, bool)
    covered[0, :4] = False
    assert CertaintyGate(1.0)(coarse, Averaged(2, 3, covered, probability.astype(np.float32), None)) is None
