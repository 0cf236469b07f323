"""What LVIS adds to COCO's measures: AP of rare, common and frequent categories, and its truth on COCO's ids (AP*).

AP* is the AP of models trained on COCO against LVIS' finer masks of COCO's 80 categories, by LVIS' rules (Kirillov et
al., *PointRend*, CVPR 2020, section 4.1; Cheng et al., *Boundary IoU*).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bpr_service.errors import FormatError
from refiner_training.data.coco import CocoDataset

NO_CATEGORY = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(number for number in range(1, 91) if number not in NO_CATEGORY)
_TEXT = """
person.n.01 bicycle.n.01 car.n.01 motorcycle.n.01 airplane.n.01 bus.n.01 train.n.01 truck.n.01 boat.n.01
traffic_light.n.01 fireplug.n.01 stop_sign.n.01 parking_meter.n.01 bench.n.01 bird.n.01 cat.n.01 dog.n.01 horse.n.01
sheep.n.01 cow.n.01 elephant.n.01 bear.n.01 zebra.n.01 giraffe.n.01 backpack.n.01 umbrella.n.01 bag.n.04 necktie.n.01
bag.n.06 frisbee.n.01 ski.n.01 snowboard.n.01 ball.n.06 kite.n.03 baseball_bat.n.01 baseball_glove.n.01
skateboard.n.01 surfboard.n.01 tennis_racket.n.01 bottle.n.01 wineglass.n.01 cup.n.01 fork.n.01 knife.n.01 spoon.n.01
bowl.n.03 banana.n.02 apple.n.01 sandwich.n.01 orange.n.01 broccoli.n.01 carrot.n.01 frank.n.02 pizza.n.01
doughnut.n.02 cake.n.03 chair.n.01 sofa.n.01 pot.n.04 bed.n.01 dining_table.n.01 toilet.n.02 television_receiver.n.01
laptop.n.01 mouse.n.04 remote_control.n.01 computer_keyboard.n.01 cellular_telephone.n.01 microwave.n.02 oven.n.01
toaster.n.02 sink.n.01 electric_refrigerator.n.01 book.n.01 clock.n.01 vase.n.01 scissors.n.01 teddy.n.01
hand_blower.n.01 toothbrush.n.01
"""
SYNSETS = tuple(_TEXT.split())
"""LVIS' synset of each COCO category, in the order of COCO's ids (LVIS' own mapping, ``coco_to_synset.json``)."""
TO_COCO = dict(zip(SYNSETS, COCO_IDS, strict=True)) | {"beef.n.01": 21}  # the cow of LVIS v0.5
FREQUENCIES = {"r": "AP_rare", "c": "AP_common", "f": "AP_frequent"}


def on_coco_ids(truth: CocoDataset) -> CocoDataset:
    """LVIS' truth of COCO's 80 categories, under COCO's ids; what is of another category is left out.

    Raises:
        FormatError: no LVIS file, or one of which no category has a counterpart.
    """
    own = {i: TO_COCO[r["synset"]] for i, r in truth.category_records.items() if r.get("synset") in TO_COCO}
    if not own or not truth.lvis:
        raise FormatError(
            str(truth.path),
            expected="LVIS annotations: categories with a synset, images with neg_category_ids",
            got="no category that COCO has" if truth.lvis else "no neg_category_ids",
            fix="leave out --coco-ids, or name LVIS' file",
        )

    def image(record: dict[str, Any]) -> dict[str, Any]:
        lists = {k: record.get(k, ()) for k in ("neg_category_ids", "not_exhaustive_category_ids")}
        return record | {k: [own[c] for c in ids if c in own] for k, ids in lists.items()}

    names = {coco: synset.partition(".")[0] for synset, coco in zip(SYNSETS, COCO_IDS, strict=True)}
    return replace(
        truth,
        images={i: image(record) for i, record in truth.images.items()},
        categories=names,
        category_records={},
        annotations=[a | {"category_id": own[a["category_id"]]} for a in truth.annotations if a["category_id"] in own],
    )


def ap_by_frequency(truth: CocoDataset, per_class: Mapping[int, Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean AP, and boundary AP, of the categories that LVIS calls rare, common and frequent; empty for other files."""
    found: dict[str, float | None] = {}
    for letter, name in FREQUENCIES.items():
        rows = [per_class[i] for i, r in truth.category_records.items() if r.get("frequency") == letter]
        for key, label in (("AP", name), ("boundary_AP", f"boundary_{name}")):
            values = [row[key] for row in rows if row[key] is not None]
            if rows:
                found[label] = sum(values) / len(values) if values else None
    return found
