"""The list of modules in `docs/architecture.md`, made of their docstrings' first sentences: `make architecture`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("bpr_service", "refiner_training")
BEGIN, END = "<!-- modules: written by `make architecture` -->\n", "<!-- end of modules -->\n"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring; an error where there is none."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)}: expected a docstring whose first sentence says what it holds")
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.sub(r"``?(.+?)``?", r"`\1`", re.split(r"(?<=\.) (?=[A-Z`@])", paragraph)[0]).removesuffix("::")


def listing() -> str:
    """A heading a folder, a line a module."""
    lines = []
    for package in PACKAGES:
        paths = [path for path in (ROOT / package).rglob("*.py") if path.stat().st_size]
        for folder in sorted({path.parent for path in paths}):
            lines += [f"### {folder.relative_to(ROOT)}/", ""]
            here = sorted(path for path in paths if path.parent == folder)
            package_itself = [path for path in here if path.name == "__init__.py"]
            lines += [line for path in package_itself for line in (first_sentence(path), "")]
            lines += [f"- `{path.name}`: {first_sentence(path)}" for path in here if path not in package_itself]
            lines += [""]
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page's text with the list as it should be."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{listing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
