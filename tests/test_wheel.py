"""The wheel is built of what the Dockerfile copies, and runs from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy import deployment
from tests.deploy.deployment import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with what the wheel of the stage ``wheel`` holds, built of the files that it copies."""
    source, wheels = (tmp_path_factory.mktemp(name) for name in ("src", "dist"))
    for path in deployment.copied(ROOT):
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, source / path)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(wheels)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    assert wheel.stat().st_size <= 20_000_000, "what an index and a first install bear"
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed: Path, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of the image in an empty folder: the package from the wheel, its dependencies from this environment."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    values = {**deployment.image_environment(ROOT), "HOME": str(home), "NUMBA_CACHE_DIR": str(home / "numba")}
    values |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=folder, env=values, capture_output=True, text=True, timeout=200)


def test_the_wheel_holds_all_that_git_holds_of_the_packages(installed: Path) -> None:
    for package in ("bpr_service", "refiner_training"):
        kept = {
            p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        }
        lost = {path for path in kept if not (installed / path).exists()}
        assert lost == set()


def test_it_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """The commands answer, the models are there, and everything that serves or trains can be imported."""
    done = run(installed, tmp_path, sys.executable, "-m", "bpr_service.cli", "doctor")
    assert done.returncode == 0, done.stderr
    assert "model balanced" in done.stdout
    names = "bpr_service, bpr_service.server.process.run, bpr_service.jobs.worker, refiner_training.cli, s3fs"
    code = f"import {names}; print(bpr_service.__file__)"
    done = run(installed, tmp_path, sys.executable, "-W", "error::SyntaxWarning", "-c", code)
    assert done.stdout.startswith(str(installed)), done.stdout + done.stderr
