"""Pictures beyond 8-bit RGB: windows of values, pages, other file types, and pixels that hold no data."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.client import Client
from bpr_service.errors import MaskError
from bpr_service.masks.images import read_image
from tests.doors import kind
from tests.doors.doors import Doors, H, W, b64, blob, photo, saved

PICTURES = "12 pictures"
GRAY = photo()[:, :, 0]


@kind(PICTURES, "refine", "batch", "http", "client")
def test_12_bits_in_16_are_stretched_by_a_window(doors: Doors, door: str) -> None:
    deep = saved(GRAY.astype(np.uint16) * 16)
    window = [0, 4080] if door in ("http", "client") else "0,4080"
    assert np.array_equal(doors.mask(door, deep, blob(), window=window), doors.mask(door, saved(GRAY), blob()))
    dark = doors.mask(door, deep, blob())
    if door != "client":
        said = str(doors.answer["warnings"]) if door == "http" else doors.said.stderr
        assert "comes out nearly black" in " ".join(said.split())
        assert dark.shape == (H, W)


@kind(PICTURES, "refine", "batch", "http", "client")
def test_the_page_of_a_tiff_is_chosen(doors: Doors, door: str) -> None:
    other = np.random.default_rng(5).integers(0, 255, photo().shape, dtype=np.uint8)
    both = saved(other, "TIFF", save_all=True, append_images=[Image.fromarray(photo())])
    assert np.array_equal(doors.mask(door, both, blob(), page=2), doors.mask(door, saved(photo()), blob()))
    assert np.array_equal(doors.mask(door, both, blob()), doors.mask(door, saved(other), blob()))


@pytest.mark.parametrize("file_type", ["AVIF", "WEBP", "TIFF", "MPO", "HEIF"])
@kind(PICTURES, "refine", "batch", "http")
def test_file_types_that_pillow_reads(doors: Doors, door: str, file_type: str) -> None:
    if file_type == "HEIF" and find_spec("pillow_heif") is None:
        pytest.skip("pillow-heif is not installed")
    pages: dict[str, Any] = (
        {"save_all": True, "append_images": [Image.fromarray(255 - photo())]} if file_type == "MPO" else {}
    )
    given = saved(photo(), file_type, **pages)
    assert np.array_equal(doors.mask(door, given, blob()), doors.mask(door, saved(read_image(given)), blob()))


@kind(PICTURES, "python", "refine", "batch", "http", "client")
def test_nothing_changes_where_there_is_no_data(doors: Doors, door: str) -> None:
    valid = np.arange(W) < 62
    given = saved(np.dstack([photo(), np.broadcast_to(valid * 255, (H, W)).astype(np.uint8)]))
    free = doors.mask(door, given, blob())
    assert (free != blob())[:, ~valid].any()
    how = {"valid": np.broadcast_to(valid, (H, W))} if door == "python" else {"no_data": "auto"}
    kept = doors.mask(door, given, blob(), **how)
    assert np.array_equal(kept[:, ~valid], blob()[:, ~valid])
    assert (kept != blob()).any()


@kind(PICTURES, "python", "refine", "batch", "http")
def test_no_label_changes_where_there_is_no_data(doors: Doors, door: str) -> None:
    """Black is no data: told by its value."""
    image, labels = np.maximum(photo(), 1), blob() * 3 + 1
    image[:, 62:] = 0
    if door == "python":
        found = doors.refiner().refine_semantic(image, labels, valid=image.any(axis=2)).label_map
    elif door == "http":
        body = {"image": {"data": b64(saved(image))}, "label_map": {"data": b64(saved(labels))}}
        answer = doors.post({**body, "options": {"no_data": 0}}, "semantic")
        found = look(answer["label_map"]["data"])
        px = [mask["added_px"] - mask["removed_px"] for mask in answer["masks"]]
        assert px == [int((found == label).sum() - (labels == label).sum()) for label in (1, 4)]
    else:
        how = {"task": "semantic"} if door == "batch" else {}
        options = () if door == "batch" else ("--task", "semantic")
        found = look(b64(getattr(doors, door)(saved(image), saved(labels), "a.png", "--no-data", 0, *options, **how)))
    assert np.array_equal(found[:, 62:], labels[:, 62:])
    assert (found != labels).any()


def look(png: str) -> np.ndarray:
    import base64
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@kind(PICTURES, "python", "client")
def test_valid_pixels_of_another_size_are_refused(doors: Doors, door: str) -> None:
    if door == "client":
        with Client(doors.server.url) as client, pytest.raises(Exception, match="no_data"):
            client.refine(photo(), [blob()], no_data="nothing")
        return
    with pytest.raises(MaskError, match="valid pixels is of another size"):
        doors.refiner().refine(photo(), [blob()], valid=np.ones((3, 4)))
