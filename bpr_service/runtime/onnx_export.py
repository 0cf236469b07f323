"""Export a model version to ONNX for other runtimes, and check that it says the same.

Letters: P is the number of patches, S the network size in pixels.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bpr_service import storage
from bpr_service.errors import ModelError

TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding."""


def export_onnx(model_dir: str, out: str, *, sizes_px: tuple[int, ...] = (64, 96, 128)) -> dict[str, Any]:
    """Write the network of ``model_dir`` to the ONNX file ``out`` and compare both on patches of each size.

    Input ``patches`` (P, 4, S, S) float32 in [-1, 1] (RGB and mask, as `bpr_service.refine.patches.normalise` gives);
    output ``logits`` (P, 1 or 2, S, S) float32, the first the foreground. P and S may vary.

    Returns:
        opset, sizes, the largest difference of a logit, and the share of pixels whose sign is the same.

    Raises:
        ModelError: the outputs differ by more than ``TOLERANCE``; no file is left.
    """
    import onnxruntime
    import torch

    from bpr_service.network.weights import load_model

    network = load_model(model_dir).network.eval().cpu().float()
    rng = np.random.default_rng(0)
    batches = [_patches(rng, 3, size) for size in sizes_px]
    with storage.replacing(out) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice to its own developers
        dynamic = {0: torch.export.Dim("patches", min=1), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        program = torch.onnx.export(
            network,
            (torch.from_numpy(batches[0]),),
            dynamo=True,
            input_names=["patches"],
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
        assert program is not None
        data = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        worst, same, pixels = 0.0, 0, 0
        for batch in batches:
            with torch.inference_mode():
                expected = network(torch.from_numpy(batch)).numpy()
            got = session.run(None, {"patches": batch})[0]
            worst = max(worst, float(np.abs(got - expected).max()))
            same += int(((got > 0) == (expected > 0)).sum())
            pixels += expected.size
        if not worst <= TOLERANCE:
            raise ModelError(
                "the ONNX file differs from the model",
                expected=f"logits equal to {TOLERANCE}",
                got=f"a difference of {worst:.3g}",
                fix="report it with the versions of torch and onnxruntime",
            )
        file.write(data)
    opset = {entry.domain or "ai.onnx": entry.version for entry in program.model_proto.opset_import}["ai.onnx"]
    return {
        "onnx": out,
        "opset": opset,
        "sizes_px": list(sizes_px),
        "largest_difference": worst,
        "same_sign": same / pixels,
    }


def _patches(rng: np.random.Generator, count: int, size_px: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Patches with structure: smooth colour and a mask with an edge, (count, 4, size_px, size_px) in [-1, 1]."""
    ramp = np.linspace(-1, 1, size_px, dtype=np.float32)
    slopes = rng.normal(size=(count, 4, 2)).astype(np.float32)
    planes = slopes[..., :1, None] * ramp[:, None] + slopes[..., 1:, None] * ramp
    planes[:, :3] += rng.normal(scale=0.1, size=planes[:, :3].shape).astype(np.float32)
    planes[:, 3] = np.sign(planes[:, 3])
    return np.clip(planes, -1, 1).astype(np.float32)
