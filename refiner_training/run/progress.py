"""How a training shows where it is: a bar on a terminal, or JSON lines for the job that runs it as its child."""

from __future__ import annotations

import json
import time
from typing import Any

import lightning as L

from bpr_service.recipe import RunConfig


class _Rate(L.Callback):
    """What is trained on a second and the time left, over the last few seconds, on the first process alone."""

    def __init__(self, config: RunConfig, every_s: float) -> None:
        self.config, self.every_s = config, every_s
        self._last = (time.monotonic(), 0)

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        # Not in on_fit_start: a checkpoint's step is known from here on.
        self._last = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        now, (then, step) = time.monotonic(), self._last
        last = trainer.global_step >= self.config.steps
        if not trainer.is_global_zero or (now - then < self.every_s and not last) or trainer.global_step == step:
            return
        steps_a_s = (trainer.global_step - step) / max(now - then, 1e-9)
        left_s = (self.config.steps - trainer.global_step) / steps_a_s
        self._last = (now, trainer.global_step)
        values = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}
        rate = steps_a_s * module.step_size(trainer.world_size)
        self.show(trainer.global_step, rate, module.unit, left_s, values)

    def show(self, step: int, rate: float, unit: str, left_s: float, values: dict[str, float]) -> None:
        """Show the step, units a second, seconds left and the latest measures."""
        raise NotImplementedError


class ProgressLines(_Rate):
    """One JSON line on stdout every few seconds."""

    def __init__(self, config: RunConfig, every_s: float = 5.0) -> None:
        super().__init__(config, every_s)

    def show(self, step: int, rate: float, unit: str, left_s: float, values: dict[str, float]) -> None:
        line = {"event": "progress", "step": step, "steps": self.config.steps}
        print(json.dumps({**line, f"{unit}_per_s": round(rate, 2), "time_left_s": round(left_s), **values}), flush=True)


class ProgressBar(_Rate):
    """A bar on stderr."""

    def __init__(self, config: RunConfig, every_s: float = 0.5) -> None:
        super().__init__(config, every_s)
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        super().on_train_start(trainer, module)
        if not trainer.is_global_zero:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
        )
        self._bar.add_task("", total=self.config.steps, completed=trainer.global_step)
        self._bar.start()

    def show(self, step: int, rate: float, unit: str, left_s: float, values: dict[str, float]) -> None:
        minutes, seconds = divmod(round(left_s), 60)
        measures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"{rate:.3g} {unit}/s  {minutes // 60}:{minutes % 60:02}:{seconds:02} left  {measures}"
        self._bar.update(self._bar.task_ids[0], completed=step, description=text)

    def teardown(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
