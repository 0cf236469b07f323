"""Fixtures for all tests, and one thread for each process: tests run side by side, and idle threads would spin."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.services"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none; slow tests go first, so that the workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if needy:
        import torch

        if not torch.cuda.is_available():
            for item in needy:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
