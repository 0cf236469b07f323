"""Fixtures of the tests of segmenters: tiny synthetic data and configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bpr_service.config import build
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.synthetic import make_set, tiny_config
from refiner_training.segmenters.registry import kind_of


@pytest.fixture(scope="session")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four pictures with labels and annotations."""
    return make_set(tmp_path_factory.mktemp("synthetic"), 4)


@pytest.fixture
def configure(paths: dict[str, Path]) -> Any:
    """A function: architecture and dotted overrides to a tiny configuration."""

    def make(arch: str, **overrides: Any) -> SegmenterConfig:
        return build(SegmenterConfig, tiny_config(kind_of(arch), paths, **overrides))

    return make
