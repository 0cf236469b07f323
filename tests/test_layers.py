"""Imports run one way: ``errors, config <- masks <- network <- refine <- formats, runtime <- jobs, server <- cli``.

Every import is read from the source, those inside functions too; nothing is imported to find out.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a layer may import besides itself. A module of bpr_service that is not a folder is a layer of its own.
BASE = {"errors", "config", "kernel", "storage", "__init__"}
REFINER = {"masks", "network", "refine"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "storage": {"errors", "config"},
    "kernel": set(),
    "masks": {"errors", "config", "kernel"},
    "network": {"errors", "config", "kernel", "masks"},
    "refine": {"errors", "config", "kernel", "masks", "network"},
    "formats": BASE | REFINER,
    "runtime": BASE | REFINER,
    "jobs": BASE | REFINER | {"formats", "runtime"},
    "server": BASE | REFINER | {"formats", "runtime", "examples"},
    "examples": BASE | REFINER,
    "client": BASE | REFINER,
    "bench": BASE | REFINER | {"examples"},
    "commands": BASE | REFINER | {"examples", "formats", "bench"},
}
SEAM = {"bpr_service.jobs.engine", "bpr_service.jobs.requests"}
"""What the server knows of jobs: the six methods and what they are asked with."""
TRAINER_MAY = {"kernel", "masks", "network", "refine", "formats", "errors", "config", "__init__"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, at any depth of its code."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer(parts: list[str]) -> str:
    """The layer of ``bpr_service.<...>``: its folder or module, ``__init__`` for the package itself."""
    name = parts[1] if len(parts) > 1 else "__init__"
    known = (ROOT / "bpr_service" / name).is_dir() or (ROOT / "bpr_service" / f"{name}.py").exists()
    return name if known else "__init__"


def problems(path: Path) -> list[str]:
    """Imports of a file that its layer forbids."""
    where = path.relative_to(ROOT)
    found = []
    for name in imports(path):
        parts = name.split(".")
        if where.parts[0] == "bpr_service":
            own = layer([*where.with_suffix("").parts])
            if parts[0] == "refiner_training":
                found.append(f"{where}: {name} (the trainer)")
            if parts[0] == "bpr_service" and own in BELOW:
                other = layer(parts)
                seam = own == "server" and any(name == s or name.startswith(f"{s}.") for s in SEAM)
                if other != own and other not in BELOW[own] and not seam:
                    found.append(f"{where}: {name} ({own} may import {', '.join(sorted(BELOW[own]))})")
        elif parts[0] == "bpr_service" and layer(parts) not in TRAINER_MAY:
            found.append(f"{where}: {name} (the trainer may import {', '.join(sorted(TRAINER_MAY))})")
    return found


@pytest.mark.parametrize("package", ["bpr_service", "refiner_training"])
def test_imports_run_one_way(package: str) -> None:
    assert [line for path in modules(package) for line in problems(path)] == []


def test_every_part_of_the_package_has_a_layer() -> None:
    top = {p.stem for p in (ROOT / "bpr_service").glob("*.py")} | {
        p.name for p in (ROOT / "bpr_service").iterdir() if p.is_dir() and any(p.glob("*.py"))
    }
    assert top - set(BELOW) - {"__init__", "__main__", "cli"} == set()


def test_heads_never_import_each_other() -> None:
    """A head may share the layers, losses and targets, never another head."""
    folder = ROOT / "refiner_training" / "heads"
    shared = {"__init__", "protocol", "layers", "losses", "targets", "plain"}
    heads = {p.stem for p in folder.glob("*.py")} - shared
    for path in folder.glob("*.py"):
        if path.stem == "__init__":
            continue  # the registry
        used = {n.split(".")[2] for n in imports(path) if n.startswith("refiner_training.heads.")} & heads
        others = {name for name in used if name.split("_")[0] != path.stem.split("_")[0]}  # one head's own modules
        assert others == set(), f"{path.name} imports {others}"


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("bpr_service/masks/x.py", "from bpr_service.formats import coco"),
        ("bpr_service/masks/x.py", "def f():\n    import bpr_service.server.app"),
        ("bpr_service/masks/x.py", "from ..runtime import engine"),
        ("bpr_service/jobs/x.py", "import bpr_service.server.app"),
        ("bpr_service/server/x.py", "from bpr_service.jobs import refine"),
        ("bpr_service/server/x.py", "import refiner_training"),
        ("refiner_training/x.py", "from bpr_service.runtime import device"),
    ],
)
def test_the_reader_sees_what_is_forbidden(where: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: source)
    assert problems(ROOT / where)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, bpr_service, bpr_service.config, bpr_service.errors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
