"""Progress of a training run for the process that watches it."""

from __future__ import annotations

import json
import time
from typing import Any

import lightning as L


class ProgressLines(L.Callback):
    """One JSON line on stdout every few seconds."""

    def __init__(self, steps: int, batch_size: int, every_s: float = 5.0) -> None:
        self.steps, self.batch_size, self.every_s = steps, batch_size, every_s
        self._last = (time.monotonic(), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, (then, step) = time.monotonic(), self._last
        if not trainer.is_global_zero or (now - then < self.every_s and trainer.global_step < self.steps):
            return
        rate = (trainer.global_step - step) / max(now - then, 1e-9)
        line = {
            "event": "progress",
            "step": trainer.global_step,
            "steps": self.steps,
            "images_per_s": round(rate * self.batch_size, 2),
            "time_left_s": round((self.steps - trainer.global_step) / max(rate, 1e-9)),
            **{name: round(float(value), 5) for name, value in trainer.callback_metrics.items()},
        }
        print(json.dumps(line), flush=True)
        self._last = (now, trainer.global_step)
