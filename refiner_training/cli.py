"""The ``bpr-train`` command: parse, call, print.

Each command is a module of :mod:`refiner_training.commands` that imports nothing heavy before it runs, so
``bpr-train --help`` answers at once. Exit codes: 0 done, 1 some items failed (each named), 2 the call is wrong.
"""

from __future__ import annotations

import sys

import typer

from bpr_service.errors import BprError
from bpr_service.extras import missing
from refiner_training.commands import evaluate, training
from refiner_training.commands.init import init
from refiner_training.commands.segmenter import predict, segmenter

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
