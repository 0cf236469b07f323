"""The tests of predictions compute on one thread, with barely trained models."""

from __future__ import annotations

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
def trained(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A barely trained checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("trained")
    found = {}
    for arch, kind in (("mask_rcnn", "instance"), ("deeplabv3plus", "semantic")):
        config = build(SegmenterConfig, tiny_config(kind, paths))
        found[kind] = train_segmenter(arch, "plain", config, folder / kind, progress="none")
    return found
