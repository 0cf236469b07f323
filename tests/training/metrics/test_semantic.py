from __future__ import annotations

import numpy as np
import pytest

from refiner_training.data.label_masks import compact, label_masks
from refiner_training.metrics.semantic import class_f, class_iou, confusion, summarise
from tests.training import oracles
from tests.training.synthetic import label_maps


@pytest.mark.parametrize("seed", range(6))
def test_miou_and_f_equal_their_definitions(seed: int) -> None:
    truth, prediction, _ = label_maps(np.random.default_rng(seed))
    prediction[truth == 1] = 2 if seed == 0 else prediction[truth == 1]
    prediction[:5, :5] = 255  # no class
    seen = truth != 255
    positions = compact(truth, range(4)), compact(np.where(seen, prediction, 255), range(4))
    counts = confusion(*positions, 4)
    expected = [
        (seen & (truth == c) & (prediction == c)).sum() / (seen & ((truth == c) | (prediction == c))).sum()
        for c in range(4)
    ]
    np.testing.assert_allclose(class_iou(counts), expected, atol=1e-12)
    f = class_f(label_masks(truth, range(4)), label_masks(np.where(seen, prediction, 255), range(4)), 1)
    np.testing.assert_allclose(f, oracles.segf(truth, prediction, 4, 255), atol=1e-12)


def test_a_class_of_neither_map_scores_one_in_af_and_is_left_out_of_af_present() -> None:
    counts = np.array([[8, 2, 0], [0, 0, 0]])
    f, present = np.array([[0.5, 1.0]]), np.array([[True, False]])
    overall, per_class = summarise(counts, f, present)
    assert overall["AF"] == 0.75
    assert overall["AF_present"] == 0.5
    assert overall["mIoU"] == pytest.approx((0.8 + 0.0) / 2)  # class 1 is predicted, so it counts
    assert per_class[1]["F_present"] is None
