"""Evaluate predictions, and what a refinement made of them, with the field's own measures.

==================  ============================  =========================================
function            measures                      reads
==================  ============================  =========================================
evaluate_instances  mask AP, boundary AP, AF      COCO or LVIS annotations and results
evaluate_semantic   mIoU, AF                      folders of label PNGs
evaluate_panoptic   PQ, SQ, RQ, boundary PQ       COCO panoptic JSON and PNGs
==================  ============================  =========================================

Each gives an :class:`Evaluation`. Its ``to_json()`` is a flat dict of the measures; when coarse predictions
were given as `before`, theirs are under ``before`` and what changed in between under ``change``.

All files are read and checked before the long work (``FormatError`` names file and entry); an item that turns
out broken in the middle is left out, counted, and named in ``failures``. The work runs in
processes over the images where there are many; a script that calls these functions on a large set needs the
usual ``if __name__ == "__main__"`` guard, or ``workers=1``.
"""

from __future__ import annotations

from refiner_training.evaluation.common import Crop, Evaluation, Example, Failure
from refiner_training.evaluation.instances import evaluate as evaluate_instances
from refiner_training.evaluation.panoptic import evaluate as evaluate_panoptic
from refiner_training.evaluation.semantic import evaluate as evaluate_semantic

__all__ = [
    "Crop",
    "Evaluation",
    "Example",
    "Failure",
    "evaluate_instances",
    "evaluate_panoptic",
    "evaluate_semantic",
]
