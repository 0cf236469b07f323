"""Fit the estimate of what a refinement is worth, and measure it on domains that it was not fitted on.

    python benchmarks/estimate.py collect --model MODEL --json rows.json [--sets ...] [--subset 2]
    python benchmarks/estimate.py collect --model MODEL --json enlarged.json --sets ccp_x3 --scales 3
    python benchmarks/estimate.py own [--sets ...] [--subset 2]
    python benchmarks/estimate.py report rows.json enlarged.json
    python benchmarks/estimate.py fit rows.json enlarged.json --model MODEL_DIR --least-gain -0.2

``collect`` refines the val sets at several scales without a gate and keeps, of each mask and scale, the features and
what became of it. ``own`` counts the masks by the scale that a Refiner takes for them. ``report`` prints, for several
least gains, what is removed of (1 - F at 1 px) and the share of masks made worse by over 0.005 of IoU, at one of the
scales or at the best by the estimate of several: fitted on the other domains (the domain left out) and on the other
images of all domains (fivefold). ``fit`` fits on all rows and writes the estimate into the model's card.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import numpy as np
import typer
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
LEAST_GAINS = (-1.0, -0.3, -0.2, -0.1, 0.0, 0.1)
WORSE = 0.005
SCALES = "0.25,0.5,1,2,4"
ENLARGED = 3
"""The scale of what was enlarged three times, as a Refiner chooses it."""
HIDDEN_UNITS = 24
SEEDS = 4
STEPS = 500

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
F32 = NDArray[np.float32]


@app.command()
def collect(
    model: Annotated[str, typer.Option(help="Preset, model or folder.")],
    out: Annotated[Path, typer.Option("--json")],
    sets: Annotated[str, typer.Option(help="Comma-separated; all instance sets by default.")] = "",
    subset: Annotated[int, typer.Option(min=1, help="Take every N-th image.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Masks an image.")] = 6,
    scales: Annotated[str, typer.Option(help="Comma-separated.")] = SCALES,
    option: Annotated[list[str] | None, typer.Option(help="Setting of the refiner: KEY=VALUE.")] = None,
    data: Annotated[Path, typer.Option()] = DATA,
) -> None:
    """Refine the val sets without a gate; keep the features and the outcome of each mask."""
    import torch
    from quality_measure import pairs, shown

    from bpr_service.config import parse_settings
    from bpr_service.masks.images import read_image
    from bpr_service.masks.mask import Mask
    from bpr_service.refine.assess import Surroundings
    from bpr_service.refine.reassemble import Averaged
    from bpr_service.refine.refiner import Refiner
    from refiner_training.metrics.boundary import boundary_f, mask_iou

    torch.set_num_threads(1)
    base = Refiner.load(model, **parse_settings(option or []))
    sizes = [float(part) for part in scales.split(",")]
    rows: list[dict[str, Any]] = []
    for name in names_of(sets):
        for item in items_of(data, name)[::subset]:
            coarse, truth = pairs(item)
            if not coarse:
                continue
            image = shown(read_image(item.image), item.payload)
            rng = np.random.default_rng(crc32(item.image.stem.encode()))
            surroundings = Surroundings(image, coarse)
            chosen = rng.permutation(len(coarse))[:most].tolist()
            for scale in sizes:
                here = [k for k in chosen if sensible(scale, coarse[k])]
                measured: dict[int, F32] = {}

                def collector(
                    mask: Mask, averaged: Averaged, of: Any = surroundings, at: float = scale, into: Any = measured
                ) -> None:
                    into[id(mask)] = of.features(mask, averaged, at)

                refiner = Refiner(base.model, base.config.with_options(scale=scale), gate=collector)
                refined = refiner.refine(image, [coarse[k] for k in here])
                for k, r, report in zip(here, refined.masks, refined.reports, strict=True):
                    c, t = coarse[k], truth[k]
                    if id(c) not in measured:
                        continue
                    rows.append(
                        {
                            "set": name,
                            "image": item.image.stem,
                            "group": item.group or item.image.stem,
                            "mask": k,
                            "scale": scale,
                            "patches": report.patches,
                            "area": c.area,
                            "features": [round(float(v), 5) for v in measured[id(c)]],
                            "iou": [mask_iou(c, t), mask_iou(r, t)],
                            "agreement": mask_iou(c, r),
                            "f1": [boundary_f(c, t, 1), boundary_f(r, t, 1)],
                            "f2": [boundary_f(c, t, 2), boundary_f(r, t, 2)],
                        }
                    )
        print(name, sum(row["set"] == name for row in rows), flush=True)
        out.write_text(json.dumps(rows))


def sensible(scale: float, mask: Any) -> bool:
    """Whether `scale` is worth a try: none of patches far smaller than a large mask, or as large as the picture."""
    if scale < 0.5:
        return bool(mask.area < 64 * 64)
    return scale <= 2 or min(mask.height, mask.width) >= 384


@app.command()
def own(
    sets: Annotated[str, typer.Option(help="Comma-separated; all instance sets by default.")] = "",
    subset: Annotated[int, typer.Option(min=1, help="Take every N-th image.")] = 1,
    data: Annotated[Path, typer.Option()] = DATA,
) -> None:
    """Print how many masks of each set are refined at which scale, where none is asked for."""
    from quality_measure import pairs, shown

    from bpr_service.masks.images import read_image
    from bpr_service.refine.scale import OwnScale

    for name in names_of(sets):
        found: Counter[float] = Counter()
        for item in items_of(data, name)[::subset]:
            coarse, _ = pairs(item)
            scale = OwnScale(shown(read_image(item.image), item.payload), 4)
            found.update(map(scale, coarse))
        print(f"{name:16s}" + "".join(f"{count:7d} at {scale:g}" for scale, count in sorted(found.items())), flush=True)


def names_of(sets: str) -> list[str]:
    """The val sets that ``--sets`` names; all of instances where it names none."""
    from quality_domains import DOMAIN_SETS

    return [s for s in sets.split(",") if s] or ["ccp", "bsds", "exact", *DOMAIN_SETS]


def items_of(data: Path, name: str) -> list[Any]:
    """The items of a val set."""
    from quality_domains import DOMAIN_SETS, domain_items
    from quality_sets import corpus_items

    return domain_items(data, name) if name in DOMAIN_SETS else corpus_items(data, [name], 1)


# ---- fitting --------------------------------------------------------------------------------------------------------


def domain(name: str) -> str:
    """What a set's pictures are of: ``davis_exact`` is of ``davis``; the sets of ccp are ``ccp``."""
    return "ccp" if name in ("exact", "blocks", "blank") else re.split("_(?!ct)", name)[0]


def table(rows: list[dict[str, Any]]) -> tuple[F32, F32, F32]:
    """Features (n, F), what is to be estimated (n, 4), and weights (n,): domains count by the root of their masks."""
    x = np.array([row["features"] for row in rows], np.float32)
    moved = np.array([max(1 - row["agreement"], 1e-4) for row in rows])
    gain = np.array([row["iou"][1] - row["iou"][0] for row in rows])
    y = np.stack(
        [
            np.clip(gain / moved, -1, 1),
            [row["f1"][1] - row["f1"][0] for row in rows],
            [row["f2"][1] for row in rows],
            [row["f2"][0] for row in rows],
        ],
        1,
    )
    names = np.array([domain(row["set"]) for row in rows])
    count = {name: int((names == name).sum()) for name in set(names.tolist())}
    weights = np.array([count[name] ** -0.5 for name in names.tolist()])
    return x, y.astype(np.float32), (weights / weights.mean()).astype(np.float32)


def fitted(x: F32, y: F32, weights: F32) -> dict[str, list[Any]]:
    """Several perceptrons side by side as one: ``mean``, ``scale``, ``hidden`` and ``out`` of the card."""
    import torch

    from bpr_service.refine.estimate import CLIP, FEATURES

    mean, scale = x.mean(0), x.std(0) + 1e-3
    given = torch.from_numpy(np.clip((x - mean) / scale, -CLIP, CLIP).astype(np.float32))
    wanted, weight = torch.from_numpy(y), torch.from_numpy(weights)[:, None]
    hidden, out = [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        first, second = torch.nn.Linear(x.shape[1], HIDDEN_UNITS), torch.nn.Linear(HIDDEN_UNITS, y.shape[1])
        parameters = [*first.parameters(), *second.parameters()]
        optimiser = torch.optim.AdamW(parameters, 5e-3, weight_decay=0.05)
        for _ in range(STEPS):
            noisy = given + 0.1 * torch.randn_like(given)
            answer = second(torch.nn.functional.dropout(torch.tanh(first(noisy)), 0.1))
            loss = torch.nn.functional.smooth_l1_loss(answer, wanted, reduction="none", beta=0.3)
            optimiser.zero_grad()
            (loss * weight).mean().backward()
            optimiser.step()
        with torch.no_grad():
            hidden.append(torch.cat((first.weight.T, first.bias[None])).numpy())
            out.append(torch.cat((second.weight.T, second.bias[None])).numpy() / SEEDS)
    together = np.concatenate([*(o[:-1] for o in out), sum(o[-1:] for o in out)])
    return {
        "features": list(FEATURES),
        "mean": _rounded(mean),
        "scale": _rounded(scale),
        "hidden": _rounded(np.concatenate(hidden, 1)),
        "out": _rounded(together),
    }


def _rounded(values: Any) -> list[Any]:
    return np.round(np.asarray(values, np.float64), 4).tolist()


def left_out(rows: list[dict[str, Any]], x: F32, y: F32, weights: F32, by_domain: bool) -> F32:
    """(n, 4): each row estimated by a fit that saw neither its domain, or neither its group of images."""
    from bpr_service.network.weights import EstimateCard
    from bpr_service.refine.estimate import Estimator

    if by_domain:
        part = np.array([domain(row["set"]) for row in rows])
    else:
        part = np.array([str(crc32(row["group"].encode()) % 5) for row in rows])
    answer = np.zeros_like(y)
    for one in sorted(set(part.tolist())):
        here = part == one
        card = EstimateCard(**fitted(x[~here], y[~here], weights[~here]), least_gain=-1)
        answer[here] = Estimator(card).table(x[here])
    return answer


@app.command()
def report(
    rows_files: list[Path],
    scale: Annotated[float, typer.Option(help="Count masks at this scale; all serve the fit.")] = 1.0,
    tries: Annotated[str, typer.Option(help="Of these times the scale take what is expected to be best.")] = "1",
    under: Annotated[float, typer.Option(help="Count only masks of less than the square of this, px.")] = np.inf,
) -> None:
    """Print what each least gain keeps and harms, on masks that the fit did not see."""
    from quality_stats import calibration_error, risk_coverage
    from scipy.stats import spearmanr

    rows = [row for path in rows_files for row in json.loads(path.read_text())]
    x, y, weights = table(rows)
    enlarged = {row["set"] for row in rows if row["set"].endswith("_x3") and row["scale"] == ENLARGED * scale}
    found: dict[tuple[Any, ...], dict[float, int]] = defaultdict(dict)  # the rows of each mask, by their scale
    for i, row in enumerate(rows):
        found[row["set"], row["image"], row["mask"]][row["scale"] / (ENLARGED if row["set"] in enlarged else 1)] = i
    times = [scale * float(one) for one in tries.split(",")]
    for title, by_domain in (("the domain left out", True), ("the images left out", False)):
        answer = left_out(rows, x, y, weights, by_domain)
        small = [of for of in found.values() if rows[next(iter(of.values()))]["area"] < under**2]
        counted = [max((of[s] for s in times if s in of), key=lambda i: answer[i, 2]) for of in small]
        print(f"\n{title}: (1 - F at 1 px) removed, %, / masks worse, %, by least gain")
        print(f"{'set':16s}{'masks':>6s}" + "".join(f"{g:>12g}" for g in LEAST_GAINS))
        of_set: dict[str, list[int]] = defaultdict(list)
        for i in counted:
            row = rows[i]
            of_set[row["set"]].append(i)
        for name, places in sorted(of_set.items()):
            _print_row(name, [rows[i] for i in places], answer[places, 0])
        _print_row("all", [rows[i] for i in counted], answer[counted, 0])
        better = [rows[i]["iou"][1] - rows[i]["iou"][0] > WORSE for i in counted]
        shares = [100 * np.mean(better & (answer[counted, 0] >= least)) for least in LEAST_GAINS]
        print(f"{'masks better, %':22s}" + "".join(f"{share:12.0f}" for share in shares))
        answer, wanted = answer[counted], y[counted]
        confidence = np.where(answer[:, 0] >= -0.2, answer[:, 2], answer[:, 3]).clip(0, 1)
        actual = np.where(answer[:, 0] >= -0.2, wanted[:, 2], wanted[:, 3])
        ece = calibration_error(confidence, actual)
        print(f"confidence: ECE {ece:.3f}, Spearman {spearmanr(confidence, actual)[0]:.3f}")
        worse = np.array([rows[i]["iou"][1] - rows[i]["iou"][0] < -WORSE for i in counted], np.float64)
        found = {key: f"{100 * value:.1f}%" for key, value in risk_coverage(answer[:, 0], worse).items()}
        print("masks worse where the best by expected gain are taken:", ", ".join(f"{k} {v}" for k, v in found.items()))


def _print_row(name: str, rows: list[dict[str, Any]], gains: F32) -> None:
    cells = [_outcome(rows, gains >= least) for least in LEAST_GAINS]
    print(f"{name:16s}{len(rows):6d}" + "".join(f"{cell:>12s}" for cell in cells))


def _outcome(rows: list[dict[str, Any]], taken: NDArray[np.bool_]) -> str:
    before = sum(1 - row["f1"][0] for row in rows)
    after = sum(1 - row["f1"][int(t)] for row, t in zip(rows, taken, strict=True))
    worse = np.mean([t and row["iou"][1] - row["iou"][0] < -WORSE for row, t in zip(rows, taken, strict=True)])
    removed = f"{100 * (1 - after / before):.1f}" if before > 0.03 * len(rows) else "-"
    return f"{removed}/{100 * worse:.0f}"


@app.command()
def fit(
    rows_files: list[Path],
    model: Annotated[Path, typer.Option(help="The model version's folder, whose card is written.")],
    least_gain: Annotated[float, typer.Option()] = -0.2,
) -> None:
    """Fit on all rows, and write the estimate into the card."""
    from bpr_service.network.weights import CARD_FILE

    rows = [row for path in rows_files for row in json.loads(path.read_text())]
    card = fitted(*table(rows))
    count = len({(row["set"], row["image"], row["mask"]) for row in rows})
    scales = ", ".join(sorted({f"{row['scale']:g}" for row in rows}))
    masks = f"{count} masks at scales {scales} of the val sets {', '.join(sorted({row['set'] for row in rows}))}"
    estimate = {**card, "least_gain": least_gain, "fitted_on": masks}
    path = model / CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "estimate": estimate}, indent=2) + "\n")
    print(f"{path}: fitted on {masks}")


if __name__ == "__main__":
    app()
