"""The val splits of the corpus with their fixed coarse masks, image by image.

An item is all that a worker process needs to measure one image with every method: paths and undecoded masks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """One image of one set: the kind of measure, its file, and what is needed to make the masks."""

    set: str
    kind: str  # "instance", "semantic", "panoptic"
    image: Path
    payload: dict[str, Any] = field(default_factory=dict)
    group: str = ""  # of images that resemble each other: a video; drawn together by the bootstrap


def instance_items(
    name: str, dataset: Path, results: Path, images: Path, *, source: str = "predictions"
) -> Iterator[Item]:
    """Pairs of a COCO results file and its ground truth.

    Args:
        name: of the set.
        dataset: the ground truth.
        results: the predictions; read where `source` asks for them.
        images: the folder of pictures.
        source: ``predictions``: matched by the key ``gt``, or where it is absent by IoU > 0.5 within a category, the
            best score first. ``truth``: the ground truth itself is the coarse mask. ``blocks``: the ground truth as a
            coarse grid enlarged by nearest neighbour, a kind of error that no recipe trains on. ``soft``: simulated
            probabilities.
    """
    truth = json.loads(dataset.read_text())
    sizes = {e["id"]: (e["height"], e["width"], e["file_name"]) for e in truth["images"]}
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    found: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    if source == "predictions":
        for result in json.loads(results.read_text()):
            found[result["image_id"]].append(result)
    for image_id, entries in of_image.items():
        height, width, file_name = sizes[image_id]
        payload = {
            "height": height,
            "width": width,
            "truth": entries,
            "coarse": found[image_id],
            "source": source,
        }
        yield Item(name, "instance", images / file_name, payload)


def semantic_items(name: str, labels: Path, coarse: Path, images: Path) -> Iterator[Item]:
    """Label PNGs of the same name in two folders."""
    for path in sorted(labels.glob("*.png")):
        image = images / f"{path.stem}.jpg"
        yield Item(name, "semantic", image, {"truth": str(path), "coarse": str(coarse / path.name)})


def panoptic_items(name: str, truth: Path, coarse: Path, images: Path) -> Iterator[Item]:
    """COCO panoptic JSON files with their folders of PNGs beside them."""
    both = [json.loads(p.read_text()) for p in (truth, coarse)]
    names = {e["id"]: e["file_name"] for e in both[0]["images"]}
    of_image = {a["image_id"]: a for a in both[1]["annotations"]}
    for annotation in both[0]["annotations"]:
        payload = {
            "truth": str(truth.with_suffix("") / annotation["file_name"]),
            "truth_infos": annotation["segments_info"],
            "coarse": str(coarse.with_suffix("") / of_image[annotation["image_id"]]["file_name"]),
            "coarse_infos": of_image[annotation["image_id"]]["segments_info"],
        }
        yield Item(name, "panoptic", images / names[annotation["image_id"]], payload)


def corpus_items(data: Path, sets: list[str], subset: int) -> list[Item]:
    """Every ``subset``-th image of each of the named sets."""
    ccp, bsds, camvid, coarse = data / "ccp", data / "bsds", data / "camvid", data / "coarse"
    makers = {
        "ccp": lambda: instance_items("ccp", ccp / "instances_val.json", coarse / "ccp_val.json", ccp / "images"),
        "bsds": lambda: instance_items(
            "bsds", coarse / "bsds_val_gt.json", coarse / "bsds_val.json", bsds / "val" / "images"
        ),
        "camvid": lambda: semantic_items(
            "camvid", camvid / "val" / "labels", coarse / "camvid_val", camvid / "val" / "images"
        ),
        "panoptic": lambda: panoptic_items(
            "panoptic", coarse / "panoptic_val_gt.json", coarse / "panoptic_val.json", camvid / "val" / "images"
        ),
        "exact": lambda: instance_items("exact", ccp / "instances_val.json", Path(), ccp / "images", source="truth"),
        "blocks": lambda: instance_items("blocks", ccp / "instances_val.json", Path(), ccp / "images", source="blocks"),
    }
    items: list[Item] = []
    for name in sets:
        items += list(makers[name]())[::subset]
    return items


SETS = ("ccp", "bsds", "camvid", "panoptic", "exact", "blocks")
