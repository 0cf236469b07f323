"""The tests of runs compute on one thread, and share how a short run is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bpr_service.config import build
from refiner_training.run.segmenter import train_segmenter
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.synthetic import tiny_config


@pytest.fixture(scope="session", autouse=True)
def _threads(one_thread: None) -> None:
    """For every test here."""


@pytest.fixture(scope="session")
def run_of(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a new run of Mask R-CNN with a head, of one step."""

    def make(head: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = build(SegmenterConfig, tiny_config("instance", paths, **{"run.steps": 1}))
        train_segmenter("mask_rcnn", head, config, folder, progress="none")
        return folder

    return make
