"""Label maps and panoptic PNGs: read -> write -> read is the identity, and what is not one is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import LimitError, MaskError
from bpr_service.masks.encoding import mask_picture_like
from bpr_service.masks.label_maps import (
    read_label_map,
    read_panoptic_png,
    write_label_map,
    write_panoptic_png,
)
from bpr_service.masks.mask import Mask

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("top", [1, 255, 256, 65535])
def test_label_map_round_trip(tmp_path: Path, top: int) -> None:
    labels = RNG.integers(0, top + 1, (9, 5))
    labels[0, 0] = top
    write_label_map(tmp_path / "a.png", labels)
    again = read_label_map(tmp_path / "a.png")
    assert again.dtype == (np.uint8 if top < 256 else np.uint16)
    np.testing.assert_array_equal(again, labels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_palette_png_keeps_indices(tmp_path: Path) -> None:
    labels = RNG.integers(0, 3, (9, 5)).astype(np.uint8)
    write_label_map(tmp_path / "a.png", labels, palette=[(9, 9, 9), (0, 0, 0), (255, 0, 0)])
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)


def test_panoptic_round_trip_and_byte_order(tmp_path: Path) -> None:
    ids = RNG.integers(0, 1 << 24, (9, 5)).astype(np.int32)
    write_panoptic_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), ids)
    red, green, blue = Image.open(tmp_path / "a.png").split()
    total = sum(np.asarray(c).astype(int) << s for c, s in ((red, 0), (green, 8), (blue, 16)))
    np.testing.assert_array_equal(total, ids)


def _png(array: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def test_the_wrong_kind_of_png() -> None:
    with pytest.raises(MaskError, match="not a label map"):
        read_label_map(_png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(MaskError, match="not a panoptic PNG"):
        read_panoptic_png(_png(np.zeros((4, 4), np.uint8)))
    whole = _png(RNG.integers(0, 256, (64, 64)).astype(np.uint8))
    with pytest.raises(MaskError, match="damaged"):
        read_label_map(whole[: len(whole) // 2])
    with pytest.raises(LimitError):
        read_label_map(whole, max_pixels=100)


@pytest.mark.parametrize(
    "array", [np.full((2, 2), -1), np.full((2, 2), 1 << 16), np.zeros((2, 2)), np.zeros((2, 2, 3), int)]
)
def test_labels_that_do_not_fit_write_nothing(tmp_path: Path, array: Any) -> None:
    with pytest.raises(MaskError):
        write_label_map(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.full((2, 2), -1), np.full((2, 2), 1 << 24), np.zeros((2, 2))])
def test_ids_that_do_not_fit_write_nothing(tmp_path: Path, array: Any) -> None:
    with pytest.raises(MaskError):
        write_panoptic_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_label_map(tmp_path / "a.png", np.ones((2, 2), int))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_label_map(tmp_path / "a.png", np.zeros((2, 2), int))
    assert read_label_map(tmp_path / "a.png").all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def _file(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


SHAPE = np.zeros((8, 10), np.uint8)
SHAPE[2:5, 2:6] = 1
GRAY = Image.fromarray(SHAPE * 255)
ON_EARTH = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 500000.0, 4e6, 0.0), 42113: "0"}


@pytest.mark.parametrize(
    ("data", "mode", "kind"),
    [
        (_file(GRAY.convert("CMYK"), "TIFF"), "CMYK", "TIFF"),
        (_file(GRAY.convert("RGB"), "WEBP", lossless=True), "RGB", "WEBP"),
        (_file(GRAY.convert("1"), "TIFF", compression="group4"), "1", "TIFF"),
        (_file(GRAY, "PPM"), "L", "PPM"),
        (_file(GRAY.convert("LA"), "PNG"), "LA", "PNG"),
        (_file(GRAY, "TIFF", tiffinfo=ON_EARTH, compression="tiff_lzw"), "L", "TIFF"),
    ],
)
def test_a_mask_keeps_its_file_type_mode_and_place_on_earth(data: bytes, mode: str, kind: str) -> None:
    assert np.array_equal(Mask.from_png(data).to_array(), SHAPE)
    new = SHAPE.copy()
    new[6] = 1
    out = mask_picture_like(data, Mask.from_array(new))
    assert np.array_equal(Mask.from_png(out).to_array(), new)
    with Image.open(io.BytesIO(out)) as after, Image.open(io.BytesIO(data)) as before:
        assert (after.mode, after.format) == (mode, kind)
        if kind == "TIFF":
            ours, theirs = getattr(after, "tag_v2", {}), getattr(before, "tag_v2", {})
            assert after.info.get("compression") == before.info.get("compression")
            assert {tag: ours.get(tag) for tag in ON_EARTH} == {tag: theirs.get(tag) for tag in ON_EARTH}


def test_masks_that_would_lose_something_are_refused() -> None:
    with pytest.raises(MaskError, match="2 pages"):
        Mask.from_png(_file(GRAY, "TIFF", save_all=True, append_images=[GRAY]))
    blocks = Image.fromarray(np.kron(SHAPE, np.ones((8, 8), np.uint8)) * 255)
    data = _file(blocks, "JPEG", quality=100)
    mask = Mask.from_png(data)
    with pytest.raises(MaskError, match="JPEG"):
        mask_picture_like(data, Mask.from_array(1 - mask.to_array()))
