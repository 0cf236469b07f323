"""Segmenters as ONNX: each architecture says there what it says here, however many instances a picture has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bpr_service.errors import FormatError, ModelError
from bpr_service.network.segmenter import Segmenter, open_session
from refiner_training.run.export_segmenter import _OnePicture, check_equal, difference, export_segmenter, to_onnx
from refiner_training.run.segmenter import load_segmenter
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.registry import build_segmenter


class _Fixed(nn.Module):
    """Gives a thing's place in a picture as the number that it was when it was exported."""

    def forward(self, image: Any) -> Any:
        return image + int(image.shape[-1])


class _Unknown(nn.Module):
    """Has a layer that the exporter does not know."""

    def forward(self, image: Any) -> Any:
        return torch.special.bessel_j0(image)


@pytest.mark.parametrize(
    ("arch", "head"),
    [("mask_rcnn", "bmask"), ("blendmask", "b2inst"), ("yolact", "b2inst"), ("deeplabv3plus", "bsm")],
)
def test_the_file_says_what_the_network_says(arch: str, head: str, configure: Any) -> None:
    """Slow, since each architecture has code of its own that is traced; without a limit n is what NMS leaves."""
    instances = arch != "deeplabv3plus"
    overrides = {f"model.{arch}.score_threshold": 0.0, f"model.{arch}.detections": 1000} if instances else {}
    network = _OnePicture(build_segmenter(arch, head, configure(arch, **overrides)).eval()).eval()
    data = to_onnx(network, arch, "fresh")
    check_equal(network, data, "fresh")
    session = open_session(data, "fresh")
    generator = torch.Generator().manual_seed(0)
    counts = set()
    for size in ((96, 128), (70, 200), (130, 96)):
        image = torch.rand(3, *size, generator=generator)
        with torch.inference_mode():
            expected = network(image)
        got = session.run(None, {"image": image.numpy()})
        assert difference(expected, got) < 1e-2
        counts.add(len(got[0]))
    assert len(counts) > 1 or not instances, "the number of instances varies"


def test_differences_are_of_pairs_in_any_order() -> None:
    boxes, labels, scores = (
        torch.tensor([[0.0, 0, 5, 5], [9, 9, 12, 12]]),
        torch.tensor([1, 2]),
        torch.tensor([0.5, 0.5]),
    )
    own = (boxes, labels, scores)
    assert difference(own, [each.numpy()[::-1] for each in own]) == 0
    assert difference(own, [boxes.numpy() + 1, labels.numpy(), scores.numpy()]) == 1
    assert difference(own, [each.numpy()[:1] for each in own]) == float("inf")
    assert difference(tuple(each[:0] for each in own), [each.numpy()[:0] for each in own]) == 0


@pytest.fixture(scope="module")
def run(run_of: Callable[[str], Path]) -> Path:
    """A run of one step."""
    return run_of("plain")


def test_a_run_is_exported_and_served(run: Path, paths: dict[str, Path]) -> None:
    from bpr_service.masks.images import read_image
    from refiner_training.segmenters.data.sets import to_tensor

    def all_of_them(arch: str, config: SegmenterConfig) -> SegmenterConfig:
        own = config.model.mask_rcnn.with_options(score_threshold=0.0, detections=7)
        return config.with_options(model=config.model.with_options(mask_rcnn=own))

    assert export_segmenter(run, changed=all_of_them) == run / "segmenter"
    segmenter = Segmenter(run)
    assert (segmenter.card.class_names, segmenter.card.class_ids) == (("ellipse", "rectangle"), (1, 2))
    assert (segmenter.card.min_size_px, segmenter.card.max_size_px) == (96, 128)
    image = read_image(paths["images"] / "0000.png")
    found = segmenter.segment(image)
    model = load_segmenter(run / "last.ckpt", changed=all_of_them)[0]
    with torch.inference_mode():
        expected = model([to_tensor(image)])[0]
    masks = [mask for mask in expected.masks(*image.shape[:2]) if not mask.is_empty]
    assert len(found) == len(masks) > 0
    for ours, theirs in zip(found, masks, strict=True):
        assert (ours.mask.to_array() != theirs.to_array()).mean() < 0.01


def test_no_run_and_no_segmenters_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"best\.ckpt or last\.ckpt"):
        export_segmenter(tmp_path)
    torch.save({"kind": "refiner"}, tmp_path / "last.ckpt")
    with pytest.raises((FormatError, ModelError), match=r"last\.ckpt"):
        export_segmenter(tmp_path)


def test_a_layer_that_the_exporter_does_not_know() -> None:
    with pytest.raises(ModelError, match="layers that the exporter knows"):
        to_onnx(_Unknown(), "deeplabv3plus", "fresh")


def test_a_file_that_says_something_else_is_refused() -> None:
    data = to_onnx(_Fixed(), "deeplabv3plus", "fresh")
    with pytest.raises(ModelError, match="what the network says"):
        check_equal(_Fixed(), data, "fresh")


def test_what_the_runtime_cannot_hold() -> None:
    with pytest.raises(ModelError, match=r"a network that onnxruntime .* holds"):
        open_session(b"no network", "x.onnx")
