"""Compile the kernels of the common paths, before processes that need them all at once: `python -m tests.kernels`.

Where the code was compiled before, it is there already and this takes seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.server.codec.steps import try_all
from tests.jobs.samples import coco_set, panoptic_set, semantic_set


def main() -> None:
    """Refine a picture of each task, and what a server reads and writes."""
    with tempfile.TemporaryDirectory() as folder:
        for make in (coco_set, semantic_set, panoptic_set):
            run_batch(make(Path(folder, make.__name__), 1), Batch(workers=0))
    try_all()


if __name__ == "__main__":
    main()
