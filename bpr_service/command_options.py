"""Options that several commands share: what ``--help`` says of each, once. Nothing heavy is imported.

What can be wrong with a name or a path is found while the command line is read, before anything heavy is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer


def _preset(name: str) -> str:
    from bpr_service.config import get_preset

    return get_preset(name).name


def _model(path: Any) -> Any:
    if path is not None and "@" not in str(path):  # NAME@... is the model store's
        from bpr_service.network.weights import find_model

        find_model(path)
    return path


def _device(name: str) -> str:
    if not name.startswith("cuda"):  # whether that is there, torch knows
        from bpr_service.network.devices import resolve_device

        resolve_device(name)
    return name


def _settings(pairs: list[str] | None) -> list[str] | None:
    from bpr_service.config import RefineConfig, build, parse_settings

    build(RefineConfig, parse_settings(pairs or ()))
    return pairs


def _task(name: str) -> str:
    from bpr_service.errors import UnknownName

    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    return name


def _presets() -> list[str]:
    from bpr_service.config import PRESETS

    return list(PRESETS)


def there(what: str) -> Callable[[Any], Any]:
    """A callback for a path of this machine that must exist; "-" and addresses of object storage pass.

    Raises:
        FormatError: it does not.
    """

    def check(path: Any) -> Any:
        from bpr_service.errors import FormatError

        if path is not None and str(path) != "-" and "://" not in str(path) and not Path(path).exists():
            raise FormatError(str(path), expected=what, got="no such file or folder", fix="check the path")
        return path

    return check


TASKS = ("instance", "labels", "soft", "semantic", "panoptic")
"""What ``bpr refine`` can be told that masks are."""
Task = Annotated[
    str,
    typer.Option(
        help="instance, semantic, panoptic; labels: a picture of instance ids; soft: probabilities of one mask.",
        callback=_task,
        autocompletion=lambda: list(TASKS),
    ),
]
Preset = Annotated[str, typer.Option(help="fast, lean, balanced or best.", callback=_preset, autocompletion=_presets)]
Model = Annotated[
    str | None, typer.Option(help="A model version's folder, or NAME@... of the model store.", callback=_model)
]
ModelFolder = Annotated[
    Path | None, typer.Option(help="A model version's folder, instead of the preset's model.", callback=_model)
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", callback=_device)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE instead of the preset's, as backend=eager.", callback=_settings),
]

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
    "logits": (_YES, False, typer.Option(
        "--logits", help="Floats of soft masks are taken before the sigmoid, of classes before the softmax."
    )),
    "classes": (int | None, None, typer.Option(
        help="Semantic: the number of classes, for figures and of probabilities.", min=2
    )),
    "simplify": (float | None, None, typer.Option(
        help="Write polygons of few corners, no point farther from the refined edge than this, px.", metavar="PX"
    )),
    "page": (int | None, None, typer.Option(help="Which page of a TIFF is the image, from 1.", min=1)),
    "window": (_TEXT, None, typer.Option(
        help="auto, or LOW,HIGH: the values of the image that become black and white."
    )),
    "no_data": (_TEXT, None, typer.Option(
        help="Where no mask changes: a value that is no data, or auto: transparent, NaN, or as a GeoTIFF says."
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
