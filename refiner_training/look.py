"""Look at a data set, and write the recipe that fits it: ``bpr-train init``.

Letters: H, W are an image's size in px.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml

from bpr_service import storage
from bpr_service.config import PRESETS, build
from bpr_service.errors import FormatError
from bpr_service.network.weights import ModelCard, find_model, read_card
from refiner_training.config import TrainConfig
from refiner_training.data.readers import Broken, Pair, PairReader, stream

MOST_IMAGES = 40
"""Images that are opened for a look."""
REACH = 0.4
"""Share of a patch's side that its boundary can be moved by and still be seen with context."""
LEAST_STEPS, MOST_STEPS, PASSES = 1_000, 20_000, 12
PATCHES_A_MASK = 14
"""Patches that NMS at 0.25 leaves of a mask of medium size, to say how long a pass is."""


@dataclass
class Look:
    """What was seen.

    Attributes:
        images: images of the data set; `seen` of them were opened, `broken` of those could not be.
        masks: masks of the images that were opened.
        sides: square roots of the masks' areas, px.
        sizes: (H, W) of the images.
        ious: of coarse and true masks.
        reach_px: how far from the coarse boundary the pixels lie that are wrong: of each mask the 95th percentile.
    """

    images: int
    seen: int = 0
    broken: list[str] = field(default_factory=list)
    masks: int = 0
    sides: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    reach_px: list[float] = field(default_factory=list)


def look(reader: PairReader) -> Look:
    """Open up to `MOST_IMAGES` images, evenly spread.

    Raises:
        FormatError: none of them can be read, or they hold no mask.
    """
    found = Look(len(reader))
    spread = np.unique(np.linspace(0, len(reader) - 1, min(len(reader), MOST_IMAGES)).astype(int)).tolist()
    for sample in stream(reader, spread):
        found.seen += 1
        if isinstance(sample, Broken):
            found.broken.append(f"{sample.name}: {sample.error}")
            continue
        found.sizes.append((sample.image.shape[0], sample.image.shape[1]))
        found.masks += len(sample.pairs)
        for pair in sample.pairs:
            found.sides.append(float(np.sqrt(pair.truth.area)))
            if pair.coarse is not None and pair.iou is not None:
                found.ious.append(pair.iou)
                found.reach_px.append(_reach(pair))
    if not found.masks:
        got = found.broken[0] if found.broken else "no mask in any of them"
        raise FormatError(f"{found.seen} images", expected="masks to learn from", got=got, fix="check the truth")
    return found


def _reach(pair: Pair) -> float:
    """How far from the coarse boundary wrong pixels lie: the 95th percentile, px; 0 where all are right."""
    assert pair.coarse is not None
    (a0, b0, a1, b1), (c0, d0, c1, d1) = pair.coarse.box, pair.truth.box
    window = (min(a0, c0) - 1, min(b0, d0) - 1, max(a1, c1) + 1, max(b1, d1) + 1)
    coarse, truth = pair.coarse.window(*window), pair.truth.window(*window)
    wrong = coarse != truth
    if not wrong.any() or not coarse.any():
        return 0.0
    inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3) for part in (coarse, 1 - coarse))
    return float(np.percentile((inside + outside)[wrong], 95))


def recipe(
    found: Look, name: str, *, preset: str, data: dict[str, object], batch_size: int = 32
) -> tuple[str, TrainConfig]:
    """The text of a recipe, with comments, and what the trainer reads in it.

    Args:
        found: what the data set was seen to hold.
        name: of the model to be.
        preset: whose model the training goes on from.
        data: the recipe's part of that name.
        batch_size: patches a step.

    Raises:
        UnknownName: no such preset.
    """
    card = read_card(find_model(PRESETS[preset].model))
    side = patch_side(found, card)
    padding = side * card.patch.padding_px // card.patch.patch_size_px
    steps = int(np.clip(_per_pass(found) * PASSES // batch_size, LEAST_STEPS, MOST_STEPS) // 100 * 100)
    network = {**card.network.model_dump(), "start_from": PRESETS[preset].model}
    patch = {"patch_size_px": side, "padding_px": padding, "network_size_px": card.patch.network_size_px}
    parts = [
        ("", f"What bpr-train init saw: {_seen(found)}."),
        (_line("name", name), "The run is written to runs/NAME."),
        (_line("network", network), f"The network of {preset}, whose weights it goes on from; without start_from it "
         "begins at random and wants ten times the steps. A run's folder with a model/ or a model version goes, too."),
        (_line("patch", patch), _reach_line(found, side)),
        (_line("data", data), "Patches as bpr-train patches cuts them." if data["kind"] == "patches" else
         "Coarse masks are simulated from the truth: bpr-train scenes stores what they are made of."),
        (_line("optim", {"lr": 0.0008, "warmup_steps": 40, "ema_decay": 0.996}), "For going on from trained weights; "
         "2e-3 from random ones."),
        (_line("run", {"steps": steps, "batch_size": batch_size, "precision": "bf16", "checkpoint_every": 250}),
         f"About {PASSES} passes over what was seen. bf16 needs a GPU or a processor with matrix units: else '32'."),
        (_line("notes", {f"terms.{name}": "none stated"}), "Whose data it is and what may be done with it: "
         "it goes into the model's card."),
    ]  # fmt: skip
    text = "\n".join("\n".join([*_comment(why), *([line] if line else [])]) for line, why in parts) + "\n"
    return text, build(TrainConfig, yaml.safe_load(text))


def write_recipe(path: Path, text: str) -> None:
    """Write it, whole or not at all.

    Raises:
        ConflictError: the file exists, and may have been changed by hand.
    """
    from bpr_service.errors import ConflictError

    if path.exists():
        raise ConflictError(str(path), expected="a name that is free", got="a file", fix="remove it, or name another")
    storage.write_bytes(path, text.encode())


def patch_side(found: Look, card: ModelCard) -> int:
    """The patch's side, px: the model's own, or the next doubling from which wrong pixels are within reach."""
    side = card.patch.patch_size_px
    far = float(np.percentile(found.reach_px, 90)) if found.reach_px else 0.0
    while side < 256 and far > REACH * side:
        side *= 2
    return side


def _per_pass(found: Look) -> int:
    """About how many patches the data set has."""
    return max(found.masks * found.images * PATCHES_A_MASK // max(found.seen - len(found.broken), 1), 1)


def _seen(found: Look) -> str:
    heights, widths = zip(*found.sizes, strict=True)
    lines = [
        f"{found.images} images, {found.seen} of them opened, of about {int(np.median(widths))} x "
        f"{int(np.median(heights))} px, with {found.masks} masks of about {int(np.median(found.sides))} px a side"
    ]
    if found.ious:
        lines.append(f"coarse masks of IoU {np.mean(found.ious):.3f}, most errors within "
                     f"{np.percentile(found.reach_px, 90):.0f} px of their boundary")  # fmt: skip
    if found.broken:
        lines.append(f"{len(found.broken)} of those opened cannot be read")
    return "; ".join(lines)


def _reach_line(found: Look, side: int) -> str:
    why = "large enough for the errors that were seen" if found.reach_px else "the model's own size"
    return f"Squares along the boundary, px of the image: {side} is {why}. bpr refine takes them from the model."


def _line(key: str, value: object) -> str:
    return f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str, width: int = 110) -> Sequence[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(text, width)]
