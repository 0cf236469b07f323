"""What every training has in common as a Lightning module: optimiser, schedule, random numbers, checkpoint record."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import nn

from bpr_service.recipe import OptimConfig, RunConfig
from refiner_training.run.checkpoint import add_record


class TrainingModule(L.LightningModule):
    """A network in training; subclasses say what a step is.

    Attributes:
        kind: what is trained, as a checkpoint names it.
        unit: what a batch consists of, as the progress shows it.
        monitor, mode: the measure of a validation that chooses the best checkpoint.
        network: the network; its weights are all that a model needs.
    """

    kind: ClassVar[str]
    unit: ClassVar[str]
    monitor: ClassVar[str]
    mode: ClassVar[Literal["min", "max"]]

    def __init__(self, network: nn.Module, optim: OptimConfig, run: RunConfig) -> None:
        super().__init__()
        self.network = network
        self.optim_config, self.run_config = optim, run

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the run: plain values alone."""

    def step_size(self, processes: int) -> int:
        """How many units a step over `processes` has."""
        return self.run_config.batch_size * processes

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What is drawn at random (dropout, samples) depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(self.step_seed())

    def step_seed(self) -> int:
        """The seed of this process's random numbers in this step."""
        return self.run_config.seed * 1_000_003 + self.global_step * 1009 + self.global_rank

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        add_record(checkpoint, self.kind, self.record())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: trainable parameters with their weight decay."""
        groups = decay_groups(self.network.parameters(), self.optim_config)
        return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups]

    def configure_optimizers(self) -> Any:
        config, steps = self.optim_config, self.run_config.steps
        groups = self.parameter_groups()
        optimizer: torch.optim.Optimizer
        if config.name == "adamw":
            optimizer = torch.optim.AdamW(groups, config.lr)
        else:
            optimizer = torch.optim.SGD(groups, config.lr, config.momentum)
        # A function of the step, so that a resumed run follows the schedule that its configuration has now.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(config, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decay_groups(parameters: Iterable[nn.Parameter], config: OptimConfig) -> list[tuple[list[nn.Parameter], float]]:
    """Trainable parameters with their weight decay: norms and biases apart where they do not decay."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        if parameter.requires_grad:
            groups[not config.decay_all and parameter.ndim <= 1].append(parameter)
    return [(found, decay) for found, decay in zip(groups, (config.weight_decay, 0.0), strict=True) if found]


def learning_rate_factor(config: OptimConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.warmup_factor + (1 - config.warmup_factor) * step / config.warmup_steps
    done = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    if config.schedule == "cosine":
        return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "poly":
        return float((1 - done) ** config.poly_power)
    if config.schedule == "multistep":
        return float(config.gamma ** sum(step >= milestone for milestone in config.milestones))
    return 1.0
