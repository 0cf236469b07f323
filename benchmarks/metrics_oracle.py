"""Check the measures on a corpus against independent versions, and time evaluation against pycocotools.

    python benchmarks/metrics_oracle.py --data ../shared/data           the check, to 1e-6
    python benchmarks/metrics_oracle.py --speed                         5,000 images with 36,000 made-up instances

Mask AP is checked against pycocotools, boundary AP against faster-coco-eval, and the rest against full-frame
versions of the definitions in ``tests/training/oracles.py``. Exit code 1 when any figure is off or too slow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bpr_service.masks.mask import read_panoptic_png
from refiner_training.evaluate import evaluate_instances, evaluate_panoptic, evaluate_semantic
from tests.training import oracles

TOLERANCE = 1e-6
Row = tuple[str, str, float, float]  # set, measure, ours, independent


def check_instances(name: str, gt: Path, results: Path) -> Iterator[Row]:
    """Compare AP with pycocotools, boundary AP with faster-coco-eval, AF and change with the definitions."""
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster

    ours = evaluate_instances(gt, results, before=results).to_json()
    run = run_pycocotools(gt, results)
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    for measure, value in zip(names, run.stats[:6], strict=True):
        yield name, measure, -1.0 if ours[measure] is None else ours[measure], float(value)
    precision = run.eval["precision"][8, :, :, 0, 2]
    yield name, "AP90", ours["AP90"], float(precision[precision > -1].mean())
    fast = FastCOCO(str(gt))
    with contextlib.redirect_stdout(io.StringIO()):
        boundary = COCOeval_faster(fast, fast.loadRes(str(results)), "boundary")
        boundary.run()
    for measure, place in (("boundary_AP", 0), ("boundary_AP50", 1), ("boundary_AP75", 2)):
        yield name, measure, ours[measure], float(boundary.stats[place])

    by_threshold: dict[int, list[float]] = defaultdict(list)
    known: dict[tuple[int, int], float] = {}
    for image in run.evalImgs:
        if image is None or image["aRng"] != [0, 1e10]:
            continue
        for t, matches in enumerate(image["dtMatches"]):
            for d, g in zip(image["dtIds"], matches, strict=True):
                if g:
                    pair = (int(d), int(g))
                    if pair not in known:
                        known[pair] = oracles.boundary_f(*frames(run, *pair), 1)
                    by_threshold[t].append(known[pair])
    yield name, "AF", ours["AF"], float(np.mean([np.mean(v) for v in by_threshold.values()]))

    f, iou, boundary_iou, wrong = [], [], [], np.zeros(2)
    for d, entry in enumerate(json.loads(results.read_text()), start=1):
        mask, truth = frames(run, d, entry["gt"])
        distance = max(1, round(0.02 * float(np.hypot(*truth.shape))))
        f.append(oracles.boundary_f(mask, truth, 1))
        iou.append(oracles.iou(mask, truth))
        boundary_iou.append(oracles.boundary_iou(mask, truth, distance))
        wrong += oracles.band_error(mask, truth, 5)
    change = ours["change"]
    yield name, "mean F at 1 px", change["f1px_after"], float(np.mean(f))
    yield name, "mean IoU", change["iou_after"], float(np.mean(iou))
    yield name, "mean boundary IoU", change["boundary_iou_after"], float(np.mean(boundary_iou))
    yield name, "band error", change["band_error_after"], float(wrong[0] / wrong[1])


def frames(run: Any, detection: int, annotation: int) -> tuple[Any, Any]:
    """Full-frame mask of a detection (numbered from 1) and of an annotation."""
    from pycocotools import mask as coco

    segmentation = run.cocoDt.anns[detection]["segmentation"]
    return coco.decode(segmentation), run.cocoGt.annToMask(run.cocoGt.anns[annotation])


def run_pycocotools(gt: Path, results: Path) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(gt))
        run = COCOeval(coco, coco.loadRes(str(results)), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def check_semantic(labels: Path, predictions: Path, classes: int) -> Iterator[Row]:
    ours = evaluate_semantic(labels, predictions, classes).to_json()
    shared, union, f = np.zeros(classes), np.zeros(classes), []
    for path in sorted(labels.iterdir()):
        truth, prediction = (np.array(Image.open(p)) for p in (path, predictions / path.name))
        seen = truth != 255
        for c in range(classes):
            shared[c] += (seen & (truth == c) & (prediction == c)).sum()
            union[c] += (seen & ((truth == c) | (prediction == c))).sum()
        f.append(oracles.segf(truth, prediction, classes, 255))
    yield "camvid semantic", "mIoU", ours["mIoU"], float((shared / union).mean())
    yield "camvid semantic", "AF", ours["AF"], float(np.mean(f))


def check_panoptic(gt: Path, predictions: Path) -> Iterator[Row]:
    folders = gt.with_suffix(""), predictions.with_suffix("")
    ours = evaluate_panoptic(gt, folders[0], predictions, folders[1]).to_json()
    annotations = [{a["image_id"]: a for a in json.loads(p.read_text())["annotations"]} for p in (gt, predictions)]
    for prefix, reach in (("", 0.0), ("boundary_", 0.02)):
        stats: dict[int, np.ndarray[Any, Any]] = defaultdict(lambda: np.zeros(4))
        for image_id, truth in annotations[0].items():
            prediction = annotations[1][image_id]
            maps = [read_panoptic_png(f / a["file_name"]) for f, a in zip(folders, (truth, prediction), strict=True)]
            distance = max(1, round(reach * float(np.hypot(*maps[0].shape)))) if reach else None
            rows = oracles.panoptic_quality(*maps, truth["segments_info"], prediction["segments_info"], distance)
            for category, row in rows.items():
                stats[category] += row
        weights = {c: tp + fp / 2 + fn / 2 for c, (_, tp, fp, fn) in stats.items()}
        yield "camvid panoptic", f"{prefix}PQ", ours[f"{prefix}PQ"], mean(s[0] / weights[c] for c, s in stats.items())
        yield "camvid panoptic", f"{prefix}SQ", ours[f"{prefix}SQ"], mean(s[0] / max(s[1], 1) for s in stats.values())
        yield "camvid panoptic", f"{prefix}RQ", ours[f"{prefix}RQ"], mean(s[1] / weights[c] for c, s in stats.items())


def mean(values: Any) -> float:
    return float(np.mean(list(values)))


def check(data: Path) -> bool:
    """Print ours beside the independent figures; False when one is off."""
    rows = [
        *check_instances("ccp", data / "ccp/instances_val.json", data / "coarse/ccp_val.json"),
        *check_instances("bsds", data / "coarse/bsds_val_gt.json", data / "coarse/bsds_val.json"),
        *check_semantic(data / "camvid/val/labels", data / "coarse/camvid_val", 11),
        *check_panoptic(data / "coarse/panoptic_val_gt.json", data / "coarse/panoptic_val.json"),
    ]
    print(f"{'set':16}{'measure':20}{'ours':>12}{'independent':>14}{'difference':>12}")
    for name, measure, ours, independent in rows:
        print(f"{name:16}{measure:20}{ours:12.8f}{independent:14.8f}{abs(ours - independent):12.1e}")
    return all(abs(ours - independent) <= TOLERANCE for _, _, ours, independent in rows)


def make_instances(folder: Path, images: int, instances: int) -> tuple[Path, Path]:
    """Write polygons of 80 categories in 480x640 images, and one result in RLE for each."""
    import cv2
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": c} for c in range(1, 81)]}
    results = []
    for i in range(images):
        truth["images"].append({"id": i + 1, "file_name": f"{i:06d}.jpg", "height": 480, "width": 640})
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for n in range(instances):
        size = float(np.exp(rng.uniform(np.log(10), np.log(220))))
        radius = size / 2 * rng.uniform(0.75, 1.25, 24)
        centre = rng.uniform((size / 2, size / 2), (640 - size / 2, 480 - size / 2))
        points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        image_id, category = n % images + 1, int(rng.integers(1, 81))
        rle = coco.merge(coco.frPyObjects([points.ravel().tolist()], 480, 640))
        truth["annotations"].append(
            {
                "id": n + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                "segmentation": [points.ravel().round(2).tolist()], "area": float(coco.area(rle)),
                "bbox": coco.toBbox(rle).tolist(),
            }
        )  # fmt: skip
        frame = np.zeros((480, 640), np.uint8)
        moved = (points + rng.normal(size=points.shape) * size * 0.03).round().astype(np.int32)
        rle = coco.encode(np.asfortranarray(cv2.fillPoly(frame, [moved], 1)))
        rle["counts"] = rle["counts"].decode()
        score = float(rng.uniform(0.05, 1))
        results.append({"image_id": image_id, "category_id": category, "score": score, "segmentation": rle})
    paths = folder / "gt.json", folder / "results.json"
    paths[0].write_text(json.dumps(truth))
    paths[1].write_text(json.dumps(results))
    return paths


def time_both(images: int, instances: int, workers: int | None, rounds: int) -> bool:
    """Time pycocotools' mask AP and our evaluation of all measures on the same files; False when ours is slower.

    Processor time is the fairer of the two on a machine that is busy with other work; it counts this process
    alone, so compare it with ``--workers 1``.
    """
    with tempfile.TemporaryDirectory() as folder:
        gt, results = make_instances(Path(folder), images, instances)
        times = []
        for number in range(1, rounds + 1):
            clocks = [now()]
            run = run_pycocotools(gt, results)
            clocks.append(now())
            ours = evaluate_instances(gt, results, workers=workers).summary
            clocks.append(now())
            assert abs(run.stats[0] - ours["AP"]) < TOLERANCE
            wall, processor = (np.diff(column) for column in zip(*clocks, strict=True))
            times.append(wall)
            print(
                f"round {number}: pycocotools mask AP {wall[0]:.1f} s ({processor[0]:.1f} s of processor), "
                f"all measures {wall[1]:.1f} s ({processor[1]:.1f} s)",
                flush=True,
            )
    theirs, mine = np.min(times, axis=0)
    print(f"{images} images, {instances} instances, best of {rounds}: {theirs:.1f} s and {mine:.1f} s")
    return bool(mine <= theirs)


def now() -> tuple[float, float]:
    """Wall clock and processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--speed", action="store_true", help="time instead of checking")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--instances", type=int, default=36000)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    good = (
        time_both(options.images, options.instances, options.workers, options.rounds)
        if options.speed
        else check(options.data)
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
