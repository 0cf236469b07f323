"""The notebook of the docs is what its cells give today."""

from __future__ import annotations

import json
from typing import Any

from docs import notebook


def shape_of(cell: dict[str, Any]) -> tuple[Any, ...]:
    """A cell's source and the kinds of its outputs: their figures are the processor's."""
    kinds = [(out["output_type"], sorted(out.get("data", {}))) for out in cell.get("outputs", [])]
    return cell["cell_type"], cell["source"], kinds


def test_the_notebook_holds_its_cells_run() -> None:
    text = notebook.PAGE.read_text()
    assert len(text) < 400_000
    kept, made = json.loads(text), notebook.notebook()
    assert [shape_of(cell) for cell in kept["cells"]] == [shape_of(cell) for cell in made["cells"]]
    printed = next(cell for cell in made["cells"] if "changed_px" in cell["source"])["outputs"][0]["text"]
    assert "refined" in printed
