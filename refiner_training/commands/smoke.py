"""Does a pair work at all: two steps of training and one predicted image, on synthetic data, in seconds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bpr_service.config import build
from refiner_training.predict import predict
from refiner_training.run.segmenter import train_segmenter
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.synthetic import make_set, tiny_config
from refiner_training.segmenters.registry import kind_of


def run_smoke(arch: str, head: str, folder: Path | None = None) -> str:
    """Train two steps and predict one image in ``folder`` (a temporary one by default); says what was done."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run_smoke(arch, head, Path(temporary))
    kind = kind_of(arch)
    train = make_set(folder / "train", 2)
    one = make_set(folder / "one", 1, seed=1)
    config = build(SegmenterConfig, tiny_config(kind, train))
    checkpoint = train_segmenter(arch, head, config, folder / "run", progress="none")
    out = folder / ("predictions.json" if kind == "instance" else "predictions")
    dataset = one["annotations"] if kind == "instance" else None
    done = predict(checkpoint, one["images"], out, dataset=dataset)
    return f"{arch}, {head}: {config.run.steps} steps trained, {done} image predicted"
