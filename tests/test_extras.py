"""A plain install: what works without torch, and what says which extra it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bpr_service.extras import installed, missing


def without(package: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` where `package` cannot be imported."""
    text = f"import sys; sys.modules[{package!r}] = None\n{program}"
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=200)


def command(package: str, *words: str) -> subprocess.CompletedProcess[str]:
    name = "bpr_service.cli" if words[0] == "bpr" else "refiner_training.cli"
    return without(package, f"sys.argv = {list(words)!r}; from {name} import main; main()")


def test_masks_are_refined_without_torch() -> None:
    done = without(
        "torch",
        """
import numpy as np
from bpr_service import Refiner
refiner = Refiner.load("fast")
mask = np.zeros((90, 120), np.uint8)
mask[20:60, 30:90] = 1
result = refiner.refine(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8), [mask])
labels = refiner.refine_semantic(np.zeros((90, 120, 3), np.uint8), mask)
print(result.device, result.reports[0].patches > 0, labels.label_map.shape)
""",
    )
    assert done.stdout.strip() == "cpu, openvino int8 True (90, 120)", done.stderr


def test_what_needs_torch_says_so() -> None:
    done = without(
        "torch",
        """
from bpr_service import BprError, Refiner
for name, value in (("backend", "eager"), ("precision", "fp32"), ("backend", "openvino")):
    try:
        Refiner.load("fast", **{name: value})
    except BprError as error:
        print(str(error).replace(chr(10), " "))
""",
    )
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stderr
    missing_torch = "expected torch, got no such package. Install it: pip install 'bpr-service[torch]'"
    assert all(missing_torch in line for line in said), said


def test_doctor_answers_without_torch() -> None:
    done = command("torch", "bpr", "doctor")
    assert done.returncode == 0, done.stderr
    assert "openvino int8" in done.stdout


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("uvicorn", ("bpr", "serve"), "server"),
        ("sqlalchemy", ("bpr", "jobs", "list"), "jobs"),
        ("torch", ("bpr", "bench"), "torch"),
        ("torch", ("bpr-train", "export", "--model", "fast", "--out", "x"), "torch"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(package: str, words: tuple[str, ...], extra: str) -> None:
    done = command(package, *words)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"pip install 'bpr-service[{extra}]'" in done.stderr


def test_an_import_names_the_extra_that_it_needs() -> None:
    done = without("httpx", "import bpr_service.client")
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert "bpr-service[" in done.stderr.splitlines()[-1]


def test_other_packages_are_nobody_s_extra() -> None:
    assert missing(ModuleNotFoundError("no", name="antigravity2")) is None
    assert not installed("antigravity2")
    assert installed("json")
