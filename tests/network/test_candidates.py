"""Candidates are timed and compared, and the card's choice is what runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpr_service.config import PatchConfig, RefineConfig
from bpr_service.network import candidates, choice
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model
from bpr_service.refine.refiner import Refiner

ARGUMENTS = {"widths": [8, 8, 8, 8], "depth": 1}
CROPS = np.random.default_rng(0).integers(0, 256, (40, 48, 48, 4)).astype(np.uint8)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("light_unet_s", **ARGUMENTS).eval()


def pretend(monkeypatch: pytest.MonkeyPatch, answers: dict[tuple[str, str], Any], seconds: list[float]) -> None:
    """Candidates with given answers (a function of the eager network's, or an exception) and times."""
    from bpr_service.network.backends import open_backend as real

    def open_backend(backend: str, precision: str, network: Any, *rest: Any) -> Any:
        answer = answers[backend, precision]
        if isinstance(answer, Exception):
            raise answer
        return lambda patches: answer(real("eager", "fp32", network, *rest)(patches))

    monkeypatch.setattr(candidates, "CANDIDATES", tuple(answers))
    monkeypatch.setattr(candidates, "open_backend", open_backend)
    monkeypatch.setattr(candidates, "_best_seconds", lambda running, _: dict(zip(running, seconds, strict=True)))


def flipped(share: float) -> Any:
    """The sign of a share of the pixels changed."""

    def answer(logits: np.ndarray) -> np.ndarray:
        out = logits.copy()
        out[..., : round(share * out.shape[-1] * out.shape[-2]) // out.shape[-2]] *= -1
        return out

    return answer


def test_the_quickest_that_keeps_the_pixels_is_chosen(
    network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        ("eager", "fp32"): lambda logits: logits,
        ("eager", "bf16"): flipped(1 / 48),
        ("compile", "fp32"): RuntimeError("no compiler\nand a long trace"),
        ("openvino", "fp32"): lambda logits: logits * 1.5,
    }
    pretend(monkeypatch, answers, [4.0, 1.0, 2.0])
    found = candidates.measure(network, CROPS, patches="noise")
    assert (found.chosen.backend, found.chosen.precision) == ("openvino", "fp32")
    eager, bf16, missing, openvino = found.candidates
    assert (eager.patches_per_s, eager.pixels_equal) == (8.0, 1.0)
    assert bf16.pixels_equal == pytest.approx(1 - 1 / 48, abs=1e-4)
    assert (missing.missing, missing.patches_per_s) == ("no compiler", None)
    assert openvino.patches_per_s == 16.0
    assert (found.threads, found.patches) == (torch.get_num_threads(), "noise")
    assert found.processor
    lines = candidates.table(found).splitlines()
    assert [line for line in lines if line.startswith("*")] == [lines[4]]
    assert "openvino" in lines[4]
    assert "16.0 patches/s" in lines[4]
    assert "no compiler" in lines[3]


def test_what_is_not_installed_is_listed_with_the_reason(
    network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(
        candidates, "CANDIDATES", tuple(c for c in candidates.CANDIDATES if c[0] in ("eager", "openvino"))
    )
    found = candidates.measure(network, CROPS)
    assert [(c.precision, bool(c.patches_per_s)) for c in found.candidates if c.backend == "eager"] == [
        ("fp32", True),
        ("bf16", True),
    ]
    reasons = [c.missing for c in found.candidates if c.backend == "openvino"]
    assert all("pip install openvino" in reason for reason in reasons[:2])
    assert "expected a quantised network" in reasons[2]
    assert found.chosen.backend == "eager"


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    running = {0: lambda batch: calls.append("a"), 1: lambda batch: calls.append("b")}
    best = candidates._best_seconds(running, np.zeros(1))  # type: ignore[arg-type]
    assert calls == ["a", "b"] * candidates.ROUNDS[1]
    assert set(best) == {0, 1}
    calls.clear()
    monkeypatch.setattr(candidates, "TIMED_S", -1.0)  # slow networks are timed a few times only
    candidates._best_seconds(running, np.zeros(1))  # type: ignore[arg-type]
    assert calls == ["a", "b"] * candidates.ROUNDS[0]


def saved(folder: Path, network: torch.nn.Module, chosen: dict[str, str] | None) -> Path:
    record = {"processor": "x", "threads": 1, "patches": "noise", "candidates": [], "chosen": chosen}
    card = ModelCard(
        name="tiny",
        version="1",
        network=NetworkCard(name="light_unet_s", arguments=ARGUMENTS),
        patch=PatchConfig(patch_size_px=32, padding_px=8, network_size_px=48),
    ).with_options(runtime=record if chosen else None)
    save_model(folder, network, card)
    return folder


def test_the_card_s_choice_runs(network: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_can", lambda backend, precision: True)
    folder = saved(tmp_path / "a", network, {"backend": "eager", "precision": "bf16"})
    refiner = Refiner.load(folder)
    assert (refiner.config.backend, refiner.config.precision, refiner.runs_on) == ("eager", "bf16", "cpu, bf16")
    exact = Refiner.load(folder, backend="eager")
    assert (exact.config.backend, exact.config.precision, exact.runs_on) == ("eager", "fp32", "cpu")
    assert np.array_equal(
        refiner.predict(CROPS), Refiner.load(folder, backend="eager", precision="bf16").predict(CROPS)
    )
    assert not np.array_equal(refiner.predict(CROPS), exact.predict(CROPS))


def settled(card: ModelCard, device: str = "cpu", **options: object) -> tuple[str, str]:
    config = choice.settle(RefineConfig(patch=card.patch).with_options(**options), card, device)
    return config.backend, config.precision


MEASURED = {
    "processor": "x",
    "threads": 1,
    "patches": "noise",
    "candidates": [
        {"backend": "eager", "precision": "fp32", "patches_per_s": 1.0, "pixels_equal": 1.0},
        {"backend": "onnxruntime", "precision": "fp32", "patches_per_s": 2.0, "pixels_equal": 1.0},
        {"backend": "openvino", "precision": "fp32", "patches_per_s": 3.0, "pixels_equal": 1.0},
        {"backend": "compile", "precision": "fp32", "patches_per_s": 5.0, "pixels_equal": 1.0},
        {"backend": "eager", "precision": "bf16", "patches_per_s": 4.0, "pixels_equal": 0.9},
        {"backend": "openvino", "precision": "int8", "patches_per_s": 9.0, "pixels_equal": 0.9995},
    ],
    "chosen": {"backend": "openvino", "precision": "int8"},
}


def card_of(**parts: object) -> ModelCard:
    bare = ModelCard(name="a", version="1", network=NetworkCard(name="light_unet_s"), patch=PatchConfig())
    return bare.with_options(runtime=MEASURED, int8={"calibration": "noise"}).with_options(**parts)


def test_what_is_missing_gives_way_to_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_can", lambda backend, precision: backend != "compile")
    assert settled(card_of()) == ("openvino", "int8")
    assert settled(card_of(), precision="fp32") == ("openvino", "fp32")
    assert settled(card_of(), network_size_px=64) == ("openvino", "fp32")  # the quantised network has one size
    assert settled(card_of(int8=None)) == ("openvino", "fp32")
    assert settled(card_of(runtime=None)) == ("eager", "fp32")
    assert settled(card_of(), precision="bf16") == ("eager", "bf16")  # asked for, so taken
    assert settled(card_of(), backend="eager") == ("eager", "fp32")
    assert settled(card_of(runtime=None), precision="int8") == ("openvino", "int8")
    assert settled(card_of(), backend="openvino", precision="int8") == ("openvino", "int8")
    monkeypatch.setattr(choice, "_can", lambda backend, precision: backend not in ("compile", "openvino"))
    assert settled(card_of()) == ("onnxruntime", "fp32")


def test_packages_and_units_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    look = choice._can.__wrapped__
    monkeypatch.setattr(choice, "_units", lambda: ["FP32", "INT8"])
    assert look("openvino", "int8")
    assert not look("openvino", "bf16")
    assert not look("compile", "fp32")
    monkeypatch.setattr(choice, "_units", lambda: ["FP32", "BF16"])
    assert look("openvino", "bf16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not look("openvino", "fp32")
    assert look("eager", "fp32")


def test_a_measurement_of_a_cpu_says_nothing_of_another_device() -> None:
    assert settled(card_of(), device="cuda") == ("graphs", "fp32")
    assert settled(card_of(), device="cuda", precision="bf16") == ("graphs", "bf16")


def test_settings_are_settled_anew_where_one_is_changed(network: torch.nn.Module, tmp_path: Path) -> None:
    refiner = Refiner.load("fast")
    assert refiner.runs_on == "cpu, openvino int8"
    assert refiner.with_options(network_size_px=64, precision="fp32").runs_on == "cpu, openvino"
    assert refiner.with_options(backend="eager").runs_on == "cpu"
