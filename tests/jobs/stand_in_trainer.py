"""A trainer for tests: a real process with checkpoints, progress lines and an exported model, without the training.

Usage: stand_in_trainer.py patches ... | refiner CONFIG --out RUN | evaluate ... --predictions FILE ... --json
The recipe's ``run.steps`` is how many steps of 20 ms there are; STAND_IN_MODEL is what it exports.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import yaml


def train(config: Path, out: Path) -> None:
    values = yaml.safe_load(config.read_text())
    steps = values["run"]["steps"]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "last.ckpt"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with (out / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()} {first}\n")
    for step in range(first + 1, steps + 1):
        time.sleep(0.02)
        if os.environ.get("STAND_IN_FAILS") and step == 3:
            sys.exit("out of luck at step 3")
        (out / "new.ckpt").write_text(str(step))
        (out / "new.ckpt").rename(checkpoint)
        event = {"event": "progress", "step": step, "steps": steps, "patches_per_s": 50.0, "loss": 1 / step}
        print(json.dumps(event), flush=True)
    exported = out / "exported"
    shutil.copytree(os.environ["STAND_IN_MODEL"], exported, dirs_exist_ok=True)
    print(json.dumps({"event": "exported", "path": str(exported)}), flush=True)


def evaluate(arguments: list[str]) -> None:
    if os.environ.get("STAND_IN_SLOW"):
        Path(os.environ["STAND_IN_SLOW"]).write_text(str(os.getpid()))
        time.sleep(600)
    name = Path(arguments[arguments.index("--predictions") + 1]).name
    figures = {"held_out_candidate.json": os.environ.get("STAND_IN_FIGURE", "0.6"), "held_out_active.json": "0.5"}
    print(json.dumps({"boundary_AP": float(figures.get(name, "0.4")), "AP": 0.7}))


if __name__ == "__main__":
    if sys.argv[1] == "refiner":
        train(Path(sys.argv[2]), Path(sys.argv[4]))
    elif sys.argv[1] == "evaluate":
        evaluate(sys.argv)
    else:
        patches = Path(sys.argv[sys.argv.index("--out") + 1])
        patches.mkdir(parents=True, exist_ok=True)
        skipped = int(os.environ.get("STAND_IN_SKIPS", "0"))
        if skipped < 2:
            counts = {"patches": 2, "images": 2, "images_skipped": skipped}
            (patches / "manifest.json").write_text(json.dumps(counts))
        sys.exit(skipped > 0)
