"""The table of faults and doors in `docs/reference/formats.md`, made of the marks of the tests: `make architecture`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "formats.md"
BEGIN, END = "<!-- kinds: written by `make architecture` -->\n", "<!-- end of kinds -->\n"


def table() -> str:
    """A row a kind, a column a door: how many tests try the one through the other."""
    sys.path.insert(0, str(ROOT))
    from tests.doors import DOORS, TABLE

    for path in sorted((ROOT / "tests" / "doors").glob("test_*.py")):
        importlib.import_module(f"tests.doors.{path.stem}")
    rows = [f"| kind | {' | '.join(DOORS)} |", "|---" * (len(DOORS) + 1) + "|"]
    for name in sorted(TABLE, key=_order):
        cells = [str(TABLE[name].get(door, "")) for door in DOORS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _order(name: str) -> tuple[int, str]:
    number = name.split()[0]
    return (int(number), "") if number.isdigit() else (1000, name)


def filled(page: str) -> str:
    """The page's text with the table as it should be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
