"""Masks in and out, against pycocotools on full frames."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from bpr_service.errors import LimitError, MaskError
from bpr_service.masks.mask import Mask, as_mask

Frame = NDArray[np.uint8]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def frames() -> list[Frame]:
    """Small frames of many kinds: noise, blobs, empty, full, one pixel, bands that touch the borders."""
    rng = np.random.default_rng(0)
    out: list[Frame] = [np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8), np.ones((5, 7), np.uint8)]
    for size in ((1, 9), (9, 1), (6, 6)):
        one = np.zeros(size, np.uint8)
        one[size[0] // 2, size[1] // 2] = 1
        out.append(one)
    for i in range(120):
        height, width = rng.integers(1, 40, 2)
        noise = rng.random((height, width))
        frame = (cv2.blur(noise, (5, 5)).reshape(height, width) > 0.5) if i % 2 else noise > rng.random()
        frame[: height // 3 * (i % 3 == 0)] = False
        frame[:, : width // 2 * (i % 5 == 0)] = False
        frame[height - height // 3 * (i % 7 == 0) :] = False
        out.append(frame.astype(np.uint8))
    return out


@pytest.mark.parametrize("kind", ["str", "bytes", "list"])
def test_rle_equals_pycocotools_both_ways(kind: str) -> None:
    for frame in frames():
        height, width = frame.shape
        oracle = coco.encode(np.asfortranarray(frame))["counts"]
        mask = Mask.from_array(frame)
        assert mask.to_rle()["counts"] == oracle.decode()
        counts: Any = {
            "str": oracle.decode(),
            "bytes": oracle,
            "list": mask.to_rle(compressed=False)["counts"],
        }
        again = Mask.from_rle({"size": [height, width], "counts": counts[kind]})
        assert_array_equal(again.to_array(), frame)
        assert again.area == frame.sum()
        assert again.bbox == coco.toBbox({"size": [height, width], "counts": oracle}).tolist()


def test_uncompressed_runs_equal_pycocotools() -> None:
    for frame in frames():
        height, width = frame.shape
        rle = Mask.from_array(frame).to_rle(compressed=False)
        assert coco.frPyObjects(rle, height, width)["counts"] == coco.encode(np.asfortranarray(frame))["counts"]


def test_polygons_are_rasterised_as_pycocotools_does_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(1, 200, 2))
        parts = [np.round(rng.uniform(-30, 230, 2 * rng.integers(3, 9)), 1).tolist() for _ in range(rng.integers(1, 4))]
        oracle = coco.decode(coco.merge(coco.frPyObjects(parts, height, width)))
        assert_array_equal(Mask.from_polygons(parts, height, width).to_array(), oracle)


def test_polygons_give_the_mask_back_with_its_holes_filled() -> None:
    for frame in frames():
        if not frame.any():
            assert Mask.from_array(frame).to_polygons() == []
            continue
        again = Mask.from_polygons(Mask.from_array(frame).to_polygons(), *frame.shape).to_array()
        filled = ndimage.binary_fill_holes(frame, structure=np.ones((3, 3)))
        assert_array_equal(again, filled)


def test_window_reads_zero_outside() -> None:
    frame = frames()[-1]
    padded = np.pad(frame, 50)
    mask = Mask.from_array(frame)
    for x0, y0, x1, y1 in ((-9, -7, 20, 31), (3, 2, 8, 9), (-40, -40, -10, -10), (2, 3, 90, 80)):
        expected = padded[y0 + 50 : y1 + 50, x0 + 50 : x1 + 50]
        assert_array_equal(mask.window(x0, y0, x1, y1)[: expected.shape[0], : expected.shape[1]], expected)


def test_crop_is_tight_and_empty_masks_have_none() -> None:
    for frame in frames():
        mask = Mask.from_array(frame)
        x0, y0, x1, y1 = mask.box
        assert mask.crop.shape == (y1 - y0, x1 - x0)
        assert mask.is_empty == (not frame.any())


def test_png_round_trip_and_kinds() -> None:
    frame = frames()[20]
    assert_array_equal(Mask.from_png(Mask.from_array(frame).to_png()).to_array(), frame)
    for picture in (
        Image.fromarray(frame.astype(bool)),
        Image.fromarray(frame * np.uint8(7)),
        Image.fromarray((frame * np.uint16(300)).astype(np.uint16)),
        Image.fromarray(np.repeat(frame[:, :, None] * np.uint8(255), 3, 2)),
        Image.fromarray(np.concatenate([np.repeat(frame[:, :, None] * 255, 3, 2), 255 + 0 * frame[:, :, None]], 2)),
    ):
        assert_array_equal(Mask.from_png(_png(picture)).to_array(), frame)
    palette = Image.fromarray(frame)
    palette.putpalette([255, 255, 255, 0, 0, 0])  # index 1 is black, and is still foreground
    assert_array_equal(Mask.from_png(_png(palette)).to_array(), frame)


@pytest.mark.parametrize("depth", [8, 16])
def test_soft_masks_keep_probabilities_and_their_binary_form(depth: int) -> None:
    rng = np.random.default_rng(2)
    top = (1 << depth) - 1
    levels: Any = rng.integers(0, top + 1, (13, 17)).astype(np.uint8 if depth == 8 else np.uint16)
    mask = Mask.from_png(_png(Image.fromarray(levels)), soft=True)
    assert_array_equal(mask.to_array(), levels.astype(float) / top >= 0.5)
    assert mask.soft is not None
    np.testing.assert_allclose(mask.soft / 255, (levels / top)[mask.y :, mask.x :], atol=0.5 / 255 + 1e-6)
    floats = Mask.from_array(levels / top)
    assert_array_equal(floats.crop, mask.crop)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


GOOD = {"size": [4, 5], "counts": [3, 4, 13]}


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ({"size": [4, 5], "counts": [3, 4, 12]}, "do not add up"),
        ({"size": [4, 5], "counts": [3, -4, 21]}, "negative"),
        ({"size": [4, 5], "counts": [1 << 62, 1 << 62, 1 << 62, 1 << 62, 20]}, "do not add up"),
        ({"size": [4, 5], "counts": [3.5, 16.5]}, "counts"),
        ({"size": [4, 5], "counts": [[3], [4, 13]]}, "counts"),
        ({"size": [4, 5], "counts": "3~"}, "damaged"),
        ({"size": [4, 5], "counts": "3P"}, "damaged"),  # the last group is not closed
        ({"size": [4, 5], "counts": "34<"}, "do not add up"),
        ({"size": [4, 5]}, "not an RLE"),
        ({"size": [4], "counts": [20]}, "not an RLE"),
        ({"size": [0, 5], "counts": []}, "not an RLE"),
        ({"size": ["4", 5], "counts": [20]}, "not an RLE"),
        ("text", "not an RLE"),
    ],
)
def test_bad_rle(rle: Any, says: str) -> None:
    with pytest.raises(MaskError, match=says) as caught:
        Mask.from_rle(rle)
    assert caught.value.expected
    assert caught.value.got
    assert caught.value.fix


def test_a_huge_rle_is_refused_before_anything_is_made() -> None:
    size = 1 << 30
    with pytest.raises(LimitError, match="too large"):
        Mask.from_rle({"size": [size, size], "counts": [0, size * size]})


@pytest.mark.parametrize(
    ("polygons", "says"),
    [
        ([[1, 1, 5, 5]], "three points"),
        ([[1, 1, 5, 5, 2]], "even number"),
        ([[1, 1, 5, 5, float("nan"), 2]], "finite"),
        ([[1, 1, 5, float("inf"), 3, 2]], "finite"),
        ([[1, 1, 5, 1e9, 3, 2]], "near the"),
        ([["a", "b", 1, 2, 3, 4]], "three points"),
        ([], "no polygon"),
    ],
)
def test_bad_polygons(polygons: Any, says: str) -> None:
    with pytest.raises(MaskError, match=says):
        Mask.from_polygons(polygons, 20, 30)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 3, 4)), "not a mask"),
        (np.zeros((0, 4)), "not a mask"),
        (np.array([[0.0, np.nan]]), "out of range"),
        (np.array([[0.0, 1.5]]), "out of range"),
        (np.array([["a"]]), "another type"),
    ],
)
def test_bad_arrays(array: Any, says: str) -> None:
    with pytest.raises(MaskError, match=says):
        Mask.from_array(array)


def test_bad_pngs() -> None:
    data = Mask.from_array(np.eye(64, dtype=np.uint8)).to_png()
    for broken, says in ((data[:60], "damaged"), (b"", "not a picture"), (b"GIF", "not a picture")):
        with pytest.raises(MaskError, match=says):
            Mask.from_png(broken)
    with pytest.raises(LimitError, match="too large"):
        Mask.from_png(data, max_pixels=64 * 64 - 1)
    colour = _png(Image.fromarray(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(MaskError, match="gray"):
        Mask.from_png(colour, soft=True)


def test_a_mask_of_another_size_is_refused_and_a_turned_one_named() -> None:
    with pytest.raises(MaskError, match=r"expected 5 x 4 .* got 4 x 5.*xchange height and width"):
        as_mask(GOOD, 5, 4)
    with pytest.raises(MaskError, match="another size"):
        as_mask(np.zeros((4, 6), bool), 5, 4)
    with pytest.raises(MaskError, match="not a mask"):
        as_mask(3, 5, 4)


def test_as_mask_takes_every_form() -> None:
    frame = np.zeros((6, 8), np.uint8)
    frame[1:4, 2:7] = 1
    mask = Mask.from_array(frame)
    forms = (
        mask,
        frame,
        frame.astype(bool),
        frame.astype(float),
        mask.to_rle(),
        mask.to_rle(False),
        mask.to_png(),
    )
    for form in (*forms, mask.to_polygons(), mask.to_polygons()[0]):
        assert_array_equal(as_mask(form, 6, 8).to_array(), frame)


@pytest.mark.parametrize(
    ("x", "crop"),
    [(3, np.ones((2, 2), np.uint8)), (0, np.ones((2, 2), bool)), (-1, np.ones((1, 1), np.uint8))],
)
def test_a_mask_checks_its_own_parts(x: int, crop: Any) -> None:
    with pytest.raises(MaskError):
        Mask(4, 4, x, 0, crop)
