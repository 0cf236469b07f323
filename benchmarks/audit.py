"""Fit the audit's model of suspicion, and measure it on domains that it was not fitted on.

    python benchmarks/audit.py collect --model balanced --rows rows.npz
    python benchmarks/audit.py report rows.npz --answers answers.npz
    python benchmarks/audit.py kinds rows.npz answers.npz
    python benchmarks/audit.py diagram rows.npz answers.npz docs/images/audit_reliability.svg
    python benchmarks/audit.py fit rows.npz --model MODEL_DIR

``collect`` puts true masks of the val sets, the same with an error of each kind, the fixed coarse masks and those of
real networks through the refiner, and keeps what the audit measures of each. ``report`` prints the figures of docs,
each from a fit that did not see the domain (away) or the pictures (home), and keeps its answers; ``kinds`` and
``diagram`` are of these. ``fit`` fits on all rows and writes the
card's ``audit``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import numpy as np
import typer
from audit_errors import ERRORS, with_error

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
HOME = "ccp"
SETS = (
    "ccp", "bsds", "camvid", "davis", "penn", "cwfid", "wbc", "carparts", "rock_ct", "vessels", "glas", "lung", "smear",
    "davis_deeplab", "penn_deeplab", "davis_soft", "penn_soft", "glas_unet", "lung_unet", "smear_unet",
)  # fmt: skip
KINDS_A_MASK = 2
LEAST_MASKS = 160
"""Masks of a set of few images, where they have as many."""
LEAST_PX = 64
CAMVID_LABELS = range(11)

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command()
def collect(
    model: Annotated[str, typer.Option(help="Preset, model or folder.")],
    out: Annotated[Path, typer.Option("--rows")],
    sets: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    images: Annotated[int, typer.Option(min=1, help="At most so many images a set.")] = 60,
    most: Annotated[int, typer.Option(min=1, help="At most so many masks an image.")] = 4,
    option: Annotated[list[str] | None, typer.Option(help="Setting of the refiner: KEY=VALUE.")] = None,
    data: Annotated[Path, typer.Option()] = DATA,
) -> None:
    """Measure masks of the val sets, right and wrong; keep the inputs of suspicion and the truth of each."""
    import time

    import torch

    from bpr_service.config import parse_settings
    from bpr_service.refine.refiner import Refiner

    torch.set_num_threads(1)
    refiner = Refiner.load(model, **parse_settings(option or ["backend=openvino", "precision=int8"]))
    rows: list[dict[str, Any]] = []
    for name in [s for s in sets.split(",") if s] or SETS:
        started, before = time.perf_counter(), len(rows)
        items = _items(data, name)
        items = items[:: -(-len(items) // images)]
        for item in items:
            rows += _rows(refiner, name, item, max(most, LEAST_MASKS // len(items)))
        print(f"{name}: {len(rows) - before} masks in {time.perf_counter() - started:.0f} s", flush=True)
        _save(out, rows)


def _items(data: Path, name: str) -> list[Any]:
    from quality_domains import DOMAIN_SETS, domain_items, with_payload
    from quality_sets import corpus_items

    if name not in DOMAIN_SETS:
        return corpus_items(data, [name], 1)
    items = domain_items(data, name)
    return [with_payload(item, most=LEAST_MASKS) if "most" in item.payload else item for item in items]


def _save(out: Path, rows: list[dict[str, Any]]) -> None:
    from bpr_service.audit.measures import INPUTS

    inputs = np.array([row.pop("inputs") if "inputs" in row else row["kept"] for row in rows], np.float32)
    for row, values in zip(rows, inputs, strict=True):
        row["kept"] = values
    told = [{key: value for key, value in row.items() if key != "kept"} for row in rows]
    np.savez_compressed(out, inputs=inputs, rows=json.dumps(told), names=json.dumps(INPUTS))


def _pairs(item: Any) -> list[tuple[Any, Any]]:
    """(coarse, true) masks of an item; of a label map, those of its labels."""
    from quality_measure import pairs

    if item.kind == "instance":
        return list(zip(*pairs(item), strict=True))
    from bpr_service.masks.label_maps import read_label_map
    from bpr_service.masks.mask import Mask

    maps = [read_label_map(item.payload[key]) for key in ("coarse", "truth")]
    found = [[Mask.from_array(one == label) for one in maps] for label in CAMVID_LABELS]
    return [(c, t) for c, t in found if t.area >= LEAST_PX and c.area]


def _rows(refiner: Any, name: str, item: Any, most: int) -> list[dict[str, Any]]:
    from bpr_service.audit.measures import Neighbours, measure
    from bpr_service.audit.task import see
    from bpr_service.masks.images import read_image
    from refiner_training.metrics.boundary import boundary_f, mask_iou

    image = read_image(item.image)
    both = [(c, t) for c, t in _pairs(item) if t.area >= LEAST_PX and t.area < 0.9 * t.height * t.width and c.area]
    truths = [t for _, t in both]
    rng = np.random.default_rng(crc32(f"{name}/{item.image.stem}".encode()))
    rows = []
    for k in rng.permutation(len(both))[:most].tolist():
        coarse, truth = both[k]
        others = [t for i, t in enumerate(truths) if i != k]
        tries: list[tuple[str, Any]] = [("coarse", coarse)]
        if "_" not in name or name == "rock_ct":
            tries.append(("exact", truth))
            for kind in rng.permutation(sorted(ERRORS))[:KINDS_A_MASK].tolist():
                tries.append((kind, with_error(kind, truth, others, rng)))
        for kind, mask in tries:
            if mask is None:
                continue
            (seen,) = see(refiner, image, [mask], among=[mask, *others])
            if seen is None:
                continue
            inputs, _ = measure(image, mask, seen.refined, seen.features, Neighbours([mask, *others]).overlap(0))
            rows.append(
                {
                    "set": name,
                    "domain": "rock_ct" if name == "rock_ct" else name.split("_")[0],
                    "group": item.group or item.image.stem,
                    "kind": kind,
                    "size": float(np.sqrt(truth.area)),
                    "iou": mask_iou(mask, truth),
                    "f1": boundary_f(mask, truth, 1),
                    "f2": boundary_f(mask, truth, 2),
                    "f3": boundary_f(mask, truth, 3),
                    "refined_iou": mask_iou(seen.refined, truth),
                    "inputs": inputs,
                }
            )
    return rows


@app.command()
def report(
    rows_file: Path,
    domains: Annotated[str, typer.Option(help="Comma-separated; all by default.")] = "",
    answers_file: Annotated[Path | None, typer.Option("--answers", help="Keep the answers here.")] = None,
) -> None:
    """Print the figures of each domain, judged by a fit without it; of home, by fits without the pictures."""
    import torch
    from audit_fit import fitted, judged_by, load, shown

    torch.set_num_threads(1)
    rows = load(rows_file)
    suspicion, kinds = np.zeros(len(rows.told), np.float32), np.zeros((len(rows.told), 8), np.float32)
    for name in [one for one in domains.split(",") if one] or sorted(set(rows.domain.tolist())):
        here = rows.domain == name
        part = np.array([crc32(group.encode()) % 3 if name == HOME else 0 for group in rows.group.tolist()])
        answers = []
        for k in sorted(set(part[here].tolist())):
            unseen = here & (part == k)
            found = judged_by(fitted(rows.take(~unseen)), rows.take(here))
            answers.append((part[here] == k, found))
            suspicion[unseen], kinds[unseen] = (v[part[here] == k] for v in (found.suspicion, found.kinds))
        print(f"{name:10s} {shown(rows.take(here), answers)}", flush=True)
    if answers_file is not None:
        np.savez_compressed(answers_file, suspicion=suspicion, kinds=kinds)


@app.command()
def kinds(rows_file: Path, answers: Path) -> None:
    """Print how often a kind that is named is right, and from which likelihood on it is best named."""
    from audit_figures import kinds_table, saved
    from audit_fit import load

    from bpr_service.audit.kinds import NAMED_FROM

    rows = load(rows_file)
    print("\n".join(kinds_table(rows, *saved(answers, rows), NAMED_FROM)))


@app.command()
def diagram(rows_file: Path, answers: Path, out: Path) -> None:
    """Draw how often masks are wrong against how suspicious they are."""
    import audit_figures as figures
    from audit_fit import load

    rows = load(rows_file)
    points, error = figures.reliability(rows, figures.saved(answers, rows)[0])
    out.write_text(figures.diagram(points, error))
    print(f"{out}: calibration error {error:.3f}")


@app.command()
def fit(
    rows_file: Path,
    model: Annotated[Path, typer.Option(help="The model version's folder, whose card is written.")],
) -> None:
    """Fit on all rows, and write the audit into the card."""
    import torch
    from audit_fit import fitted, load

    from bpr_service.network.weights import CARD_FILE

    torch.set_num_threads(1)
    rows = load(rows_file)
    masks = f"{len(rows.told)} masks of the val sets {', '.join(sorted({row['set'] for row in rows.told}))}"
    path = model / CARD_FILE
    card = {**json.loads(path.read_text()), "audit": {**fitted(rows), "fitted_on": masks}}
    path.write_text(json.dumps(card, indent=2) + "\n")
    print(f"{path}: fitted on {masks}")


if __name__ == "__main__":
    app()
