"""``bpr-train evaluate instance | semantic | panoptic``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpr_service.errors import ConfigError

if TYPE_CHECKING:
    from refiner_training.evaluate import Evaluation

app = typer.Typer(
    help="Measure predictions, and what a refinement made of them.", no_args_is_help=True, add_completion=False
)

AsJson = Annotated[bool, typer.Option("--json", help="Print every measure as JSON.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with charts and pictures.")]
Images = Annotated[Path | None, typer.Option(metavar="DIR", help="The images, for the pictures of the page.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default one a processor.")]
Ratio = Annotated[
    float,
    typer.Option(min=1e-5, max=0.5, help="Boundary IoU's width, a share of the diagonal (Cityscapes 0.005)."),
]


@app.command()
def instance(
    dataset: Annotated[
        Path, typer.Option("--truth", "--dataset", metavar="ANN.json", help="Ground truth: COCO or LVIS.")
    ],
    predictions: Annotated[Path, typer.Option(metavar="PRED.json", help="Results in COCO's format.")],
    before: Annotated[Path | None, typer.Option(metavar="PRED.json", help="The coarse results.")] = None,
    boundary_ratio: Ratio = 0.02,
    upper_bound: Annotated[
        str, typer.Option(metavar="PX,...", help="As 1,2,3: also with the truth so near the predicted boundary.")
    ] = "",
    coco_ids: Annotated[
        bool, typer.Option("--coco-ids", help="The truth is LVIS', the results have COCO's ids: AP*.")
    ] = False,
    images: Images = None,
    html: Html = None,
    json: AsJson = False,
    workers: Workers = None,
) -> None:
    """Mask AP, boundary AP and AF; of LVIS also AP of rare, common and frequent categories."""
    from refiner_training.evaluate import evaluate_instances

    evaluation = evaluate_instances(
        dataset,
        predictions,
        before=before,
        images=images,
        boundary_ratio=boundary_ratio,
        upper_bounds=_distances(upper_bound, "--upper-bound"),
        coco_ids=coco_ids,
        workers=workers,
    )
    _deliver(evaluation, html, json)


@app.command()
def semantic(
    labels: Annotated[Path, typer.Option("--truth", "--labels", metavar="DIR", help="Label PNGs of the ground truth.")],
    predictions: Annotated[Path, typer.Option(metavar="DIR", help="Label PNGs of the same names.")],
    classes: Annotated[int, typer.Option(min=1, max=65535, help="Labels are 0 to CLASSES - 1.")],
    before: Annotated[Path | None, typer.Option(metavar="DIR", help="The coarse label PNGs.")] = None,
    ignore_label: Annotated[int, typer.Option(help="A label of the ground truth that is not measured.")] = 255,
    boundary_ratio: Ratio = 0.02,
    boundary_px: Annotated[
        str, typer.Option(metavar="PX,...", help="As 12,9,5,3: also boundary F within so many px.")
    ] = "",
    images: Images = None,
    html: Html = None,
    json: AsJson = False,
    workers: Workers = None,
) -> None:
    """mIoU and boundary F of each class."""
    from refiner_training.evaluate import evaluate_semantic

    evaluation = evaluate_semantic(
        labels,
        predictions,
        classes,
        before=before,
        ignore_label=ignore_label,
        images=images,
        boundary_ratio=boundary_ratio,
        boundary_px=_distances(boundary_px, "--boundary-px"),
        workers=workers,
    )
    _deliver(evaluation, html, json)


@app.command()
def cityscapes(
    truth: Annotated[Path, typer.Option(metavar="DIR", help="gtFine of a split: *_gtFine_instanceIds.png.")],
    predictions: Annotated[Path, typer.Option(metavar="DIR", help="Cityscapes' instance results.")],
) -> None:
    """Cityscapes' own AP, by its own scripts (pip install cityscapesscripts), as JSON."""
    import json

    from refiner_training.evaluation.cityscapes import evaluate_cityscapes
    from refiner_training.evaluation.common import plain_json

    print(json.dumps(plain_json(evaluate_cityscapes(truth, predictions)), indent=2))


@app.command()
def panoptic(
    dataset: Annotated[
        Path, typer.Option("--truth", "--dataset", metavar="PAN_GT.json", help="Ground truth: COCO panoptic.")
    ],
    panoptic_dir: Annotated[Path, typer.Option(metavar="DIR", help="Its PNGs.")],
    predictions: Annotated[Path, typer.Option(metavar="PAN.json", help="Predictions: COCO panoptic.")],
    predictions_dir: Annotated[Path, typer.Option(metavar="DIR", help="Their PNGs.")],
    before: Annotated[Path | None, typer.Option(metavar="PAN.json", help="The coarse predictions.")] = None,
    before_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Their PNGs; default the folder named as the file.")
    ] = None,
    boundary_ratio: Ratio = 0.02,
    images: Images = None,
    html: Html = None,
    json: AsJson = False,
    workers: Workers = None,
) -> None:
    """PQ, SQ, RQ and boundary PQ."""
    from refiner_training.evaluate import evaluate_panoptic

    evaluation = evaluate_panoptic(
        dataset,
        panoptic_dir,
        predictions,
        predictions_dir,
        before=before,
        before_dir=before_dir,
        images=images,
        boundary_ratio=boundary_ratio,
        workers=workers,
    )
    _deliver(evaluation, html, json)


def _distances(text: str, option: str) -> list[int]:
    """``"1,2,3"`` as numbers; :class:`ConfigError` for what is no distance."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() and 0 < int(part) <= 1000 for part in parts):
        raise ConfigError(option, expected="distances in px, as 1,2,3", got=repr(text), fix="see --help")
    return [int(part) for part in parts]


def _deliver(evaluation: Evaluation, html: Path | None, as_json: bool) -> None:
    """Print the measures, write the page, name what failed; exit code 1 when something did."""
    import json

    from refiner_training.report import summary_table, write_report

    if html is not None:
        write_report(evaluation, html)
        print(f"wrote {html}", file=sys.stderr)
    print(json.dumps(evaluation.to_json(), indent=2, allow_nan=False) if as_json else summary_table(evaluation))
    for failure in evaluation.failures:
        print(f"left out: {failure.file}: {failure.entry}: {failure.error}", file=sys.stderr)
    if evaluation.failures:
        raise typer.Exit(1)
