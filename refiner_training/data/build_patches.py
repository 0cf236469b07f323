"""Builds a patch set from predictions and ground truth, in processes, shard by shard, so that it can be resumed.

Letters: P patches of a mask, c their side as stored (px).

As the paper (Hu et al., IJCV 2022, sections 3.3, 3.4 and 4): predictions over IoU 0.5 with their ground truth, patches
along the predicted boundary thinned by NMS at 0.25, and for semantic and panoptic masks no patches at the image's
border that hold no boundary. Where there are no predictions, coarse masks are simulated from the ground truth.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from bpr_service import storage
from bpr_service.config import PatchConfig, Settings
from bpr_service.errors import ConflictError, FormatError
from bpr_service.masks.mask import Mask
from bpr_service.refine.crops import crop_patches
from bpr_service.refine.patches import Boxes, drop_full, place_patches
from refiner_training.data.patch_set import FORMAT, pack, record_type
from refiner_training.data.readers import MATCH_IOU, Broken, Pair, PairReader, Sample, stream
from refiner_training.data.simulate import DEFAULT_MIX, coarse_mask

if TYPE_CHECKING:
    from rich.progress import Progress

INDEX = np.dtype([("image", np.int32), ("category", np.int32), ("iou", np.float32)])
MARGIN_PX = 32
"""What a simulated coarse mask may grow by around the true mask's box."""


class PatchSetConfig(Settings):
    """What goes into a patch set."""

    patch: PatchConfig = PatchConfig(cover=False)
    """The paper's patches are those that NMS keeps; covering every boundary pixel is for inference."""
    full_maps: bool = False
    """The masks of an image fill it (semantic, panoptic): border patches without a boundary are left out, and every
    class takes part whatever its IoU."""
    per_mask: int = Field(default=0, ge=0)
    """At most so many patches of one mask, drawn at random; 0 takes all."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the patches of each mask that is kept, at least one."""
    copies: int = Field(default=1, ge=1)
    """Simulated coarse masks a true mask, where there are no predictions."""
    mix: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MIX))
    soft_share: float = Field(default=0.25, ge=0, le=1)
    """Share of simulated coarse masks that keep their probabilities."""
    images_per_shard: int = Field(default=16, ge=1)
    seed: int = 0

    @property
    def side_px(self) -> int:
        """c: the crop's size, but the network's where crops are of any size."""
        return self.patch.network_size_px if self.patch.scheme == "instance" else self.patch.crop_size_px


def build_patch_set(
    reader: PairReader, folder: Path, config: PatchSetConfig, *, workers: int = 1, resume: bool = True
) -> dict[str, Any]:
    """Build a patch set, or go on with one that was interrupted.

    Args:
        reader: the pairs; its files were checked when it was made.
        folder: where shards and manifest go.
        config: how patches are cut and chosen.
        workers: processes.
        resume: keep the shards that are finished; without, a folder that is not empty is an error.

    Returns:
        The manifest: counts, settings, shards, and ``skipped``: images that could not be read, with the reason.

    Raises:
        ConflictError: the folder holds a patch set of other data or settings.
        FormatError: no pair gave a patch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    soft = config.soft_share > 0 and reader_simulates(reader)
    plan = {
        "format": FORMAT,
        "reader": reader.kind,
        "images": len(reader),
        "names": hashlib.sha256("\n".join(reader.names).encode()).hexdigest(),
        "settings": config.model_dump(mode="json"),
        "soft": soft,
    }
    _claim(folder, plan, resume)
    size = config.images_per_shard
    shards = [range(a, min(a + size, len(reader))) for a in range(0, len(reader), size)]
    missing = [k for k in range(len(shards)) if not _report(folder, k).is_file()]
    for _ in _in_processes(reader, folder, config, soft, shards, missing, workers):
        pass
    return _finish(folder, plan, config, len(shards))


def reader_simulates(reader: PairReader) -> bool:
    """Whether a reader has no predictions, so that coarse masks have to be simulated."""
    return all(pair.coarse is None for sample in _first(reader) for pair in sample.pairs)


def _first(reader: PairReader) -> Iterator[Sample]:
    for sample in stream(reader):
        if isinstance(sample, Sample) and sample.pairs:
            yield sample
            return


def _claim(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    path = folder / "plan.json"
    if not path.is_file():
        if any(folder.iterdir()):
            raise ConflictError(
                f"{folder}", expected="an empty folder or a patch set", got="other files", fix="choose another --out"
            )
        storage.write_bytes(path, json.dumps(plan, indent=1).encode())
        return
    if not resume:
        raise ConflictError(f"{folder}", expected="an empty folder", got="a patch set", fix="remove it, or resume it")
    found = json.loads(path.read_text())
    for key, value in plan.items():
        if found.get(key) != value:
            raise ConflictError(
                f"{path}: {key}",
                expected=str(found.get(key))[:200],
                got=str(value)[:200],
                fix="call it with the same data and settings, or choose another --out",
            )


def _report(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.json"


# ---- processes ------------------------------------------------------------------------------------------------------

_STATE: list[Any] = []


def _start(*state: Any) -> None:
    _STATE[:] = state


def _shard_in_process(shard: int, images: range) -> int:
    reader, folder, config, soft = _STATE
    return build_shard(reader, folder, config, soft, shard, images)


def _in_processes(
    reader: PairReader,
    folder: Path,
    config: PatchSetConfig,
    soft: bool,
    shards: list[range],
    missing: list[int],
    workers: int,
) -> Iterator[int]:
    """Build the missing shards; yield the number of images of each as it is done."""
    todo = [shards[k] for k in missing]
    state = (reader, folder, config, soft)
    with _progress(len(shards), len(missing)) as bar:
        if workers <= 1 or len(missing) <= 1:
            for shard, images in zip(missing, todo, strict=True):
                yield build_shard(*state, shard, images)
                bar.advance(bar.task_ids[0])
            return
        method = "spawn" if sys.platform == "win32" else "forkserver"
        context = multiprocessing.get_context(method)
        # The reader travels once a process, not once a shard.
        with ProcessPoolExecutor(min(workers, len(missing)), context, _start, state) as pool:
            for count in pool.map(_shard_in_process, missing, todo):
                yield count
                bar.advance(bar.task_ids[0])


def _progress(total: int, missing: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("patches"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    bar.add_task("patches", total=total, completed=total - missing)
    return bar


def build_shard(reader: PairReader, folder: Path, config: PatchSetConfig, soft: bool, shard: int, images: range) -> int:
    """Write one shard: records to a temporary name, renamed when whole, then its report. Returns the images read."""
    name = f"shard-{shard:06d}.bin"
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    index: list[NDArray[np.void]] = []
    skipped: list[dict[str, str]] = []
    pairs = 0
    with open(temporary, "wb") as file:
        for sample in stream(reader, images):
            if isinstance(sample, Broken):
                skipped.append({"image": sample.name, "error": sample.error})
                continue
            for number, pair in enumerate(sample.pairs):
                rng = np.random.default_rng([config.seed, sample.index, number])
                rows = 0
                for patches, targets, iou in _patches_of(sample, pair, config, rng):
                    file.write(pack(patches, targets, soft).tobytes())
                    index.append(np.array([(sample.index, pair.category, iou)] * len(patches), INDEX))
                    rows += len(patches)
                pairs += rows > 0
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / name)
    rows_of_shard = np.concatenate(index) if index else np.empty(0, INDEX)
    np.save(folder / f"shard-{shard:06d}.npy", rows_of_shard)
    report = {"file": name, "patches": len(rows_of_shard), "pairs": pairs, "skipped": skipped}
    storage.write_bytes(_report(folder, shard), json.dumps(report).encode())
    return len(images)


def _patches_of(
    sample: Sample, pair: Pair, config: PatchSetConfig, rng: Generator
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], float]]:
    """Patches (P, c, c, 4), targets (P, c, c) and IoU of each coarse mask of one pair."""
    if pair.coarse is not None:
        coarse_masks = [pair.coarse]
        if not config.full_maps and pair.iou is not None and pair.iou <= MATCH_IOU:
            return
    else:
        coarse_masks = [simulate(pair.truth, config, rng) for _ in range(config.copies)]
    for coarse in coarse_masks:
        boxes = place_patches(coarse, config.patch)
        if config.full_maps:
            boxes = drop_full(boxes, coarse.height, coarse.width, coarse.window)
        boxes = _draw(boxes, config, rng)
        if len(boxes):
            iou = float("nan") if pair.coarse is None or pair.iou is None else pair.iou
            yield (*cut(sample, coarse, pair.truth, boxes, config), iou)


def _draw(boxes: Boxes, config: PatchSetConfig, rng: Generator) -> Boxes:
    count = max(round(len(boxes) * config.share), 1) if len(boxes) else 0
    count = min(count, config.per_mask) if config.per_mask else count
    if count == len(boxes):
        return boxes
    return boxes[np.sort(rng.choice(len(boxes), count, replace=False))]


def cut(
    sample: Sample, coarse: Mask, truth: Mask, boxes: Boxes, config: PatchSetConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Patches (P, c, c, 4) and targets (P, c, c) {0, 1, 255} at the boxes (P, 4)."""
    at_side = config.patch.with_options(network_size_px=config.side_px)
    patches = crop_patches(sample.image, coarse, boxes, at_side)
    targets = (crop_patches(sample.image, truth, boxes, at_side)[..., 3] > 127).astype(np.uint8)
    if sample.void is not None and not sample.void.is_empty:
        targets[crop_patches(sample.image, sample.void, boxes, at_side)[..., 3] > 127] = 255
    return patches, targets


def simulate(truth: Mask, config: PatchSetConfig, rng: Generator) -> Mask:
    """A coarse mask of a true one, with its probabilities in ``soft_share`` of the cases."""
    x0, y0, x1, y1 = truth.box
    x0, y0 = max(x0 - MARGIN_PX, 0), max(y0 - MARGIN_PX, 0)
    x1, y1 = min(x1 + MARGIN_PX, truth.width), min(y1 + MARGIN_PX, truth.height)
    soft, _kind = coarse_mask(truth.window(x0, y0, x1, y1), rng, config.mix)
    if rng.random() >= config.soft_share:
        return Mask.from_window((soft > 0.5).astype(np.uint8), x0, y0, truth.height, truth.width)
    levels = np.round(np.clip(soft, 0, 1) * 255).astype(np.uint8)
    return Mask(truth.height, truth.width, x0, y0, (levels >= 128).astype(np.uint8), levels)


def _finish(folder: Path, plan: dict[str, Any], config: PatchSetConfig, shards: int) -> dict[str, Any]:
    """Gather the shards' reports and indices; the manifest is written last."""
    reports = [json.loads(_report(folder, k).read_text()) for k in range(shards)]
    total = sum(r["patches"] for r in reports)
    skipped = [s for r in reports for s in r["skipped"]]
    if total == 0:
        why = f"; the first image that could not be read: {skipped[0]['error']}" if skipped else ""
        raise FormatError(
            f"the {plan['reader']} pairs of {folder}",
            expected="a prediction that matches its ground truth with IoU over 0.5",
            got=f"no patch from {plan['images']} images{why}",
            fix="check that predictions and ground truth are of the same images and categories",
        )
    np.save(folder / "index.npy", np.concatenate([np.load(folder / f"shard-{k:06d}.npy") for k in range(shards)]))
    manifest = {
        **plan,
        "side_px": config.side_px,
        "record_bytes": record_type(config.side_px, plan["soft"]).itemsize,
        "patches": total,
        "pairs": sum(r["pairs"] for r in reports),
        "images_skipped": len(skipped),
        "skipped": skipped,
        "shards": [{"file": r["file"], "patches": r["patches"]} for r in reports],
    }
    storage.write_bytes(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return manifest
