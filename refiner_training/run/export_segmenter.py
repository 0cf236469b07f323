"""A trained segmenter as ONNX, with a card: what `bpr serve --segmenter` takes.

Letters: n instances, H and W the picture's height and width in px.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bpr_service.errors import ConfigError, FormatError, ModelError
from bpr_service.network.segmenter import CARD, NETWORK, OUTPUTS, SegmenterCard, open_session
from refiner_training.run.segmenter import load_segmenter
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.registry import kind_of

EXAMPLE, CHECKED = (96, 128), ((96, 128), (150, 110))
TOLERANCE = 1e-2
"""Largest difference of a box in px, a score or a probability that is taken for rounding."""


class _OnePicture(nn.Module):
    """A picture (3, H, W) in [0, 1] -> what is found in it, as tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        found = self.model([image])[0]
        if isinstance(found, Tensor):
            return found
        return found.boxes, found.labels, found.mask_scores, found.grids, found.rects


def export_segmenter(
    run: Path,
    out: Path | None = None,
    *,
    changed: Callable[[str, SegmenterConfig], SegmenterConfig] | None = None,
) -> Path:
    """Write the network and the card of a run's best checkpoint, else its last one, and compare both networks.

    Args:
        run: a run's folder, or a checkpoint.
        out: the folder; default ``segmenter`` in the run's.
        changed: the configuration to export of the one that was trained: sizes, thresholds, limits.

    Raises:
        FormatError: no checkpoint there.
        ModelError: no segmenter's checkpoint; the exporter, or the runtime, cannot hold it; both say something else.
    """
    checkpoint = run
    if run.is_dir():
        checkpoint = next((p for p in (run / "best.ckpt", run / "last.ckpt") if p.is_file()), run / "last.ckpt")
    if not checkpoint.is_file():
        raise FormatError(str(run), expected="a checkpoint: best.ckpt or last.ckpt", got="none", fix="train first")
    sizes: dict[str, int] = {}

    def kept(arch: str, config: SegmenterConfig) -> SegmenterConfig:
        config = changed(arch, config) if changed is not None else config
        side = config.model.yolact.size_px if arch == "yolact" else None
        sizes.update(min=side or config.model.inputs.min_size[-1], max=side or config.model.inputs.max_size)
        return config

    model, record = load_segmenter(checkpoint, changed=kept)
    arch = record["arch"]
    network = _OnePicture(model).eval()
    data = to_onnx(network, arch, str(checkpoint))
    check_equal(network, data, f"{checkpoint} as ONNX")
    card = SegmenterCard(
        name=str(record["config"]["name"]),
        arch=arch,
        head=record["head"],
        task=kind_of(arch),
        class_ids=tuple(record["class_ids"]),
        class_names=tuple(record["class_names"]),
        min_size_px=sizes["min"],
        max_size_px=sizes["max"],
        sha256=hashlib.sha256(data).hexdigest(),
    )
    folder = out or checkpoint.parent / "segmenter"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NETWORK).write_bytes(data)
    (folder / CARD).write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")
    return folder


def to_onnx(network: nn.Module, arch: str, name: str) -> bytes:
    """The ONNX file of a network of one picture, whose height and width may vary.

    Raises:
        ModelError: the exporter cannot write it.
    """
    try:
        import onnx  # noqa: F401  the exporter needs it
    except ModuleNotFoundError:
        raise ConfigError(
            "an export", expected="the extra onnx", got="no onnx", fix="pip install 'bpr-service[onnx]'"
        ) from None
    semantic = kind_of(arch) == "semantic"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / NETWORK
        warnings.simplefilter("ignore")  # the exporter's advice to its own developers
        try:
            torch.onnx.export(
                network,
                (picture(EXAMPLE),),
                file,
                dynamo=False,  # torchvision's detectors are written for this exporter
                opset_version=17,
                input_names=["image"],
                output_names=["probabilities"] if semantic else list(OUTPUTS),
                dynamic_axes={"image": {1: "height", 2: "width"}},
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            got = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{name} as ONNX", expected="layers that the exporter knows", got=got, fix="serve another architecture"
            ) from None
        return file.read_bytes()


def check_equal(network: nn.Module, data: bytes, name: str) -> None:
    """Raise `ModelError` where the ONNX file says something else than the network, on pictures of several sizes."""
    session = open_session(data, name)
    for size in CHECKED:
        image = picture(size)
        with torch.inference_mode():
            expected = network(image)
        try:
            got = session.run(None, {"image": image.numpy()})
        except Exception as error:  # onnxruntime has an own tree of them, without a common root
            raise ModelError(
                name,
                expected="a network that onnxruntime runs at every size",
                got=" ".join(str(error).split())[:300],
                fix="serve another architecture",
            ) from None
        worst = difference(expected, got)
        if not worst <= TOLERANCE:
            said = f"a difference of {worst:.3g}" if np.isfinite(worst) else "another number of instances"
            fix = "serve another architecture, and report it with the versions of torch and onnxruntime"
            raise ModelError(name, expected=f"what the network says, to {TOLERANCE}", got=said, fix=fix)


def difference(expected: Any, got: list[Any]) -> float:
    """The largest difference of both answers; infinite where their shapes differ.

    Instances are compared pair by pair, whatever their order: scores that differ by rounding may change places.
    """
    own = [each.numpy() for each in (expected if isinstance(expected, tuple) else (expected,))]
    if [each.shape for each in own] != [each.shape for each in got]:
        return float("inf")
    if len(own) > 1:
        keys = [np.column_stack([each[0], 1e4 * each[1], 1e2 * each[2]]) for each in (own, got)]
        pairs = np.abs(keys[0][:, None] - keys[1][None]).sum(-1).argmin(1) if len(own[0]) else np.zeros(0, int)
        got = [each[pairs] for each in got]
    return max((float(np.abs(a - b).max()) for a, b in zip(own, got, strict=True) if a.size), default=0.0)


def picture(size: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) of smooth colours with a dark block."""
    height, width = size
    ramp = torch.linspace(0.2, 0.8, height)[:, None] + 0.2 * torch.linspace(-1, 1, width)
    image = torch.stack([ramp, ramp.flip(0), ramp.flip(1)])
    image[:, height // 4 : height // 2, width // 4 : width // 2] = 0.1
    return image.contiguous()
