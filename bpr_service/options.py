"""Options that several commands share: what ``--help`` says of each, once. Nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bpr_service.formats import FileOptions

Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE instead of the preset's, as backend=eager.")]
Exif = Annotated[
    str | None,
    typer.Option(help="apply: masks speak of the upright photograph; ignore: of its stored pixels; default: as the "
                 "format has it."),
]  # fmt: skip
Encoding = Annotated[
    str, typer.Option(help="How masks are written: same (as they came), rle, uncompressed_rle, polygon, png.")
]
Crowds = Annotated[bool, typer.Option("--crowds", help="Refine records that are marked as crowds too.")]
Columns = Annotated[
    str | None, typer.Option(help="YOLO, behind the points: none, confidence, confidence+track; default: finds out.")
]
Simplify = Annotated[
    float | None,
    typer.Option(help="Write polygons of few corners, no point farther from the refined edge than this, px.",
                 metavar="PX"),
]  # fmt: skip
Page = Annotated[int | None, typer.Option(help="Which page of a TIFF is the image, from 1.", min=1)]
Window = Annotated[
    str | None, typer.Option(help="auto, or LOW,HIGH: the values of the image that become black and white.")
]


def file_options(*, window: str | None = None, **values: Any) -> FileOptions:
    """The options as one object. Raises `ConfigError` for a value that cannot be."""
    from bpr_service.config import build
    from bpr_service.formats import FileOptions

    return build(FileOptions, {**values, "window": parse_window(window)})


def parse_window(text: str | None) -> Any:
    """``auto``, or the two numbers of ``LOW,HIGH``; other text as it is, which is then refused by name."""
    try:
        low, high = (float(part) for part in (text or "").split(","))
    except ValueError:
        return text
    return low, high
