"""examples/loop.sh from end to end at tiny size: segmenter, predictions, patches, refiner, refined, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
H, W = 96, 128


def save_split(folder: Path, images: int, seed: int) -> None:
    """Bright discs on dark ground, and their labels."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    ys, xs = np.mgrid[:H, :W]
    for i in range(images):
        y, x, radius = rng.integers(35, 60), rng.integers(40, 88), rng.integers(18, 30)
        label = ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2).astype(np.uint8)
        image = 50 + 140 * label[..., None] + rng.integers(0, 20, (H, W, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")


def test_the_whole_loop(tmp_path: Path) -> None:
    save_split(tmp_path / "train", 4, 0)
    save_split(tmp_path / "val", 2, 1)
    run = "run.precision=32 run.workers=0 run.threads=1"
    environment = {
        **os.environ,
        "BIN": f"{Path(sys.executable).parent}/",
        "OMP_NUM_THREADS": "1",
        "DATA": str(tmp_path),
        "OUT": str(tmp_path / "out"),
        "CLASSES": "2",
        "SEGMENTER_SET": f"{run} run.steps=40 run.batch_size=2 data.crop_px=[96,96] data.things=[] "
        "model.deeplabv3plus.decoder_channels=16 optim.warmup_steps=5 optim.lr=0.003",
        "REFINER_SET": f"{run} run.steps=3 run.batch_size=4",
        "PATCHES": "--per-mask 3",
    }
    done = subprocess.run(
        ["sh", "examples/loop.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["before"]["mIoU"] > 0.5  # the segmenter has learned what a disc is
    assert figures["mIoU"] > 0.5
    assert figures["images"] == 2
