"""What a PNG means: two values are a mask and come back as those two; more values are read as they are said to be."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from bpr_service.client import Client
from bpr_service.errors import MaskError
from bpr_service.refine.labels.soft_labels import SoftLabels
from tests.doors import kind
from tests.doors.doors import Doors, b64, blob, photo, saved

PNGS, SOFT = "3 what a PNG means", "soft masks"


def palette_png(array: np.ndarray, mode: str = "P") -> bytes:
    picture = Image.fromarray(array)
    if mode == "P":
        picture.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def look(data: bytes) -> tuple[str, np.ndarray, list[int] | None]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.mode, np.asarray(picture), picture.getpalette()


def alpha_png() -> bytes:
    rgba = np.zeros((*blob().shape, 4), np.uint8)
    rgba[blob() > 0] = (10, 200, 30, 255)
    return saved(rgba)


MASKS = {
    "0 and 1": saved(blob()),
    "0 and 255": saved(blob() * 255),
    "one bit": saved(blob().astype(bool)),
    "palette": palette_png(blob() * 3),
    "colour and alpha": alpha_png(),
    "16 bit": saved(blob().astype(np.uint16) * 4000),
}


@pytest.mark.parametrize("name", MASKS)
@kind(PNGS, "refine", "batch", "http")
def test_two_values_come_back_as_the_same_two(doors: Doors, door: str, name: str) -> None:
    given = MASKS[name]
    if door == "http":
        (entry,) = doors.http(saved(photo()), [{"segmentation": {"png": b64(given)}}])
        found = base64.b64decode(entry["segmentation"]["png"])
    else:
        options = ("--format", "png") if door == "batch" else ()
        found = getattr(doors, door)(saved(photo()), given, "a.png", *options)
    before, after = look(given), look(found)
    assert found != given
    assert (after[0], after[2]) == (before[0], before[2])
    kinds = {tuple(v) for v in np.unique(before[1].reshape(before[1].shape[0] * before[1].shape[1], -1), axis=0)}
    assert {tuple(v) for v in np.unique(after[1].reshape(-1, len(next(iter(kinds)))), axis=0)} == kinds


@kind(PNGS, "python", "refine", "batch", "http", "client")
def test_more_values_are_refused_with_the_ways_to_read_them(doors: Doors, door: str) -> None:
    ids = blob() * 2 + blob(20, -30) * 5
    readings = "instance ids .*classes .*probabilities"
    if door == "python":
        with pytest.raises(MaskError, match=readings):
            doors.refiner().refine(photo(), [ids])
        return
    if door == "client":
        with Client(doors.server.url) as client, pytest.raises(MaskError, match=readings):
            client.refine(photo(), [saved(ids)])
        return
    if door == "http":
        body = {"image": {"data": b64(saved(photo()))}, "masks": [{"segmentation": {"png": b64(saved(ids))}}]}
        text = doors.post(body, code=422)["detail"]
    else:
        options = ("--format", "png") if door == "batch" else ()
        getattr(doors, door)(saved(photo()), saved(ids), "a.png", *options, code=1 if door == "batch" else 2)
        text = doors.said.stderr
    for word in ("instance ids", "classes", "probabilities"):
        assert word in " ".join(text.split())


@kind(PNGS, "python", "refine", "batch", "http", "client")
def test_instance_ids_stay_ids(doors: Doors, door: str) -> None:
    ids = blob() * 2 + (1 - blob()) * blob(20, -30) * 5
    given = palette_png(ids)
    if door == "python":
        found = doors.refiner().refine_labels(photo(), ids).label_map
    elif door == "client":
        with Client(doors.server.url) as client:
            found = client.refine_labels(photo(), given).label_map
    elif door == "http":
        answer = doors.post({"image": {"data": b64(saved(photo()))}, "label_map": {"data": b64(given)}})
        assert [mask["id"] for mask in answer["masks"] if mask["id"]] == [2, 5]
        mode, found, palette = look(base64.b64decode(answer["label_map"]["data"]))
        assert (mode, palette) == (look(given)[0], look(given)[2])
    else:
        options = ("--task", "labels") if door == "refine" else ("--format", "ids")
        mode, found, palette = look(getattr(doors, door)(saved(photo()), given, "a.png", *options))
        assert (mode, palette) == (look(given)[0], look(given)[2])
    assert set(np.unique(found)) == {0, 2, 5}
    assert (found != ids).any()


@kind(PNGS, "refine", "batch", "http")
def test_0_and_255_in_a_semantic_map_are_a_mask(doors: Doors, door: str) -> None:
    given = saved(blob() * 255)
    if door == "http":
        body = {"image": {"data": b64(saved(photo()))}, "label_map": {"data": b64(given)}}
        answer = doors.post(body, "semantic")
        found, said = base64.b64decode(answer["label_map"]["data"]), str(answer["warnings"])
        kept = doors.post({**body, "options": {"ignore_label": 255}}, "semantic")["label_map"]["data"]
        assert base64.b64decode(kept) == given
    elif door == "refine":
        found = doors.refine(saved(photo()), given, "a.png", "--task", "semantic")
        said = doors.said.stderr
        assert doors.refine(saved(photo()), given, "a.png", "--task=semantic", "--ignore-label=255") == given
    else:
        found = doors.batch(saved(photo()), given, "a.png", task="semantic")
        said = str(doors.report["warnings"])
        assert doors.batch(saved(photo()), given, "a.png", "--ignore-label=255", task="semantic") == given
    assert "refined as a binary mask" in said
    assert set(np.unique(look(found)[1])) == {0, 255}
    assert found != given


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, probability=array)
    return stream.getvalue()


MATTE = np.where(blob() > 0, 0.9, 0.3)
LOGITS = np.where(blob() > 0, 2.0, -1.0).astype(np.float32)
SOFTS = {
    "a.png": (saved(np.rint(MATTE * 255).astype(np.uint8)), MATTE, ()),
    "b.png": (saved(np.rint(MATTE * 65535).astype(np.uint16)), MATTE, ()),
    "c.npy": (npy(MATTE.astype(np.float16)), MATTE.astype(np.float16), ()),
    "d.npz": (npz(MATTE), MATTE, ()),
    "e.npy": (npy(LOGITS), 1 / (1 + np.exp(-LOGITS)), ("--logits",)),
}


def values(data: bytes) -> np.ndarray:
    if data.startswith((b"PK", b"\x93NUMPY")):
        found = np.load(io.BytesIO(data))
        return found if isinstance(found, np.ndarray) else found["probability"]
    return look(data)[1]


@pytest.mark.parametrize("name", SOFTS)
@kind(SOFT, "refine", "batch")
def test_soft_masks_are_cut_at_one_half_and_come_back_soft(doors: Doors, door: str, name: str) -> None:
    given, probabilities, options = SOFTS[name]
    doors.file(f"images/{name[0]}.png", saved(photo()))
    how = ("--task", "soft") if door == "refine" else ("--format", "soft")
    found = getattr(doors, door)(saved(photo()), given, name, *how, *options)
    before, after = values(given), values(found)
    assert after.dtype == before.dtype
    changed = after != before
    half = 0 if options else np.iinfo(before.dtype).max / 2 if before.dtype.kind == "u" else 0.5
    expected = doors.refiner().refine(photo(), [probabilities]).masks[0].to_array()
    assert np.array_equal(after > half, expected > 0)
    assert 0 < changed.sum() < blob().size / 2
    assert len(np.unique(after[changed])) <= 2


@kind(SOFT, "http", "client")
def test_soft_pngs_over_http(doors: Doors, door: str) -> None:
    given = saved(np.rint(MATTE * 255).astype(np.uint8))
    mask = {"segmentation": {"png": b64(given), "soft": True}}
    if door == "client":
        with Client(doors.server.url) as client:
            found = client.refine(photo(), [mask]).masks[0].to_array()
    else:
        (entry,) = doors.http(saved(photo()), [mask])
        assert entry["segmentation"]["soft"] is True
        found = (look(base64.b64decode(entry["segmentation"]["png"]))[1] >= 128).astype(np.uint8)
    hard = doors.server.engine.lane(None).refiner.refine(photo(), [MATTE]).masks[0].to_array()
    assert np.array_equal(found, hard)


@pytest.mark.parametrize(
    ("name", "array", "word"),
    [
        ("a.npy", np.where(blob() > 0, np.nan, 0.2), "nan"),
        ("a.npy", LOGITS, "logits"),
        ("a.npy", np.zeros((2, *blob().shape)), "shape (2, 80, 104)"),
        ("a.npy", np.array([{"x": 1}], object), "NumPy file that cannot be read"),
    ],
)
@kind(SOFT, "refine", "batch")
def test_what_is_no_probability_is_refused(doors: Doors, door: str, name: str, array: np.ndarray, word: str) -> None:
    how = ("--task", "soft") if door == "refine" else ("--format", "soft")
    getattr(doors, door)(saved(photo()), npy(array), name, *how, code=2 if door == "refine" else 1)
    assert word in " ".join(doors.said.stderr.split())


CLASSES = np.stack([0.95 - MATTE, MATTE, np.full_like(MATTE, 0.05)]).astype(np.float16).astype(np.float32)
"""Three classes; the second is the blob's, of the argmax where its probability is above .475."""


@pytest.mark.parametrize(
    ("name", "given", "options"),
    [
        ("a.npy", npy(CLASSES), ()),
        ("a.npz", npz(CLASSES.astype(np.float16)), ("--classes=3",)),
        ("a.npy", npy(np.log(CLASSES) + 5), ("--logits",)),
    ],
)
@kind(SOFT, "refine", "batch")
def test_classes_come_back_as_probabilities(
    doors: Doors, door: str, name: str, given: bytes, options: tuple[str, ...]
) -> None:
    if door == "refine":
        found = doors.refine(saved(photo()), given, name, "--task", "semantic", *options)
    else:
        found = doors.batch(saved(photo()), given, name, "--format", "soft", *options, task="semantic")
    before, after = values(given), values(found)
    assert after.dtype == before.dtype
    soft = SoftLabels.from_array(before, logits="--logits" in options)
    expected = doors.refiner().refine_semantic(photo(), soft).label_map
    np.testing.assert_array_equal(after.argmax(0), expected)
    changed = expected != before.argmax(0)
    assert changed.any()
    np.testing.assert_array_equal(after[:, ~changed], before[:, ~changed])


@pytest.mark.parametrize(
    ("array", "options", "word"),
    [
        (np.where(CLASSES > 0.6, np.nan, CLASSES), (), "got NaN"),
        (np.log(CLASSES), (), "Apply a softmax over the classes"),
        (CLASSES[:, :-1], (), "another size than the image"),
        (np.moveaxis(CLASSES, 0, -1), (), "numpy.moveaxis(array, -1, 0)"),
        (CLASSES, ("--classes=4",), "expected 4 channels, one a class, got 3"),
        (MATTE, (), "not a map of probabilities"),
    ],
)
@kind(SOFT, "refine", "batch")
def test_what_is_no_map_of_probabilities_is_refused(
    doors: Doors, door: str, array: np.ndarray, options: tuple[str, ...], word: str
) -> None:
    if door == "refine":
        doors.refine(saved(photo()), npy(array), "a.npy", "--task=semantic", *options, code=2)
        assert not (doors.folder / "out" / "a.npy").exists()
    else:
        doors.batch(saved(photo()), npy(array), "a.npy", "--format=soft", *options, task="semantic", code=1)
    assert word in " ".join((doors.said.stderr + doors.said.stdout).split())


@kind(SOFT, "http", "client")
def test_classes_over_http(doors: Doors, door: str) -> None:
    """Complete probabilities give the same map; what partial ones leave is the rest."""
    if door == "client":
        with Client(doors.server.url) as client:
            found = client.refine_semantic(photo(), CLASSES).label_map
    else:
        pngs = [{"png": b64(saved(np.rint(level * 255).astype(np.uint8))), "soft": True} for level in CLASSES]
        body = {"image": {"data": b64(saved(photo()))}}
        masks = [{"category_id": i, "segmentation": each} for i, each in enumerate(pngs)]
        answer = doors.post({**body, "masks": masks}, "semantic")
        found = look(base64.b64decode(answer["label_map"]["data"]))[1]
        entries = [look(base64.b64decode(mask["segmentation"]["png"]))[1] for mask in answer["masks"]]
        np.testing.assert_array_equal(np.argmax(entries, 0)[found < 255], found[found < 255])
        partial = doors.post({**body, "masks": [masks[1], masks[2]]}, "semantic")
        rest = look(base64.b64decode(partial["label_map"]["data"]))[1] == 255
        assert rest.sum() > blob().size / 2
    engine = doors.server.engine.lane(None).refiner
    np.testing.assert_array_equal(found, engine.refine_semantic(photo(), CLASSES).label_map)
    assert (found != CLASSES.argmax(0)).any()


@kind(SOFT, "python")
def test_probabilities_in_python(doors: Doors) -> None:
    soft, hard = (doors.refiner().refine(photo(), [mask]).masks[0].to_array() for mask in (MATTE, blob()))
    assert soft.sum() < blob().size / 2, "a matte that is cut above 0 fills the image"
    assert (soft != hard).any(), "the model sees the probabilities"
    for bad in (np.where(blob() > 0, np.nan, 0.2), LOGITS):
        with pytest.raises(MaskError, match="probabilities in"):
            doors.refiner().refine(photo(), [bad])
