"""The Dockerfile's stages without an engine: the wheel is built of what they copy, and runs from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.deploy import dockerfile
from tests.deploy.dockerfile import ROOT

STAGES = dockerfile.read((ROOT / "Dockerfile").read_text())[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with what the wheel of the stage ``wheel`` holds, built of the files that it copies."""
    source, wheels = (tmp_path_factory.mktemp(name) for name in ("src", "dist"))
    for path in dockerfile.copied(STAGES, "wheel"):
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(ROOT / path, source / path)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(wheels)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed: Path, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of the image in an empty folder: the package from the wheel, its dependencies from this environment."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    values = {**dockerfile.environment(STAGES, "cpu"), "HOME": str(home), "NUMBA_CACHE_DIR": str(home / "numba")}
    values |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=folder, env=values, capture_output=True, text=True, timeout=200)


def test_the_wheel_holds_all_that_git_holds_of_the_packages(installed: Path) -> None:
    for package in ("bpr_service", "refiner_training"):
        kept = {
            p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        }
        lost = {path for path in kept if not (installed / path).exists()}
        assert lost == set()


def test_the_commands_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, sys.executable, "-c", "import bpr_service; print(bpr_service.__file__)")
    assert where.stdout.startswith(str(installed)), where.stdout + where.stderr
    for words in (
        ["--help"],
        ["serve", "--help"],
        ["worker", "--help"],
        ["healthcheck", "server", "--help"],
        ["doctor"],
    ):
        done = run(installed, tmp_path, sys.executable, "-m", "bpr_service.cli", *words)
        assert done.returncode == 0, done.stderr
    assert "model balanced" in done.stdout, "the image has its models baked in"


def test_everything_that_serves_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    names = (
        "bpr_service.server.process.run",
        "bpr_service.server.http.jobs",
        "bpr_service.jobs.worker",
        "refiner_training.cli",
    )
    done = run(
        installed, tmp_path, sys.executable, "-W", "error::SyntaxWarning", "-c", f"import {', '.join(names)}, s3fs"
    )
    assert done.returncode == 0, done.stderr


KERNEL = """
import numpy as np
from bpr_service.refine import boundary
from bpr_service.masks.mask import Mask
disc = np.zeros((40, 40), np.uint8); disc[9:30, 9:30] = 1
print(boundary.boundary_pixels(Mask.from_array(disc)))
"""


def test_numba_keeps_its_code_in_the_folder_that_the_image_names(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, sys.executable, "-c", KERNEL)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "home/numba").rglob("*.nbi"))


def test_a_root_that_cannot_be_written_turns_the_cache_off_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    """No folder for numba's cache can be made: kernels are compiled in each process."""
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    for folder in {path.parent for path in site.rglob("*.py")}:
        (folder / "__pycache__").touch()  # a file where numba would make a folder: so it is refused to root too
    nowhere = {"NUMBA_CACHE_DIR": "/dev/null/numba", "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    done = run(site, tmp_path, sys.executable, "-c", KERNEL, **nowhere)
    assert done.returncode == 0, done.stderr
    assert not list(site.rglob("*.nbi"))


def test_the_wheel_is_installed_where_the_image_looks(installed: Path) -> None:
    """The environment that is copied is on the PATH, and the project's scripts are what the image runs."""
    copied = {step.text for name in ("cpu", "cuda", "trainer") for step in STAGES[name].all("COPY")}
    assert copied == {"/opt/bpr /opt/bpr"}
    assert dockerfile.environment(STAGES, "cpu")["PATH"].split(":")[0] == "/opt/bpr/bin"
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "bpr = bpr_service.cli:main" in entry.read_text()
    assert (Path(sysconfig.get_path("scripts")) / "bpr").exists()
