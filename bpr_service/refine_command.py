"""What ``bpr refine`` does: the masks of one photograph, written back into the file that they came in."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bpr_service import storage
from bpr_service.commands import add_row, table_of, working
from bpr_service.config import RefineConfig, build, parse_settings
from bpr_service.errors import ConfigError, FormatError, InputError
from bpr_service.formats import FileOptions, InstancePrediction, PanopticPrediction, SemanticPrediction
from bpr_service.formats.one_image import OneImage, folder_format, open_one
from bpr_service.formats.records.coco_panoptic import recomputed
from bpr_service.formats.records.record_file import plain_id
from bpr_service.formats.refining import RefinedUnit, refine_file_unit, refine_segments
from bpr_service.formats.targets import check_suffix, check_target
from bpr_service.masks.images import open_image
from bpr_service.masks.label_maps import panoptic_png, read_panoptic_png
from bpr_service.masks.mask import Mask
from bpr_service.masks.picture import WRITTEN, before_after, write_picture
from bpr_service.refine.refiner import Refiner
from bpr_service.results import MaskReport

PIPE = "-"


@dataclass(frozen=True)
class Arguments:
    """What is refined and where the result goes; "-" is standard input or output."""

    image: Path
    mask: Path
    out: str
    task: str = "instance"
    format: str | None = None
    image_id: str | None = None
    ignore_label: int | None = None
    segments: Path | None = None
    picture: Path | None = None


def run_refine(
    arguments: Arguments,
    options: FileOptions,
    *,
    preset: str,
    model: Path | None,
    device: str,
    settings: Iterable[str] = (),
) -> None:
    """Refine masks and write them as they came.

    Of one image: nothing is written when anything is wrong; folders go to the driver of ``bpr batch``.
    """
    config = parse_settings(settings)
    build(RefineConfig, config)
    if arguments.image.is_dir() or arguments.mask.is_dir():
        _folder(arguments, options, preset=preset, model=model, device=device, settings=config)
        return
    _check_targets(arguments)
    with working(f"refining {arguments.image.name}"), _piped(arguments) as (image, mask, out):
        if arguments.task == "panoptic":
            _panoptic(
                arguments, options, image, mask, out, lambda: Refiner.load(preset, model=model, device=device, **config)
            )
            return
        one = open_one(image, mask, arguments.task, arguments.format, options, arguments.image_id)
        refiner = Refiner.load(preset, model=model, device=device, **config)
        refined = refine_file_unit(refiner, one.file, one.unit, arguments.ignore_label)
        if refined.failed:
            raise InputError(refined.failed[0])
        one.write(str(out), refined.encoded)
    if arguments.picture is not None:
        write_picture(str(arguments.picture), before_after(refined.image, *_pair(refined)))
    told = [*refined.warnings, *_simplified(refined.simplified)]
    if isinstance(refined.before, InstancePrediction) and not refined.before.instances:
        told.append(f"{arguments.mask} has no mask of this image; it was copied as it is")
    _tell(refiner, arguments.out, _named(refined, one), refined.skipped, told)


def _folder(
    arguments: Arguments,
    options: FileOptions,
    *,
    preset: str,
    model: Path | None,
    device: str,
    settings: dict[str, Any],
) -> None:
    """A folder of images and one of masks: the simplest batch."""
    from bpr_service.jobs.batch_commands import print_result
    from bpr_service.jobs.refine.batch import Batch, run_batch
    from bpr_service.jobs.requests import RefineRequest

    if not (arguments.image.is_dir() and arguments.mask.is_dir()):
        got = f"a folder ({arguments.image if arguments.image.is_dir() else arguments.mask}) and a file"
        fix = "a data set's file is for bpr batch instance --images DIR --predictions FILE"
        raise ConfigError("bpr refine", expected="two files or two folders", got=got, fix=fix)
    of_one = {"--picture": arguments.picture, "--image-id": arguments.image_id, "--segments": arguments.segments}
    for option, value in of_one.items():
        if value is not None:
            raise ConfigError(option, expected="one image", got="a folder", fix="leave it out")
    if arguments.task == "panoptic":
        raise ConfigError("--task panoptic", expected="one image", got="a folder", fix="use bpr batch panoptic")
    task, found = folder_format(arguments.mask, arguments.task)
    values = {"task": task, "format": arguments.format or found, "images": str(arguments.image), "preset": preset,
              "predictions": str(arguments.mask), "out": arguments.out, "ignore_label": arguments.ignore_label,
              "model": None if model is None else str(model), "settings": settings}  # fmt: skip
    result = run_batch(build(RefineRequest, {**options.model_dump(), **values}), Batch(device=device))
    print_result(result, arguments.out)
    if result.exit_code:
        raise SystemExit(result.exit_code)


def _simplified(sums: dict[str, float]) -> list[str]:
    """What simplifying the outlines cost, in a line."""
    if not sums.get("masks"):
        return []
    lost = sums["f_lost_at_1px"] / sums["masks"]
    before, after = int(sums["vertices_before"]), int(sums["vertices_after"])
    return [f"outlines of {before} vertices became {after}; boundary F at 1 px lost: {lost:.4f}"]


def _check_targets(arguments: Arguments) -> None:
    """Whether the results can be written, before the work."""
    if arguments.picture is not None:
        check_target(arguments.picture, "--picture")
        if arguments.picture.suffix.lower() not in WRITTEN:
            wanted = f"a name that ends with {', '.join(filter(None, WRITTEN))}"
            got = arguments.picture.suffix
            raise ConfigError(f"--picture {arguments.picture}", expected=wanted, got=got, fix="name it so")
    if arguments.out == PIPE:
        if arguments.task == "panoptic":
            raise ConfigError("-o -", expected="a file", got="standard output", fix="a panoptic result is two files")
        return
    check_target(arguments.out, "-o")
    check_suffix(str(arguments.mask), arguments.out, "-o")
    targets = [("-o", Path(arguments.out)), ("--picture", arguments.picture)]
    if arguments.task == "panoptic":
        targets.append(("the segments beside -o", Path(arguments.out).with_suffix(".json")))
    taken = {os.path.realpath(arguments.image): "the photograph"}
    for what, path in targets:
        real = "" if path is None else os.path.realpath(path)
        if real in taken:
            raise ConfigError(f"{what} {path}", expected="a file of its own", got=taken[real], fix="name another")
        taken |= {real: what} if real else {}


@contextmanager
def _piped(arguments: Arguments) -> Iterator[tuple[Path, Path, Path]]:
    """Image, mask and out as files: what comes on standard input, and what goes to standard output, by way of one."""
    with tempfile.TemporaryDirectory(prefix="bpr-") as folder:
        image, mask = (_from_pipe(path, Path(folder)) for path in (arguments.image, arguments.mask))
        out = Path(folder, "out") if arguments.out == PIPE else Path(arguments.out)
        yield image, mask, out
        if arguments.out == PIPE:
            sys.stdout.buffer.write(out.read_bytes())
            sys.stdout.buffer.flush()


def _from_pipe(path: Path, folder: Path) -> Path:
    if path != Path(PIPE):
        return path
    target = folder / "stdin"
    if target.exists():
        raise ConfigError("-", expected="one of image and masks on standard input", got="both", fix="name one of them")
    target.write_bytes(sys.stdin.buffer.read())
    return target


def _named(refined: RefinedUnit, one: OneImage) -> list[tuple[str, MaskReport]]:
    """Each report with what its mask is called: its category where the file names them."""
    if not isinstance(refined.before, InstancePrediction):
        return [(str(report.label), report) for report in refined.reports]
    usable = [item for item in refined.before.instances if item.mask is not None]
    names = [one.categories.get(item.category) for item in usable]
    return [
        (f"{report.index} {name}" if name else str(report.index), report)
        for report, name in zip(refined.reports, names, strict=True)
    ]


def _pair(refined: RefinedUnit) -> tuple[list[Mask], list[Mask]]:
    """Masks before and after, for the picture."""
    before, after = refined.before, refined.after
    if isinstance(before, InstancePrediction) and isinstance(after, InstancePrediction):
        return before.masks, after.masks
    assert isinstance(before, SemanticPrediction)
    assert isinstance(after, SemanticPrediction)
    return _as_masks(before.label_map, after.label_map)


def _as_masks(before: NDArray[Any], after: NDArray[Any]) -> tuple[list[Mask], list[Mask]]:
    """One mask a label, before and after, for the picture."""
    labels = [label for label in np.union1d(before, after) if label != 0]
    return [Mask.from_array(before == label) for label in labels], [Mask.from_array(after == label) for label in labels]


def _panoptic(arguments: Arguments, options: FileOptions, image: Path, mask: Path, out: Path, load: Any) -> None:
    """A panoptic PNG with its segments: two files in, two files out."""
    infos, document = _segments(arguments.segments)
    refiner = load()
    config = refiner.config
    read = open_image(
        image, max_pixels=config.max_pixels, exif=options.exif or "ignore", page=options.page, window=options.window,
        no_data=options.no_data,
    )  # fmt: skip
    ids = read_panoptic_png(mask, max_pixels=config.max_pixels)
    before = PanopticPrediction(ids, infos, {}, ids)
    after, reports, lost = refine_segments(refiner, read.pixels, before, options.crowds, read.valid)
    same = np.array_equal(after.segment_map, ids)
    storage.write_bytes(out, mask.read_bytes() if same else panoptic_png(after.segment_map))
    left = recomputed(after.segment_map, np.zeros_like(ids), after.segments_info)
    new = {**document, "segments_info": left} if isinstance(document, dict) else left
    storage.write_bytes(out.with_suffix(".json"), (json.dumps(new) + "\n").encode())
    if arguments.picture is not None:
        write_picture(str(arguments.picture), before_after(read.pixels, *_as_masks(ids, after.segment_map)))
    _tell(refiner, arguments.out, [(str(report.label), report) for report in reports], {}, [*read.warnings, *lost])


def _segments(path: Path | None) -> tuple[list[dict[str, Any]], Any]:
    if path is None:
        raise ConfigError(
            "panoptic", expected="--segments JSON with segments_info", got="none", fix="add it: the PNG holds ids only"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise FormatError(str(path), expected="JSON with segments_info", got=str(error), fix="mend it") from None
    infos = document.get("segments_info") if isinstance(document, dict) else document
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise FormatError(str(path), expected="segments_info", got="none", fix="as in COCO panoptic annotations")
    return [{**info, "id": plain_id(info.get("id"))} for info in infos], document


def _tell(
    refiner: Refiner,
    out: str,
    reports: Sequence[tuple[str, MaskReport]],
    skipped: dict[str, int],
    warnings: Sequence[str],
) -> None:
    """What was done, on standard error."""
    table = table_of("mask", "status", "confidence", "scale", "patches", "pixels added", "pixels removed")
    for name, report in reports:
        add_row(table, (name,), report)
    console = Console(stderr=True)
    console.print(table)
    for reason, count in skipped.items():
        console.print(f"left alone: {count} ({reason})", highlight=False)
    for line in warnings:
        console.print(f"warning: {line}", highlight=False, markup=False)
    console.print(f"model {refiner.model.name} on {refiner.runs_on}; wrote {out}")
