"""Every backend says what torch says, and one that cannot run says so."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bpr_service.config import RefineConfig, build
from bpr_service.errors import ConfigError
from bpr_service.network.backends import label, open_backend
from bpr_service.refine.refiner import Refiner

CROPS = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return Refiner.load("fast", backend="eager").predict(CROPS)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exported_backends_give_torch_s_logits(backend: str, expected: np.ndarray) -> None:
    refiner = Refiner.load("fast", backend=backend)
    assert np.abs(refiner.predict(CROPS) - expected).max() < 1e-3
    assert np.abs(refiner.predict(CROPS[:1]) - expected[:1]).max() < 1e-3  # any number of patches


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_bf16_changes_few_pixels(backend: str, expected: np.ndarray) -> None:
    logits = Refiner.load("fast", backend=backend, precision="bf16").predict(CROPS)
    assert logits.dtype == np.float32
    assert ((logits > 0) == (expected > 0)).mean() > 0.99


def test_answers_name_what_ran() -> None:
    image = np.zeros((80, 90, 3), np.uint8)
    mask = np.zeros((80, 90), np.uint8)
    mask[20:60, 30:70] = 1
    assert Refiner.load("fast").refine(image, [mask]).device == "cpu, openvino int8"
    assert Refiner.load("fast", backend="eager").refine(image, [mask]).device == "cpu"
    assert Refiner.load("fast", backend="eager", precision="bf16").refine(image, [mask]).device == "cpu, bf16"
    assert label("cpu", "openvino", "bf16") == "cpu, openvino bf16"


def test_a_backend_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"backend openvino.*pip install openvino"):
        Refiner.load("fast", backend="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"backend onnxruntime.*bpr-service\[onnx\]"):
        Refiner.load("fast", backend="onnxruntime")


def test_what_cannot_run_is_refused() -> None:
    network = torch.nn.Identity()
    with pytest.raises(ConfigError, match="expected device cpu, got cuda"):
        open_backend("openvino", "fp32", network, "cuda", 96)
    with pytest.raises(ConfigError, match="backend graphs: expected a CUDA device, got cpu"):
        open_backend("graphs", "bf16", network, "cpu", 96)
    with pytest.raises(ConfigError, match="expected fp32, got bf16"):
        open_backend("onnxruntime", "bf16", network, "cpu", 96)
    with pytest.raises(ConfigError, match="backend"):
        build(RefineConfig, {"backend": "tensorrt"})
    with pytest.raises(ConfigError, match="precision"):
        build(RefineConfig, {"precision": "int4"})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_a_network_is_converted_in_several_threads_at_once(expected: np.ndarray) -> None:
    """As where a server warms presets, or several threads load their own."""
    found: list[np.ndarray] = []

    def load() -> None:
        found.append(Refiner.load("fast", backend="openvino").predict(CROPS))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for logits in found:
        np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_openvino_leaves_the_calling_thread_free_to_run_anywhere() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with one thread the caller itself computes
    refiner = Refiner.load("fast", backend="openvino")
    torch.set_num_threads(threads)
    crops = np.zeros((32, 96, 96, 4), np.uint8)
    caller = threading.Thread(target=lambda: [refiner.predict(crops) for _ in range(8)])
    caller.start()
    seen = set()
    while caller.is_alive():
        with contextlib.suppress(ProcessLookupError):
            seen.add(frozenset(os.sched_getaffinity(caller.native_id or 0)))
        time.sleep(0.001)
    assert seen == {frozenset(allowed)}


def test_openvino_s_tools_report_to_nobody(tmp_path: Path) -> None:
    """Unless it is declined, a conversion writes a client id and counters to the home folder, and sends them."""
    program = (
        "import multiprocessing as m; m.Process.start = lambda self: print('started', self)\n"
        "from bpr_service import Refiner\n"
        "from bpr_service.network.int8 import int8_forward\n"
        "import numpy as np\n"
        "refiner = Refiner.load('fast', backend='openvino')\n"
        "int8_forward(refiner.model.network, 96, np.zeros((8, 96, 96, 4), np.uint8))"
    )
    known = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**known, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert "started" not in done.stdout
    assert not (tmp_path / "intel").exists()
