"""Kinds of faults that silently damage what people bring, each tried through every door that has it.

The table in docs/reference/formats.md is made of the marks here: `make architecture`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

DOORS = ("python", "refine", "batch", "http", "client", "page", "label studio")
"""Jobs refine by the request and the code of batch: tests/jobs has that their results are the same bytes."""
TABLE: dict[str, dict[str, int]] = {}
"""Kind, door, number of tests."""
F = TypeVar("F", bound=Callable[..., Any])


def kind(name: str, *doors: str) -> Callable[[F], F]:
    """A test of the kind `name`; of each of these doors where it takes a ``door``."""

    def mark(test: F) -> F:
        for door in doors:
            assert door in DOORS
            TABLE.setdefault(name, {}).setdefault(door, 0)
            TABLE[name][door] += 1
        if "door" not in inspect.signature(test).parameters:
            return test
        marked: F = pytest.mark.parametrize("door", doors)(test)
        return marked

    return mark
