"""Options that several commands share: what ``--help`` says of each, once. Nothing heavy is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE instead of the preset's, as backend=eager.")]

_TEXT, _YES = str | None, bool
_FILES: dict[str, tuple[Any, Any, typer.models.OptionInfo]] = {
    "exif": (_TEXT, None, typer.Option(
        help="apply: masks speak of the upright photograph; ignore: of its stored pixels; default: as the format does."
    )),
    "encoding": (_TEXT, "same", typer.Option(
        help="How masks are written: same (as they came), rle, uncompressed_rle, polygon, png."
    )),
    "crowds": (_YES, False, typer.Option("--crowds", help="Refine records that are marked as crowds too.")),
    "match": (_TEXT, None, typer.Option(
        help="Which files of a folder are predictions, the first star the image's name: '*_mask.png'."
    )),
    "columns": (_TEXT, None, typer.Option(
        help="YOLO, behind the points: none, confidence, confidence+track; default: finds out."
    )),
    "logits": (_YES, False, typer.Option("--logits", help="Floats of soft masks are taken before the sigmoid.")),
    "simplify": (float | None, None, typer.Option(
        help="Write polygons of few corners, no point farther from the refined edge than this, px.", metavar="PX"
    )),
    "page": (int | None, None, typer.Option(help="Which page of a TIFF is the image, from 1.", min=1)),
    "window": (_TEXT, None, typer.Option(
        help="auto, or LOW,HIGH: the values of the image that become black and white."
    )),
}  # fmt: skip
"""Type, default and help of the fields of `FileOptions`."""


def takes_files(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with the parameter ``files``, a `FileOptions`, takes these options in its place."""
    taken = {name: entry for name, entry in _FILES.items() if name not in left_out}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**values: Any) -> None:
            from bpr_service.config import build
            from bpr_service.formats import FileOptions

            files = build(FileOptions, {name: values.pop(name) for name in taken})
            command(**values, files=files)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "files"]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
            for name, (kind, default, option) in taken.items()
        ]
        call.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in (*own, *more)}
        return call

    return decorate
