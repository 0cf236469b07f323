"""The ``bpr-train`` command: parse, call, print.

Each command is a module of :mod:`refiner_training.commands` that imports nothing heavy before it runs, so
``bpr-train --help`` answers at once. Exit codes: 0 done, 1 some items failed (each named), 2 the call is wrong.
"""

from __future__ import annotations

import sys

import typer

from bpr_service.command_examples import show_examples
from bpr_service.errors import BprError
from bpr_service.extras import missing
from refiner_training.commands import evaluate, training
from refiner_training.commands.init import init
from refiner_training.commands.segmenter import export_segmenter, predict, segmenter

app = typer.Typer(
    name="bpr-train",
    help="Train refiners, make coarse masks, and measure both.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(init)
app.command()(training.scenes)
app.command()(training.patches)
app.command()(training.refiner)
app.command()(training.export)
app.add_typer(evaluate.app, name="evaluate")
app.command()(segmenter)
app.command()(predict)
app.command()(export_segmenter)
EXAMPLES = {
    "init": "--images photos --truth truth.json --predictions results.json -o recipe.yaml",
    "scenes": "--out runs/scenes --source mine=coco:truth.json:photos",
    "patches": "--images photos --truth truth.json --predictions results.json --recipe recipe.yaml --out runs/patches",
    "refiner": "recipe.yaml --set run.steps=2000",
    "export": "runs/mine --calibrate data",
    "segmenter": "refiner_training/configs/segmenter/camvid.yaml --arch deeplabv3plus --head bsm",
    "predict": "runs/segmenter/last.ckpt photos --out predictions.json",
    "export-segmenter": "runs/segmenter",
    "evaluate instance": "--truth truth.json --predictions refined.json --before results.json --html report.html",
    "evaluate semantic": "--truth labels --predictions refined --classes 19 --json",
    "evaluate cityscapes": "--truth gtFine/val --predictions refined",
    "evaluate panoptic": "--truth pan_gt.json --panoptic-dir pan_gt --predictions pan.json --predictions-dir pan",
}
show_examples(app, "bpr-train", EXAMPLES)


@app.callback()
def _root() -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except BprError as error:
        print(f"bpr-train: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        if (of_extra := missing(error)) is None:
            raise
        print(f"bpr-train: {of_extra}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
