"""The table in the docs is what the tests try."""

from __future__ import annotations

import importlib.util

from tests.test_docs import ROOT


def test_the_table_of_kinds_and_doors_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("kinds", ROOT / "docs" / "kinds.py")
    assert spec is not None
    assert spec.loader is not None
    kinds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kinds)
    page = (ROOT / "docs" / "reference" / "formats.md").read_text()
    assert kinds.filled(page) == page, "run `make architecture`"
