"""Cityscapes' own instance AP: its own scripts do the measuring, `pip install cityscapesscripts` brings them.

They are no dependency: their licence allows no commercial use. COCO's AP of the same masks differs: Cityscapes leaves
regions under 100 px out, counts void and groups, and integrates another curve.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from bpr_service.errors import ConfigError, FormatError


def evaluate_cityscapes(truth: Path, predictions: Path) -> dict[str, Any]:
    """AP and AP50 of Cityscapes' instance results, over all and by class.

    Args:
        truth: a folder with ``*_gtFine_instanceIds.png`` in it or below.
        predictions: a folder with a text file an image, as `bpr batch` reads and writes them.

    Raises:
        ConfigError: cityscapesscripts is not installed.
        FormatError: no truth, or a prediction that is missing or not in the format.
    """
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Cityscapes' AP",
            expected="the package cityscapesscripts",
            got=f"no module {error.name}",
            fix="pip install cityscapesscripts; its licence allows no commercial use",
        ) from None
    files = [str(path) for path in sorted(truth.rglob("*_gtFine_instanceIds.png"))]
    if not files:
        fix = "name the folder of a split, as gtFine/val"
        raise FormatError(str(truth), expected="files *_gtFine_instanceIds.png", got="none", fix=fix)
    args, said = official.args, io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        patch.object(np, "in1d", np.isin, create=True),  # they still call it; numpy has it no more
    ):
        args.predictionPath, args.predictionWalk = str(predictions.resolve()), None
        args.gtInstancesFile, args.quiet = str(Path(folder) / "instances.json"), True
        try:
            official.setInstanceLabels(args)
            own = [official.getPrediction(file, args) for file in files]
            matches = official.matchGtWithPreds(own, files, official.getGtInstances(files, args), args)
        except SystemExit:
            got = said.getvalue().strip().splitlines()[-1][:300]
            raise FormatError(
                str(predictions), expected="Cityscapes' instance results", got=got, fix="see docs/howto/cityscapes.md"
            ) from None
        averages = official.computeAverages(official.evaluateMatches(matches, args), args)
    classes = {name: {"AP": value["ap"], "AP50": value["ap50%"]} for name, value in averages["classes"].items()}
    return {"task": "cityscapes", "AP": averages["allAp"], "AP50": averages["allAp50%"], "images": len(files),
            "per_class": classes}  # fmt: skip
