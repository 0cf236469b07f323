"""The comparison of mask branches on one detector: heads that differ in masks alone.

    python benchmarks/heads_compare.py [--seeds 0,1,2] [--base-steps 3000] [--steps 1000] [--side 320]

One plain Mask R-CNN (and one BlendMask) is trained a seed. Every row starts from its weights (``model.weights``), the
detector frozen (``optim.detector_rate``), and trains for the same steps on the same images: the plain rows too. A row
is scored

* on the boxes it detects: mask AP and boundary AP, as they are and refined by ``bpr batch``;
* for heads of Mask R-CNN, on the true boxes: mask IoU, boundary IoU and boundary F of every true instance.

The gain over plain is the mean over images and seeds of the difference of boundary IoU on true boxes, with a 95 %
interval of a bootstrap over images, paired: the same images are drawn for both. An interval that holds 0 is a tie.

What is done is kept under ``--out`` and not done again; ``compare.md`` is written anew after every row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from heads import LOSSES_OFF, ROOT, configuration, selected, selected_truth, slug

ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mask_rcnn/plain": ("mask_rcnn", "plain", {}),
    "mask_rcnn/plain (8 convolutions)": ("mask_rcnn", "plain", {"heads.plain.convs": 8}),
    "mask_rcnn/bmask": ("mask_rcnn", "bmask", {}),
    "mask_rcnn/bsm": ("mask_rcnn", "bsm", {}),
    "mask_rcnn/beis": ("mask_rcnn", "beis", {}),
    "mask_rcnn/beis (losses off)": ("mask_rcnn", "beis", LOSSES_OFF),
    "blendmask/plain": ("blendmask", "plain", {}),
    "blendmask/b2inst": ("blendmask", "b2inst", {}),
}
MEASURES = ("mask IoU", "boundary IoU", "boundary F")


def base(arch: str, seed: int, args: argparse.Namespace) -> Path:
    """The folder of the plain detector that all rows of an architecture and a seed start from."""
    from refiner_training.run.segmenter import train_segmenter

    steps = {"run.steps": args.base_steps, "optim.warmup_steps": min(50, args.base_steps // 4), "run.seed": seed}
    folder: Path = args.out / "runs" / f"base_{arch}_seed{seed}"
    train_segmenter(arch, "plain", configuration(arch, args, **steps), folder, progress="none")
    return folder


def run_row(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one row with one seed; what is done is read back."""
    from refiner_training.predict import Options, predict
    from refiner_training.run.segmenter import train_segmenter

    arch, head, overrides = ROWS[name]
    folder: Path = args.out / "runs" / f"{slug(name)}_seed{seed}"
    done = folder / "compare.json"
    if done.is_file():
        kept: dict[str, Any] = json.loads(done.read_text())
        return kept
    own = {"model.weights": str(base(arch, seed, args)), "optim.detector_rate": 0.0, "run.seed": seed}
    config = configuration(arch, args, **overrides, **own)
    checkpoint = train_segmenter(arch, head, config, folder, progress="none")
    truth = selected_truth(args, config)
    coarse, refined = folder / "coarse.json", folder / "refined.json"
    images = Path(config.data.val_images)
    predict(checkpoint, images, coarse, dataset=truth, options=Options(resume=False, min_score=args.min_score))
    result = {"row": name, "seed": seed, **detected(images, truth, coarse, refined)}
    if arch == "mask_rcnn":
        result["true_boxes"] = on_true_boxes(checkpoint, config)
    done.write_text(json.dumps(result))
    return result


def detected(images: Path, truth: Path, coarse: Path, refined: Path) -> dict[str, Any]:
    """AP and boundary AP in percent of the predictions, and of what ``bpr batch`` makes of them."""
    from refiner_training.evaluate import evaluate_instances

    command = [sys.executable, "-m", "bpr_service.cli", "batch", "instance", "--images", images, "--dataset", truth,
               "--predictions", coarse, "--out", refined]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True)
    names = {"AP": "AP", "boundary AP": "boundary_AP"}
    found = {}
    for prefix, file in (("", coarse), ("refined ", refined)):
        summary = evaluate_instances(truth, file, workers=1).summary
        found |= {prefix + label: round(100 * (summary[key] or 0), 2) for label, key in names.items()}
    return found


def on_true_boxes(checkpoint: Path, config: Any) -> dict[str, list[list[float]]]:
    """For each image of val the measures of its true instances, masked inside their true boxes."""
    import torch

    from bpr_service.masks.mask import Mask
    from refiner_training.metrics.boundary import boundary_distance_px, boundary_f, boundary_iou, mask_iou
    from refiner_training.run.segmenter import load_segmenter
    from refiner_training.segmenters.data.sets import open_data

    model: Any = load_segmenter(checkpoint)[0]
    dataset: Any = open_data(config.data, "val", augment=False)
    found: dict[str, list[list[float]]] = {}
    for index in range(len(dataset)):
        image, target = dataset[index, index]
        if len(target["boxes"]) == 0:
            continue
        height, width = image.shape[-2:]
        with torch.inference_mode():
            predicted = model.masks_of(image, target["boxes"], target["labels"])
        rows = []
        for mask, true in zip(predicted.masks(height, width), target["masks"], strict=True):
            own = Mask.from_array(true.numpy())
            distance = boundary_distance_px(height, width)
            rows.append([mask_iou(mask, own), boundary_iou(mask, own, distance), boundary_f(mask, own)])
        found[str(dataset.images[index]["id"])] = rows
    return found


def gain(row: list[dict[str, Any]], plain: list[dict[str, Any]], measure: int) -> tuple[float, float, float]:
    """The mean gain in points over images and seeds, and its 95 % interval: images are drawn, with all their seeds."""
    pairs = [(r["true_boxes"], p["true_boxes"]) for r in row for p in plain if r["seed"] == p["seed"]]
    images = sorted(pairs[0][0])
    sums = np.array([[[np.sum(np.array(side[i])[:, measure]) for side in pair] for i in images] for pair in pairs])
    counts = np.array([len(pairs[0][0][i]) for i in images], float)
    each = 100 * (sums[:, :, 0] - sums[:, :, 1]).mean(0)  # a sum over the image's instances
    drawn = np.random.default_rng(0).integers(0, len(images), (10_000, len(images)))
    means = each[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(each.sum() / counts.sum()), float(low), float(high)


def table(found: list[dict[str, Any]]) -> str:
    """The Markdown table of what is there."""
    columns = ["AP", "boundary AP", "refined AP", "refined boundary AP"]
    heads = ["row", "seeds", *(f"{m}, true boxes" for m in MEASURES), "boundary IoU against plain", *columns]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in ROWS:
        own = [r for r in found if r["row"] == name]
        if not own:
            continue
        cells = [name, ", ".join(str(r["seed"]) for r in own)]
        plain = [r for r in found if r["row"] == "mask_rcnn/plain"]
        if "true_boxes" in own[0]:
            every = np.concatenate([np.array(rows) for r in own for rows in r["true_boxes"].values()])
            cells += [f"{100 * value:.2f}" for value in every.mean(0)]
            if name == "mask_rcnn/plain" or not {r["seed"] for r in own} <= {p["seed"] for p in plain}:
                cells.append("")
            else:
                mean, low, high = gain(own, plain, 1)
                cells.append(f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" + ("" if low > 0 or high < 0 else ", a tie"))
        else:
            cells += [""] * 4
        cells += [f"{np.mean([r[c] for r in own]):.2f}" for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "heads_compare")
    parser.add_argument("--only", default="", help="rows, or what their names start with, separated by commas")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--base-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--min-score", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in map(int, args.seeds.split(",")):
        for name in selected(args.only, ROWS):
            found.append(run_row(name, seed, args))
            (args.out / "compare.md").write_text(table(found))
            print(table(found), flush=True)


if __name__ == "__main__":
    main()
