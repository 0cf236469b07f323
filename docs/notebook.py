"""The notebook of the docs, run: `python docs/notebook.py` writes `docs/howto/notebook.ipynb` with its outputs.

Cells are below: text after a line `# %% text`, code after `# %%`.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "howto" / "notebook.ipynb"
CELLS = """
# %% text
# Exact boundaries, in a notebook
#
# A photograph and coarse masks of it, as a mask head gives them: here the bundled ones
# (`pip install "bpr-service[demo]"`). Yours may be arrays of 0 and 1 or of probabilities, COCO RLE, polygons, or files.
# %%
from bpr_service import Refiner
from bpr_service.examples import load_example

example = load_example("coffee")
coarse = [instance["segmentation"] for instance in example.instances]
example.image.shape, len(coarse)
# %% text
# A refiner is loaded once. `runs_on` says what was chosen for this machine.
# %%
refiner = Refiner.load("fast", device="cpu")
refiner.runs_on
# %%
result = refiner.refine(example.image, coarse)
for report in result.reports:
    print(report.status, f"{report.changed_px} px changed, confidence {report.confidence:.2f}")
# %% text
# A result on the last line of a cell shows itself: coarse beside refined, and the places that changed most, enlarged.
# Here it is smaller than it shows itself.
# %%
from PIL import Image

Image.fromarray(result.picture(width_px=560)).quantize(64)
# %% text
# Masks go on as arrays, as COCO records, as a file, or as another library's objects (`result.to_supervision()`).
# %%
mask = result.masks[0]
record = result.to_coco(image_id="coffee")[0]
mask.to_array().shape, mask.box, record["area"], sorted(record)
"""


def cells() -> list[tuple[str, str]]:
    """(kind, source) of each cell: "markdown" or "code"."""
    found: list[tuple[str, str]] = []
    for block in CELLS.strip().split("# %%")[1:]:
        is_text, source = block.startswith(" text\n"), block.partition("\n")[2].rstrip()
        if is_text:
            source = "\n".join(line.removeprefix("# ").removeprefix("#") for line in source.splitlines())
            source = source if found else f"# {source}"
        found.append(("markdown" if is_text else "code", source))
    return found


def run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a code cell, as a kernel would give them: what it printed, and its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    outputs: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if value is not None:
        data = {"text/plain": re.sub(r" at 0x[0-9A-F]+", "", repr(value))}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return outputs


def notebook() -> dict[str, Any]:
    """The notebook, each code cell run after the one before."""
    names: dict[str, Any] = {}
    made = []
    for number, (kind, source) in enumerate(cells(), 1):
        cell: dict[str, Any] = {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": source}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": run(source, names)}
        made.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}


if __name__ == "__main__":
    PAGE.write_text(json.dumps(notebook(), indent=1) + "\n")
