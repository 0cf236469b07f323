"""What the package index shows, made for where the repository lies: `python docs/published.py ADDRESS REF`.

An index shows the README without the files beside it. In a checkout that is about to be built, links become absolute,
pictures their raw files, and `pyproject.toml` gets its project URLs. ADDRESS is the repository's, as on GitHub.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, address: str, ref: str) -> str:
    """Markdown whose links and pictures that name files of the repository at `address` are absolute."""
    return LINK.sub(lambda m: f"{m[1]}[{m[2]}]({address}/{'raw' if m[1] else 'blob'}/{ref}/{m[3]})", text)


def with_urls(text: str, address: str, ref: str) -> str:
    """A `pyproject.toml` with the addresses that an index shows beside the package."""
    pages = {
        "Repository": address,
        "Documentation": f"{address}/blob/{ref}/docs/getting-started.md",
        "Changelog": f"{address}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    table = "".join(f'{name} = "{page}"\n' for name, page in pages.items())
    return text.replace("[project.scripts]", f"[project.urls]\n{table}\n[project.scripts]")


def main(root: Path, address: str, ref: str) -> None:
    """Change the two files beneath `root`."""
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = root / name
        path.write_text(change(path.read_text(), address.rstrip("/"), ref))


if __name__ == "__main__":
    main(ROOT, *sys.argv[1:])
