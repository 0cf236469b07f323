"""Label maps of probabilities: what the likeliest class is, what is refused, and how a refined map is written back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpr_service.errors import LimitError, MaskError
from bpr_service.refine.labels.soft_labels import SoftLabels, with_labels

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (5, 130, 9)).astype(np.float32)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_each_pixel_is_of_the_likeliest_class(dtype: Any) -> None:
    given = SOFTMAX.astype(dtype)
    soft = SoftLabels.from_array(given, classes=(7, 0, 300, 2, 1))
    np.testing.assert_array_equal(soft.labels, np.array([7, 0, 300, 2, 1])[given.argmax(0)])
    assert soft.labels.dtype == np.uint16
    assert np.abs(soft.levels - 255.0 * given).max() <= 0.51


def test_logits_are_those_of_a_softmax() -> None:
    soft = SoftLabels.from_array(LOGITS, logits=True)
    np.testing.assert_array_equal(soft.labels, LOGITS.argmax(0))
    assert np.abs(soft.levels - 255.0 * SOFTMAX).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_scaled_integers_are_probabilities(dtype: Any) -> None:
    scaled = np.rint(SOFTMAX * np.iinfo(dtype).max).astype(dtype)
    assert np.abs(SoftLabels.from_array(scaled).levels - 255.0 * SOFTMAX).max() <= 1.01


def test_a_pixel_without_a_class_is_ignored() -> None:
    given = SOFTMAX.copy()
    given[:, 100:] = 0
    assert (SoftLabels.from_array(given, ignore_label=77).labels == 77).sum() == 30 * 9
    with pytest.raises(MaskError, match="a pixel without a class"):
        SoftLabels.from_array(given, ignore_label=None)


@pytest.mark.parametrize(
    ("given", "options", "word"),
    [
        (np.where(SOFTMAX > 0.9, np.nan, SOFTMAX), {}, "got NaN"),
        (np.where(LOGITS > 3, np.inf, LOGITS), {"logits": True}, "got NaN"),
        (LOGITS, {}, "Apply a softmax"),
        (-SOFTMAX, {}, "out of range"),
        (SOFTMAX[0], {}, "soft mask of one thing"),
        (SOFTMAX[:1], {}, "soft mask of one thing"),
        (SOFTMAX[None], {}, "one picture's at a time"),
        (SOFTMAX, {"size": (130, 10)}, "Scale it to the image"),
        (np.moveaxis(SOFTMAX, 0, -1), {"size": (130, 9)}, r"moveaxis\(array, -1, 0\)"),
        (SOFTMAX, {"classes": range(6)}, "expected 6 channels, one a class, got 5"),
        (SOFTMAX, {"classes": (0, 1, 2, 2, 3)}, "expected each once"),
        (LOGITS.astype(np.int32), {}, "probabilities of another type"),
        (SOFTMAX.astype(object), {}, "probabilities of another type"),
    ],
)
def test_what_is_no_map_of_probabilities_is_refused(given: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(MaskError, match=word):
        SoftLabels.from_array(given, **options)


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(LimitError):
        SoftLabels.from_array(SOFTMAX, max_pixels=130 * 9 - 1)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_a_refined_map_is_written_where_it_is_new(dtype: Any, logits: bool) -> None:
    if logits and dtype == np.uint8:
        given = LOGITS.astype(np.float64)
    else:
        given = (LOGITS if logits else SOFTMAX * (255 if dtype == np.uint8 else 1)).astype(dtype)
    soft = SoftLabels.from_array(given, classes=(3, 1, 0, 9, 4), logits=logits)
    refined = soft.labels.copy()
    refined[20:40] = 9
    new = with_labels(soft, given, refined, logits=logits)
    again = SoftLabels.from_array(new, classes=(3, 1, 0, 9, 4), logits=logits)
    np.testing.assert_array_equal(again.labels, refined)
    changed = refined != soft.labels
    assert changed.any()
    np.testing.assert_array_equal(new[:, ~changed], given[:, ~changed])
    assert new.dtype == given.dtype
    assert (again.levels[3][changed] > 250).all()
