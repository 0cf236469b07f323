"""The network in int8 on the val splits: patches a second, pixels that stay the same, and F at 1 px that is lost.

    python benchmarks/int8.py --model balanced

Quantised after training with ranges measured on patches of ccp's train split (simulated coarse masks); every third val
image with its fixed coarse masks, do-no-harm on. fp32 and int8 both run in OpenVINO, one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def calibration(refiner: Any, data: Path, patches: int) -> Any:
    """Patches (n, S, S, 4) of train images, where simulated coarse masks have their boundaries."""
    from bpr_service.masks.mask import Mask
    from refiner_training.data.instance_readers import CocoPairs
    from refiner_training.data.simulate import coarse_mask

    reader = CocoPairs(data / "ccp" / "images", data / "ccp" / "instances_train.json")
    rng = np.random.default_rng(0)
    found: list[Any] = []
    for index in range(0, len(reader), 7):
        sample = reader.read(index)
        masks = []
        for pair in sample.pairs[:4]:
            truth = pair.truth
            x0, y0, x1, y1 = truth.box
            soft, _ = coarse_mask(truth.window(x0, y0, x1, y1), rng)
            masks.append(Mask.from_window((soft > 0.5).astype(np.uint8), x0, y0, truth.height, truth.width))
        found.append(refiner.prepare(sample.image, masks).crops(0, 16))
        if sum(map(len, found)) >= patches:
            break
    return np.concatenate(found)[:patches]


def measure(refiner: Any, items: list[Any]) -> tuple[list[Any], dict[str, float], float, int]:
    """Refined masks, the summary of their boundaries, seconds in the network, patches."""
    from quality_measure import pairs

    from bpr_service.masks.images import read_image
    from refiner_training.metrics.change import collect, measure_triple

    seconds, patches = 0.0, 0
    masks, rows = [], []
    for item in items:
        coarse, truth = pairs(item)
        result = refiner.refine(read_image(item.image), coarse)
        refined = result.masks
        seconds += result.timings_ms["network"] / 1e3
        patches += sum(report.patches for report in result.reports)
        rows += [measure_triple(*t) for t in zip(coarse, refined, truth, strict=True)]
        masks += list(zip(coarse, refined, strict=True))
    return masks, collect(rows)["summary"], seconds, patches


def main(
    model: str = "balanced",
    data: Annotated[Path, typer.Option(help="The boundary corpus.")] = DATA,
    subset: Annotated[int, typer.Option(help="Every N-th val image.")] = 3,
    as_json: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print int8 against fp32."""
    import torch
    from quality_sets import corpus_items

    from bpr_service.config import RefineConfig
    from bpr_service.network.backends import Forward
    from bpr_service.network.int8 import int8_forward
    from bpr_service.network.model import Model
    from bpr_service.refine.refiner import Refiner

    torch.set_num_threads(1)
    items = corpus_items(data, ["ccp"], subset)
    refiner = Refiner.load(model, backend="openvino")
    precise, summary, seconds, patches = measure(refiner, items)
    results: dict[str, Any] = {"images": len(items), "patches": patches}
    results["fp32"] = {"patches_per_s": patches / seconds, "f1px": summary["f1px_after"]}
    others: dict[str, Any] = {"bf16": Refiner.load(model, backend="openvino", precision="bf16")}
    plain = Refiner.load(model)
    crops = calibration(refiner, data, 256)
    forward = int8_forward(refiner.model.network, refiner.config.patch.network_size_px, crops)

    class Quantised(Model):
        def forward(self, config: RefineConfig) -> Forward:
            return forward

    others["int8"] = Refiner(Quantised(refiner.model.network, refiner.card), plain.config)
    for name, other in others.items():
        masks, after, spent, _ = measure(other, items)
        same, pixels = 0, 0
        for (coarse, a), (_, b) in zip(precise, masks, strict=True):
            x0, y0, x1, y1 = coarse.box
            window = (max(x0 - 32, 0), max(y0 - 32, 0), min(x1 + 32, coarse.width), min(y1 + 32, coarse.height))
            same += int((a.window(*window) == b.window(*window)).sum())
            pixels += (window[2] - window[0]) * (window[3] - window[1])
        results[name] = {
            "patches_per_s": patches / spent,
            "over_fp32": seconds / spent,
            "pixels_equal": same / pixels,
            "f1px": after["f1px_after"],
            "f1px_lost": summary["f1px_after"] - after["f1px_after"],
        }
    typer.echo(json.dumps(results, indent=1))
    if as_json:
        as_json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
