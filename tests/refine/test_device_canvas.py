"""Pixels and sums on a device: the same answers as in the processor's memory. Here the device is the processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bpr_service.errors import ModelError
from bpr_service.network.model import Model
from bpr_service.refine import device_canvas as module
from bpr_service.refine.crops import resize_method
from bpr_service.refine.device_canvas import DeviceCanvas, resize, resize_weights
from bpr_service.refine.refiner import Refiner
from tests.scenes import Accelerator, blob, edge_cases, photo, refiner


class Soft(nn.Module):
    """Logits that depend on every channel and are nowhere near a tie."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, patches: Tensor) -> Tensor:
        mixed = nn.functional.avg_pool2d(patches.mean(1, keepdim=True), 7, 1, 3) + 0.8 * patches[:, 3:4]
        return torch.cat([3 * mixed + 0.137 * (i + 1) for i in range(self.outputs)], 1)


def on_a_device(**options: Any) -> Refiner:
    """A Refiner that treats the processor as an accelerator."""
    return refiner(Soft(options.get("outputs", 1)), kind=Accelerator, **options)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": "flat", "nms_threshold": 0.55},
    {"average": "logit"},
    {"outputs": 2},
    {"padding_px": 0, "network_size_px": 64, "scheme": "grid"},
    {"patch_size_px": 96, "padding_px": 0, "scheme": "sparse", "batch_size": 3},
    {"flip": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_masks_and_reports_are_those_of_the_processor(name: str, options: dict[str, Any]) -> None:
    frame = edge_cases()[name]
    height, width = frame.shape
    image, frames = photo(height, width), [frame, blob(height, width, seed=4), np.zeros_like(frame)]
    want = refiner(Soft(options.get("outputs", 1)), **options).refine(image, frames)
    got = on_a_device(**options).refine(image, frames)
    assert got.reports == want.reports
    for a, b in zip(got.masks, want.masks, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())


@pytest.mark.parametrize("options", [{}, {"average": "logit", "batch_size": 5}])
def test_probabilities_of_classes_are_those_of_the_processor(options: dict[str, Any]) -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((130, 170, 3)), (0, 0), 5).transpose(2, 0, 1)
    given, image = noise / noise.sum(0), photo(130, 170)
    engines = refiner(Soft(), **options), on_a_device(**options)
    want, got = (engine.refine_semantic(image, given) for engine in engines)
    assert got.reports == want.reports
    np.testing.assert_array_equal(got.label_map, want.label_map)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("options", [{}, {"average": "logit", "batch_size": 5}])
def test_label_maps_are_those_of_the_processor(dtype: Any, options: dict[str, Any]) -> None:
    labels = (blob(200, 260, 1) + 2 * blob(200, 260, 2)).astype(dtype)
    labels[:20, :30] = 255
    image = photo(200, 260)
    engines = refiner(Soft(), **options), on_a_device(**options)
    want, got = (engine.refine_semantic(image, labels) for engine in engines)
    assert got.reports == want.reports
    np.testing.assert_array_equal(got.label_map, want.label_map)
    assert got.label_map.dtype == dtype
    infos = [{"id": int(i)} for i in np.unique(labels) if i]
    other, here = (engine.refine_panoptic(image, labels, infos) for engine in engines)
    np.testing.assert_array_equal(here.segment_map, other.segment_map)
    assert here.segments_info == other.segments_info


def test_soft_masks_are_cut_as_they_are() -> None:
    image, frame = photo(150, 170), cv2.GaussianBlur(blob(150, 170) * 255.0, (0, 0), 2).astype(np.float32) / 255
    a, b = (engine.prepare(image, [frame]) for engine in (refiner(Soft()), on_a_device()))
    np.testing.assert_array_equal(np.asarray(b.crops(0, 99)), a.crops(0, 99))


@pytest.mark.parametrize("size", [32, 64, 128, 160])
def test_resized_crops_are_within_a_level_and_masks_nearly_equal(size: int) -> None:
    options: dict[str, Any] = {"padding_px": 8, "network_size_px": size}
    image, frame = cv2.GaussianBlur(photo(200, 230), (0, 0), 3), blob(200, 230)
    plain, device = refiner(Soft(), **options), on_a_device(**options)
    prepared = [engine.prepare(image, [frame]) for engine in (plain, device)]
    a, b = (np.asarray(one.crops(0, 99)).astype(int) for one in prepared)
    assert np.abs(a - b).max() <= 1
    want, got = (engine.refine(image, [frame]).masks[0].to_array() for engine in (plain, device))
    assert (want != got).mean() < 5e-4


@pytest.mark.parametrize(("size", "to"), [(96, 64), (96, 48), (80, 128), (64, 256), (1, 4), (5, 5), (7, 3)])
def test_resizing_is_that_of_opencv(size: int, to: int) -> None:
    plane = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    want = cv2.resize(plane, (to, to), interpolation=resize_method(size, size, to, to))
    np.testing.assert_allclose(resize(torch.from_numpy(plane), to).numpy(), want, atol=2e-5)
    np.testing.assert_allclose(resize_weights(size, to).sum(axis=1), 1, atol=1e-5)


def test_masks_beyond_the_room_for_sums_are_averaged_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    image, frames = photo(160, 180), [blob(160, 180, i, 0.2) for i in range(5)]
    want = on_a_device().refine(image, frames)
    monkeypatch.setattr(module, "GROUP_BYTES", 1 << 20)
    prepared = on_a_device().prepare(image, frames)
    canvas = prepared._open()
    assert isinstance(canvas, DeviceCanvas)
    assert len(canvas._groups) > 2
    got = on_a_device(batch_size=7).refine(image, frames)
    for a, b in zip(got.masks, want.masks, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())


def test_the_order_of_batches_changes_nothing() -> None:
    image, frames = photo(160, 180), [blob(160, 180, i) for i in range(2)]
    engine = on_a_device()
    want = engine.refine(image, frames)
    prepared = engine.prepare(image, frames)
    spans = [(k, min(k + 3, prepared.n_patches)) for k in range(0, prepared.n_patches, 3)]
    for start, stop in reversed(spans):
        prepared.add(start, engine.logits(prepared.crops(start, stop)))
    got = prepared.finish()
    assert got.reports == want.reports
    for a, b in zip(got.masks, want.masks, strict=True):
        np.testing.assert_array_equal(a.to_array(), b.to_array())


def test_a_network_that_gives_nan_is_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, patches: Tensor) -> Tensor:
            return patches[:, 3:4] / 0 * 0

    engine = refiner(Broken(), kind=Accelerator)
    with pytest.raises(ModelError, match="finite logits"):
        engine.refine(photo(90, 90), [blob(90, 90)])


def test_the_gate_sees_the_same_averages() -> None:
    seen: list[NDArray[np.float32]] = []

    def gate(_: Any, averaged: Any) -> str:
        seen.append(averaged.probability)
        return "kept"

    for kind in (Model, Accelerator):
        engine = refiner(Soft(), gate=gate, kind=kind)
        assert engine.refine(photo(150, 170), [blob(150, 170)]).reports[0].reason == "kept"
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Weights that are kept between calls must serve both inside and outside of inference mode."""
    with torch.inference_mode():
        yield


@pytest.mark.gpu
def test_a_cuda_device_gives_the_masks_of_the_processor() -> None:
    image, frames = photo(300, 400), [blob(300, 400, i) for i in range(3)]
    want = refiner(Soft()).refine(image, frames)
    plain = refiner(Soft())
    engine = Refiner(Model(Soft(), plain.card, device="cuda"), plain.config)
    got = engine.refine(image, frames)
    assert engine.resides == "cuda:0"
    for a, b in zip(got.masks, want.masks, strict=True):
        assert (a.to_array() != b.to_array()).mean() < 1e-4
