"""The val sets of other domains: coarse masks simulated and real, hard and soft, right; pictures enlarged and blank.

Simulated coarse masks are drawn from fixed seeds, so that every run measures the same. The sets by name: ``NAME`` (a
folder of ``more/``, coarse masks as mask heads, strides and annotators leave them), ``NAME_exact`` (the truth is the
coarse mask), ``davis_deeplab`` and ``penn_deeplab`` (a real network's), ``davis_soft`` and ``penn_soft`` (a real
network's probabilities), ``glas_unet``, ``lung_unet``, ``smear_unet`` (real, the truth a judgement), ``ccp_soft``
(simulated probabilities), ``ccp_x3`` (picture and masks enlarged), ``blank`` (right masks over pictures that show
nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from quality_sets import Item, instance_items

from bpr_service.masks.mask import Mask

DOMAINS = ("davis", "penn", "cwfid", "wbc", "carparts", "rock_ct", "vessels", "glas", "lung", "smear")
IN_PIECES = ("cwfid", "rock_ct", "glas", "smear")
"""Domains whose masks hold many objects: each connected piece is a mask."""
UNETS = ("glas", "lung", "smear")
MASKS_AN_IMAGE = 6
LEAST_PX = 64
ENLARGED = 3
BLANKS = ("white", "grey", "noise", "gradient")
SIMULATED = {"roi_grid": 0.45, "stride": 0.2, "polygon": 0.1, "warp": 0.1, "morphology": 0.07, "lumps": 0.05}
SEED = 20_220_701

DOMAIN_SETS = (
    *DOMAINS,
    *(f"{name}_exact" for name in DOMAINS),
    "davis_deeplab", "penn_deeplab", "davis_soft", "penn_soft", *(f"{name}_unet" for name in UNETS),
    "ccp_soft", "ccp_x3", "blank",
)  # fmt: skip


def domain_items(data: Path, name: str) -> list[Item]:
    """The images of a set of `DOMAIN_SETS`, in the order of their names."""
    ccp, real = data / "ccp", data / "coarse" / "real"
    domain, _, kind = name.rpartition("_") if name not in DOMAINS else (name, "", "simulated")
    val = data / "more" / domain / "val"
    if kind == "deeplab":
        results = real / f"{domain}_val_deeplab.json"
        items = list(instance_items(name, real / f"{domain}_val_gt.json", results, val / "images"))
    elif name == "ccp_x3":
        items = list(instance_items(name, ccp / "instances_val.json", data / "coarse" / "ccp_val.json", ccp / "images"))
        items = [with_payload(item, enlarge=ENLARGED, most=4) for item in items]
    elif name in ("ccp_soft", "blank"):
        source = "soft" if name == "ccp_soft" else "truth"
        items = list(instance_items(name, ccp / "instances_val.json", Path(), ccp / "images", source=source))
        items = [with_payload(item, most=MASKS_AN_IMAGE) for item in items]
        if name == "blank":
            items = [
                with_payload(item, picture=BLANKS[crc32(item.image.stem.encode()) % len(BLANKS)]) for item in items
            ]
    elif kind == "soft":
        items = list(_png_items(name, val, real / f"{domain}_val_soft", "probabilities"))
    elif kind == "unet":
        items = list(_png_items(name, val, val / "coarse", "hard"))
    else:
        items = list(_png_items(name, val, None, kind, domain in IN_PIECES))
    return [
        with_group(item, item.image.stem.rsplit("_", 1)[0] if domain == "davis" else item.image.stem) for item in items
    ]


def with_payload(item: Item, **more: Any) -> Item:
    """An item with more in its payload."""
    return Item(item.set, item.kind, item.image, {**item.payload, **more}, item.group)


def with_group(item: Item, group: str) -> Item:
    """An item of a group: images of one group resemble each other, and are drawn together by the bootstrap."""
    return Item(item.set, item.kind, item.image, item.payload, group)


def _png_items(name: str, val: Path, coarse: Path | None, source: str, in_pieces: bool = False) -> Iterator[Item]:
    for path in sorted((val / "masks").glob("*.png")):
        if coarse is not None and not (coarse / path.name).is_file():
            continue
        (image,) = (val / "images").glob(f"{path.stem}.*")
        payload = {"ids": str(path), "coarse": str(coarse / path.name) if coarse else "", "source": source}
        yield Item(name, "instance", image, {**payload, "in_pieces": in_pieces, "most": MASKS_AN_IMAGE})


# ---- the pairs of an item -------------------------------------------------------------------------------------------


def png_pairs(item: Item) -> tuple[list[Mask], list[Mask]]:
    """Coarse and true masks of an item of PNGs, in step."""
    p = item.payload
    ids = _read(p["ids"])
    if p["coarse"]:
        return [_given(_read(p["coarse"]), p["source"])], [_whole((ids > 0).astype(np.uint8))]
    truth = [_whole(mask) for mask in _objects(ids, p["in_pieces"])]
    truth = [truth[k] for k in chosen(len(truth), p["most"], item)]
    if p["source"] == "exact":
        return list(truth), truth
    return [simulated(mask, item, k) for k, mask in enumerate(truth)], truth


def _read(path: str) -> NDArray[np.uint8]:
    ids = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert ids is not None, path
    assert ids.ndim == 2, path
    return np.asarray(ids, np.uint8)


def _whole(frame: NDArray[np.uint8]) -> Mask:
    return Mask.from_window(frame, 0, 0, frame.shape[0], frame.shape[1])


def _given(levels: NDArray[np.uint8], source: str) -> Mask:
    if source == "hard":
        return _whole((levels > 0).astype(np.uint8))
    height, width = levels.shape
    return Mask(height, width, 0, 0, (levels >= 128).astype(np.uint8), levels)


def _objects(ids: NDArray[np.uint8], in_pieces: bool) -> list[NDArray[np.uint8]]:
    found = []
    for one in np.unique(ids[(ids > 0) & (ids < 255)]):
        mask = (ids == one).astype(np.uint8)
        if not in_pieces:
            found.append(mask)
            continue
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        found += [(pieces == k).astype(np.uint8) for k in range(1, count) if stats[k, 4] >= LEAST_PX]
    return [mask for mask in found if LEAST_PX <= int(mask.sum()) <= 0.9 * mask.size]


def chosen(count: int, most: int, item: Item) -> list[int]:
    """Which of an image's masks are measured: at most so many, the same whenever it is asked."""
    rng = np.random.default_rng([SEED, crc32(item.image.stem.encode())])
    return sorted(rng.permutation(count)[:most].tolist())


def simulated(truth: Mask, item: Item, number: int, *, soft: bool = False) -> Mask:
    """A coarse mask of a true one, the same whenever it is asked for; with its probabilities where asked."""
    from refiner_training.data.simulate import coarse_mask

    margin = 40
    x0, y0, x1, y1 = truth.box
    x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
    x1, y1 = min(x1 + margin, truth.width), min(y1 + margin, truth.height)
    rng = np.random.default_rng([SEED, crc32(item.image.stem.encode()), number])
    values, _ = coarse_mask(truth.window(x0, y0, x1, y1), rng, SIMULATED)
    if not soft:
        return Mask.from_window((values > 0.5).astype(np.uint8), x0, y0, truth.height, truth.width)
    levels = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return Mask(truth.height, truth.width, x0, y0, (levels >= 128).astype(np.uint8), levels)


def enlarged(mask: Mask, times: int) -> Mask:
    """A mask of a picture enlarged so many times, by nearest neighbour."""
    crop = np.repeat(np.repeat(mask.crop, times, 0), times, 1)
    return Mask(mask.height * times, mask.width * times, mask.x * times, mask.y * times, crop)


# ---- pictures -------------------------------------------------------------------------------------------------------


def shown(image: NDArray[np.uint8], payload: dict[str, Any]) -> NDArray[np.uint8]:
    """The picture of an item: as it is, enlarged, or one that shows nothing."""
    height, width = image.shape[:2]
    if payload.get("enlarge"):
        times = payload["enlarge"]
        size = (width * times, height * times)
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    if not payload.get("picture"):
        return image
    make: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "white": lambda: np.full_like(image, 255),
        "grey": lambda: np.full_like(image, 118),
        "noise": lambda: np.random.default_rng(SEED).integers(0, 256, image.shape).astype(np.uint8),
        "gradient": lambda: np.repeat(np.tile(np.linspace(0, 255, width), (height, 1))[..., None], 3, 2).astype(
            np.uint8
        ),
    }
    return make[payload["picture"]]()
