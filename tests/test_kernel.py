"""Compiled kernels are kept where there is room for them, and work where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bpr_service import kernel

MODULE = """
import numpy as np
from copied_kernel import kernel
@kernel
def twice(values):
    return values * 2
print(twice(np.arange(3)))
"""


def run(folder: Path, **environment: str) -> None:
    """A module with a kernel of its own, beside a copy of the decorator, in a process of its own."""
    shutil.copy(kernel.__file__, folder / "copied_kernel.py")
    (folder / "module.py").write_text(MODULE)
    values = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"} | environment
    command = [sys.executable, "-c", "import module"]
    done = subprocess.run(command, cwd=folder, env=values, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "[0 2 4]", done.stderr


def test_every_kernel_has_the_fallback() -> None:
    root = Path(kernel.__file__).parents[1]
    files = [path for package in ("bpr_service", "refiner_training") for path in (root / package).rglob("*.py")]
    own = Path(kernel.__file__)
    assert [str(path) for path in files if path != own and "njit" in path.read_text()] == []


def test_machine_code_is_kept_in_the_folder_that_is_named(tmp_path: Path) -> None:
    run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "numba"))
    assert list((tmp_path / "numba").rglob("*.nbi"))


def test_where_nothing_can_be_written_kernels_work_uncached(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").touch()  # a file where a folder would be made: so it is refused to root too
    run(tmp_path, NUMBA_CACHE_DIR="/dev/null/numba", HOME="/dev/null", XDG_CACHE_HOME="/dev/null/cache")
    assert not list(tmp_path.rglob("*.nbi"))
