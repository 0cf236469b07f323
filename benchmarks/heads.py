"""The comparison of boundary-aware heads: each against its plain baseline, same budget, seeds and backbone.

    python benchmarks/heads.py table [--only mask_rcnn] [--seeds 0,1] [--steps 350]   the table (resumable)
    python benchmarks/heads.py overfit [--only mask_rcnn/bsm]     four corpus images to mask IoU > 0.9, each head
    python benchmarks/heads.py cost                               inference time against the baseline, papers' sizes
    python benchmarks/heads.py pictures                           what each head predicts on a real image

Results are JSON files under ``--out``, one a run; a run that has its file is skipped. ``heads.json`` and ``heads.md``
are written anew after every run, from whatever is there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "refiner_training" / "configs" / "segmenter"
LOSSES_OFF = {"heads.beis.ibdl": False, "heads.beis.cbdl": False}
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mask_rcnn/plain": ("mask_rcnn", "plain", {}),
    "mask_rcnn/bmask": ("mask_rcnn", "bmask", {}),
    "mask_rcnn/bsm": ("mask_rcnn", "bsm", {}),
    "mask_rcnn/beis": ("mask_rcnn", "beis", {}),
    "mask_rcnn/beis (contrast 0.02)": ("mask_rcnn", "beis", {"heads.beis.contrast_weight": 0.02}),
    "mask_rcnn/beis (losses off)": ("mask_rcnn", "beis", LOSSES_OFF),
    "blendmask/plain": ("blendmask", "plain", {}),
    "blendmask/b2inst": ("blendmask", "b2inst", {}),
    "blendmask/b2inst (attention 14)": ("blendmask", "b2inst", {"model.blendmask.attention": 14}),
    "yolact/plain": ("yolact", "plain", {}),
    "yolact/b2inst": ("yolact", "b2inst", {}),
    "deeplabv3plus/plain": ("deeplabv3plus", "plain", {}),
    "deeplabv3plus/bsm": ("deeplabv3plus", "bsm", {}),
}
PAPER_RATIO = {"bmask": "1.08 to 1.21", "bsm": "1.13", "beis": "1.28", "b2inst": "1.08"}


def configuration(arch: str, args: argparse.Namespace, **more: Any) -> Any:
    """The corpus configuration of an architecture at the benchmark's budget."""
    from refiner_training.segmenters.config import load_segmenter_config

    semantic = arch == "deeplabv3plus"
    side = args.side
    options: dict[str, Any] = {
        "run.steps": args.steps,
        "run.threads": args.threads,
        "run.workers": 0,
        "run.checkpoint_every": 50,
        "optim.warmup_steps": min(50, args.steps // 4),
        "optim.lr": args.lr,
    }
    if semantic:
        folders = {
            f"data.{s}_{k}": str(args.data / "camvid" / s / k) for s in ("train", "val") for k in ("images", "labels")
        }
        options |= folders | {"data.crop_px": [side, side]}
    else:
        ccp = args.data / "ccp"
        options |= {f"data.{s}_images": str(ccp / "images") for s in ("train", "val")}
        options |= {f"data.{s}_annotations": str(ccp / f"instances_{s}.json") for s in ("train", "val")}
        options |= {
            "model.inputs.min_size": [side],
            "model.inputs.max_size": side * 3 // 2,
            "model.yolact.size_px": side,
            "model.mask_rcnn.detections": 50,
            "model.blendmask.detections": 50,
            "model.yolact.detections": 50,
            "model.mask_rcnn.anchor_sizes": [8, 16, 32, 64, 128],
            "model.yolact.anchor_sizes": [8, 16, 32, 64, 128],
        }
    return load_segmenter_config(CONFIGS / ("camvid.yaml" if semantic else "ccp.yaml"), options | more)


# ---- the table ---------------------------------------------------------------------------------------------------


def run_row(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, predict val and measure one row with one seed; what is done already is read back."""
    from refiner_training.predict import Options, predict
    from refiner_training.run.segmenter import train_segmenter

    arch, head, overrides = ROWS[name]
    config = configuration(arch, args, **overrides, **{"run.seed": seed})
    folder = args.out / "runs" / f"{slug(name)}_seed{seed}"
    done = folder / "metrics.json"
    if done.is_file():
        kept: dict[str, Any] = json.loads(done.read_text())
        return kept
    began = time.monotonic()
    checkpoint = train_segmenter(arch, head, config, folder, progress="none")
    trained = time.monotonic() - began
    semantic = arch == "deeplabv3plus"
    out = folder / ("labels" if semantic else "predictions.json")
    dataset = None if semantic else selected_truth(args, config)
    predict(checkpoint, Path(config.data.val_images), out, dataset=dataset, options=Options(resume=False))
    measures = measure(config, out, dataset)
    result = {"row": name, "seed": seed, "train_s": round(trained, 1), **budget(args), **measures}
    done.write_text(json.dumps(result, indent=1))
    return result


def budget(args: argparse.Namespace) -> dict[str, Any]:
    """What a row was trained with."""
    return {"steps": args.steps, "batch_size": 4, "side_px": args.side, "lr": args.lr, "backbone": "resnet18"}


def measure(config: Any, out: Path, dataset: Path | None) -> dict[str, Any]:
    """The figures of one row, in percent."""
    from refiner_training.evaluate import evaluate_instances, evaluate_semantic

    if dataset is None:
        summary = evaluate_semantic(config.data.val_labels, out, config.data.num_classes, workers=1).summary
        names = {"mIoU": "mIoU", "boundary F": "AF"}
    else:
        summary = evaluate_instances(dataset, out, workers=1).summary
        names = {"AP": "AP", "AP50": "AP50", "boundary AP": "boundary_AP", "AF": "AF"}
    return {label: round(100 * summary[key], 2) if summary[key] is not None else None for label, key in names.items()}


def selected_truth(args: argparse.Namespace, config: Any) -> Path:
    """The val annotations of the configuration's classes alone."""
    path: Path = args.out / "val_truth.json"
    content = json.loads(Path(config.data.val_annotations).read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] in config.data.classes]
    ids = {c["id"] for c in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name).strip("_")


def results(args: argparse.Namespace) -> list[dict[str, Any]]:
    files = sorted((args.out / "runs").glob("*/metrics.json"))
    return [json.loads(file.read_text()) for file in files]


def write_table(args: argparse.Namespace) -> None:
    """``heads.json`` and ``heads.md``: mean over seeds, every seed's boundary figure, and the gain."""
    found = results(args)
    side_files = {name: args.out / f"{name}.json" for name in ("cost", "overfit")}
    extra = {name: json.loads(file.read_text()) if file.is_file() else {} for name, file in side_files.items()}
    (args.out / "heads.json").write_text(json.dumps({"rows": found, **extra}, indent=1))
    lines = []
    for kind in ("instance", "semantic"):
        names = [n for n in ROWS if (ROWS[n][0] == "deeplabv3plus") == (kind == "semantic")]
        columns = ["AP", "AP50", "boundary AP", "AF"] if kind == "instance" else ["mIoU", "boundary F"]
        key = columns[2] if kind == "instance" else columns[1]
        rows = list(table_rows(names, found, columns, key, extra))
        if rows:
            heads = ["row", "seeds", *columns, f"{key} by seed", f"{key} gain", "overfit IoU", "cost", "paper's cost"]
            lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *rows, ""]
    (args.out / "heads.md").write_text("\n".join(lines))


def table_rows(
    names: list[str], found: list[dict[str, Any]], columns: list[str], key: str, extra: dict[str, Any]
) -> Iterator[str]:
    """One Markdown line a row that has results."""
    by_row = {name: sorted((r for r in found if r["row"] == name), key=lambda r: r["seed"]) for name in names}
    for name in names:
        own = by_row[name]
        if not own:
            continue
        baseline = {r["seed"]: r[key] for r in by_row.get(f"{ROWS[name][0]}/plain", [])}
        pairs = [(r[key] or 0.0) - (baseline[r["seed"]] or 0.0) for r in own if r["seed"] in baseline]
        plain = name.endswith("/plain")
        gain = "" if plain or not pairs else f"{statistics.mean(pairs):+.2f}"
        means = [statistics.mean([r[c] or 0.0 for r in own]) for c in columns]
        cost = extra["cost"].get("ratios", {}).get(name)
        fit = extra["overfit"].get(name, {}).get("iou")
        cells = [
            name,
            str(len(own)),
            *(f"{value:.2f}" for value in means),
            ", ".join(f"{r[key] or 0.0:.2f}" for r in own),
            gain,
            "" if fit is None else f"{fit:.3f}",
            "" if cost is None or plain else f"{cost:.2f}",
            PAPER_RATIO.get(name.split("/")[1], ""),
        ]
        yield "| " + " | ".join(cells) + " |"


# ---- overfitting -------------------------------------------------------------------------------------------------


def overfit(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train on four corpus images and measure their own masks: mean over instances (or classes) of the IoU."""
    import torch

    from refiner_training.run.module import learning_rate_factor
    from refiner_training.run.validation import mean_iou
    from refiner_training.segmenters.data.sets import open_data
    from refiner_training.segmenters.registry import build_segmenter

    torch.set_num_threads(args.threads)
    arch, head, overrides = ROWS[name]
    more = {"data.flip": 0.0, "data.scale": [1.0, 1.0], "data.crop_px": [360, 480]} if arch == "deeplabv3plus" else {}
    config = configuration(arch, args, **overrides, **more)
    dataset = open_data(config.data, "train", augment=False)
    keep_few(dataset, 4)
    model = build_segmenter(arch, head, config).train()
    samples = [dataset[index, index] for index in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(config.optim, step, args.overfit_steps)
    )
    began, value, step = time.monotonic(), 0.0, 0
    while step < args.overfit_steps and value <= 0.9:
        torch.manual_seed(step)
        model.reseed(step)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model([image for image, _ in samples], [target for _, target in samples])
        optimizer.zero_grad()
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        model.after_step()
        step += 1
        if step % 50 == 0:
            value = mean_iou(model, dataset, 4)
            print(f"{name}: step {step} iou {value:.3f}", flush=True)
    result = {"iou": round(value, 4), "steps": step, "seconds": round(time.monotonic() - began, 1)}
    return result | ({"targets_iou": round(targets_iou(model, dataset), 4)} if arch == "yolact" else {})


def targets_iou(model: Any, dataset: Any) -> float:
    """Mean IoU with the truth of YOLACT's own mask targets, enlarged again: what its grid leaves of a mask."""
    import torch
    from torch.nn import functional as F

    side, values = model.config.size_px, []
    for index in range(len(dataset)):
        truth = dataset[index, index][1]["masks"].bool()
        resized = F.interpolate(truth[:, None].float(), (side, side))
        small = model._shrink(resized[:, 0], (side // 4, side // 4))
        again = F.interpolate(small[:, None], truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0.5
        values.append((again & truth).flatten(1).sum(1) / (again | truth).flatten(1).sum(1))
    return float(torch.cat(values).mean())


def keep_few(dataset: Any, count: int) -> None:
    """Leave the first images that have instances."""
    if hasattr(dataset, "instances"):
        dataset.images = [i for i in dataset.images if dataset.instances[int(i["id"])]][:count]
    else:
        dataset.files, dataset.labels = dataset.files[:count], dataset.labels[:count]


# ---- cost --------------------------------------------------------------------------------------------------------


def cost(args: argparse.Namespace) -> dict[str, Any]:
    """Inference time of each head over its baseline, alternating on the same image at the papers' sizes.

    Fresh weights and score thresholds of 0, so that every model has the same 100 detections. Processor time, which
    other work on the machine changes little, and the smallest of the repeats.
    """
    import torch

    from refiner_training.segmenters.config import load_segmenter_config
    from refiner_training.segmenters.registry import build_segmenter

    torch.set_num_threads(args.threads)
    files = {"mask_rcnn": "coco_mask_rcnn_1x", "blendmask": "coco_blendmask", "yolact": "coco_yolact"}
    seconds: dict[str, list[float]] = {name: [] for name, row in ROWS.items() if not row[2]}
    for arch in ("mask_rcnn", "blendmask", "yolact", "deeplabv3plus"):
        options = {
            "model.backbone.pretrained": False,
            "model.backbone.norm": "batch",
            "model.backbone.name": "resnet50",
        }
        for each in files:
            options[f"model.{each}.score_threshold"] = 0.0
        config = load_segmenter_config(CONFIGS / f"{files.get(arch, 'cityscapes_deeplab')}.yaml", options)
        names = [name for name in seconds if name.startswith(arch)]
        models = {name: build_segmenter(arch, name.split("/")[1], config).eval() for name in names}
        image = torch.rand(3, 832, 832) if arch == "deeplabv3plus" else torch.rand(3, 800, 1200)
        with torch.inference_mode():
            for repeat in range(args.repeats + 1):
                for name, model in models.items():
                    began = time.process_time()
                    model([image])
                    if repeat:  # the first pass warms up
                        seconds[name].append(time.process_time() - began)
        print({name: [round(each, 2) for each in seconds[name]] for name in names}, flush=True)
    least = {name: min(values) for name, values in seconds.items()}
    ratios = {name: round(value / least[f"{name.split('/')[0]}/plain"], 3) for name, value in least.items()}
    return {"seconds": {n: round(v, 3) for n, v in least.items()}, "ratios": ratios, "threads": args.threads}


# ---- pictures ----------------------------------------------------------------------------------------------------


def pictures(names: list[str], args: argparse.Namespace) -> None:
    """Train each head on the bundled photographs and draw what it predicts of one of them."""
    from heads_pictures import draw, photographs

    from refiner_training.run.segmenter import train_segmenter

    data = photographs(args.out / "photographs")
    for name in names:
        arch, head, overrides = ROWS[name]
        if head == "plain" or overrides:
            continue
        truth = "labels" if arch == "deeplabv3plus" else "annotations"
        own: dict[str, Any] = {f"data.{s}_{k}": data[k] for s in ("train", "val") for k in ("images", truth)}
        own |= {"run.batch_size": 2, "optim.warmup_steps": 10}
        own |= {"data.num_classes": 2, "data.things": []} if truth == "labels" else {"data.num_classes": 1}
        own |= {} if truth == "labels" else {"data.classes": "agnostic"}
        config = configuration(arch, args, **own)
        checkpoint = train_segmenter(arch, head, config, args.out / "pictures" / slug(name), progress="none")
        picture = args.out / "pictures" / f"{slug(name)}.jpg"
        draw(checkpoint, arch, data, args.photograph, picture)
        print(picture, flush=True)


def selected(only: str, rows: Mapping[str, Any]) -> list[str]:
    """The rows that ``--only`` names: a full name means that row, anything else all that start so."""
    wanted = tuple(filter(None, only.split(",")))
    exact = {each for each in wanted if each in rows}
    prefixes = tuple(each for each in wanted if each not in exact) if wanted else ("",)
    return [name for name in rows if name in exact or name.startswith(prefixes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "overfit", "cost", "pictures"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "heads")
    parser.add_argument("--only", default="", help="rows, or what their names start with, separated by commas")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--overfit-steps", type=int, default=600)
    parser.add_argument("--photograph", default="coffee", help="which of the bundled ones `pictures` draws")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = selected(args.only, ROWS)
    if args.what == "table":
        for seed in map(int, args.seeds.split(",")):
            for name in names:
                print(run_row(name, seed, args), flush=True)
                write_table(args)
    elif args.what == "overfit":
        for name in names:
            path = args.out / "overfit.json"
            known = json.loads(path.read_text()) if path.is_file() else {}
            if name not in known:
                fit = overfit(name, args)
                known = json.loads(path.read_text()) if path.is_file() else {}
                path.write_text(json.dumps(known | {name: fit}, indent=1))
                write_table(args)
    elif args.what == "cost":
        (args.out / "cost.json").write_text(json.dumps(cost(args), indent=1))
        write_table(args)
    else:
        pictures(names, args)


if __name__ == "__main__":
    main()
