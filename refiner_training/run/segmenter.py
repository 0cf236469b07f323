"""The training of a segmenter: an architecture with one of its heads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bpr_service.config import build
from bpr_service.errors import ConfigError, ModelError
from refiner_training.run.checkpoint import read_checkpoint, resume_step, weights_of
from refiner_training.run.module import TrainingModule, decay_groups
from refiner_training.run.streams import processes
from refiner_training.run.trainer import Progress, begin, fit
from refiner_training.run.validation import SegmenterScore
from refiner_training.run.weights import load_weights
from refiner_training.segmenters.base import Segmenter, Target
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.data.sets import ClassMap, open_data
from refiner_training.segmenters.data.stream import StreamSampler, make_loader, val_loader
from refiner_training.segmenters.registry import build_segmenter, kind_of

SAME = ("arch", "head", "config.data", "config.model", "config.heads", "config.optim", "config.run.seed",
        "config.run.batch_size")  # fmt: skip
"""What a resumed run must have as the run that it goes on from."""


class SegmenterModule(TrainingModule):
    """The model, its losses summed, and what a checkpoint must hold beside the weights."""

    kind, unit, monitor, mode = "segmenter", "images", "val/iou", "max"
    network: Segmenter

    def __init__(self, arch: str, head: str, config: SegmenterConfig, classes: ClassMap) -> None:
        super().__init__(build_segmenter(arch, head, config), config.optim, config.run)
        self.arch, self.head, self.config, self.classes = arch, head, config, classes
        self.score = SegmenterScore(kind_of(arch), len(classes.ids))
        if config.optim.detector_rate == 0:
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(self.network.head_names) and parameter.requires_grad)
        self.train()

    def record(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "head": self.head,
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.classes.names),
            "class_ids": list(self.classes.ids),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        optim, parts = self.config.optim, ([], [])  # type: tuple[Any, Any]
        for name, parameter in self.network.named_parameters():
            parts[not name.startswith(self.network.head_names)].append(parameter)
        return [
            {"params": parameters, "weight_decay": decay, "lr": optim.lr * rate}
            for part, rate in zip(parts, (1.0, optim.detector_rate), strict=True)
            for parameters, decay in decay_groups(part, optim)
        ]

    def train(self, mode: bool = True) -> SegmenterModule:
        """As ever; the norms of a frozen detector go on as they are."""
        super().train(mode)
        if self.config.optim.detector_rate == 0:
            for name, module in self.network.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not name.startswith(self.network.head_names):
                    module.eval()
        return self

    def step_size(self, processes: int) -> int:
        return self.run_config.batch_size

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.network.reseed(self.step_seed() + 1)

    def training_step(self, batch: tuple[list[Tensor], list[Target]], batch_idx: int) -> Tensor:
        losses = self.network(*batch)
        total: Tensor = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not bool(torch.isfinite(total)):
            got = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in losses.items())
            fix = "lower optim.lr, or clip with optim.gradient_clip"
            raise ConfigError(f"the loss at step {self.global_step}", expected="a number", got=got, fix=fix)
        self.log("loss", total.detach(), prog_bar=True)
        self.log_dict({name: value.detach() for name, value in losses.items()})
        return total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.network.after_step()

    def on_validation_epoch_start(self) -> None:
        self.score.reset()

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], batch_idx: int) -> None:
        images, targets = batch
        for found, target in zip(self.network(images), targets, strict=True):
            self.score.add(found, target)

    def on_validation_epoch_end(self) -> None:
        self.log("val/iou", self.score.value(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # Lightning saves before the module's own end of the step; what the step observed must be in.
        self.network.after_step()
        checkpoint["training_state"] = self.network.training_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.network.load_training_state(checkpoint["training_state"])


def load_segmenter(
    checkpoint: Path, changed: Callable[[str, SegmenterConfig], SegmenterConfig] | None = None
) -> tuple[Segmenter, dict[str, Any]]:
    """The model of a checkpoint in evaluation mode, and its record (arch, head, config, class names and ids).

    Args:
        checkpoint: of ``bpr-train segmenter``.
        changed: gives the configuration to build for an architecture, of the one that was trained; it may change what
            no weight depends on.

    Raises:
        ModelError: no checkpoint of a segmenter.
    """
    content = read_checkpoint(checkpoint, "segmenter")
    record = content["trained"]
    config = build(SegmenterConfig, record["config"])
    if changed is not None:
        config = changed(record["arch"], config)
    backbone = config.model.backbone.with_options(pretrained=False)
    model = build_segmenter(
        record["arch"], record["head"], config.with_options(model=config.model.with_options(backbone=backbone))
    )
    try:
        model.load_state_dict(weights_of(content))
    except RuntimeError as error:
        got = str(error).splitlines()[-1].strip()
        raise ModelError(
            str(checkpoint), expected="the weights of its configuration", got=got, fix="train again"
        ) from None
    return model.eval(), record


def train_segmenter(
    arch: str, head: str, config: SegmenterConfig, folder: Path, *, resume: bool = True, progress: Progress = "bar"
) -> Path:
    """Train (arch, head) on a configuration's data.

    Args:
        arch: a name of the registry.
        head: one that the architecture hosts.
        config: data, model and run.
        folder: the run's folder; made when it is not there.
        resume: go on from ``last.ckpt`` where there is one.
        progress: how the run shows where it is.

    Returns:
        The last checkpoint.

    Raises:
        UnknownName, ConfigError, FormatError: see :func:`build_segmenter` and the data sets.
        ModelError: ``last.ckpt`` is damaged or of another layout; ``model.weights`` cannot be used.
    """
    run = config.run
    rank, world = processes()
    if run.batch_size % world:
        expected, fix = f"a multiple of {world} processes", "change run.batch_size"
        raise ConfigError("run.batch_size", expected=expected, got=str(run.batch_size), fix=fix)
    begin(run)
    dataset = open_data(config.data, "train", seed=run.seed, augment=True)
    module = SegmenterModule(arch, head, config, dataset.classes)
    record, last = module.record(), folder / "last.ckpt"
    first = resume_step(last, "segmenter", record, SAME) if resume and last.is_file() else 0
    if first >= run.steps:
        return last
    if first == 0 and config.model.weights is not None:
        report = load_weights(
            module.network,
            config.model.weights,
            arch,
            std=config.model.inputs.std,
            class_ids=dataset.classes.ids,
        )
        if rank == 0:
            report.write(folder / "weights.json")
            print(report, file=sys.stderr)
    sampler = StreamSampler(dataset.repeats(), seed=run.seed, first=first * run.batch_size, rank=rank, world=world)
    training = make_loader(dataset, sampler, run.batch_size // world, run.workers)
    validation = None
    if run.validate_every and run.validation_batches:
        validation = val_loader(open_data(config.data, "val", augment=False))
    return fit(module, training, validation, folder, record["config"], first=first, progress=progress)
