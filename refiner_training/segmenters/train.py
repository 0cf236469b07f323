"""One training run of a segmenter.

A run's folder holds ``config.yaml``, ``last.ckpt`` (replaced whole), ``best.ckpt`` when val is measured, and
TensorBoard logs. Started again, a run goes on from ``last.ckpt``: data, sampling and augmentation of a step depend on
the seed and the step's number alone, so the resumed run computes what an undisturbed one would have.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from bpr_service.config import build
from bpr_service.errors import ConfigError, ModelError
from refiner_training.segmenters.base import Segmenter
from refiner_training.segmenters.config import OptimConfig, SegmenterConfig
from refiner_training.segmenters.data import ClassMap, StreamSampler, make_loader, open_data
from refiner_training.segmenters.progress import ProgressLines
from refiner_training.segmenters.registry import build_segmenter, kind_of
from refiner_training.segmenters.validate import Validation


def learning_rate_factor(step: int, optim: OptimConfig, steps: int) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, then the schedule."""
    factor = 1.0
    if step < optim.warmup_steps:
        factor = optim.warmup_factor + (1 - optim.warmup_factor) * step / optim.warmup_steps
    done = min(step / steps, 1.0)
    if optim.schedule == "multistep":
        return float(factor * optim.gamma ** sum(step >= milestone for milestone in optim.milestones))
    if optim.schedule == "poly":
        return float(factor * (1 - done) ** optim.poly_power)
    if optim.schedule == "cosine":
        return float(factor * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item()))
    return factor


class SegmenterModule(L.LightningModule):
    """The model, its losses summed, its optimiser, and what a checkpoint must hold beside the weights."""

    def __init__(self, arch: str, head: str, config: SegmenterConfig, classes: ClassMap) -> None:
        super().__init__()
        self.arch, self.head, self.config, self.classes = arch, head, config, classes
        self.model: Segmenter = build_segmenter(arch, head, config)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random numbers of a step follow from its number, so nothing of them needs saving."""
        seed = self.config.run.seed * 1_000_003 + self.global_step * 1009 + self.global_rank
        torch.manual_seed(seed)
        self.model.reseed(seed + 1)

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]], batch_idx: int) -> Tensor:
        losses = self.model(*batch)
        total: Tensor = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not bool(torch.isfinite(total)):
            got = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in losses.items())
            fix = "lower optim.lr, or clip with optim.gradient_clip"
            raise ConfigError(f"the loss at step {self.global_step}", expected="a number", got=got, fix=fix)
        self.log("loss", total.detach(), prog_bar=True)
        self.log_dict({name: value.detach() for name, value in losses.items()})
        return total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.model.after_step()

    def configure_optimizers(self) -> Any:
        optim = self.config.optim
        decayed, plain = split_parameters(self.model)
        groups = [
            {"params": decayed, "weight_decay": optim.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if optim.name == "sgd":
            optimizer = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=optim.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, optim, self.config.run.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning saves before the module's own end of the step; what the step observed must be in.
        self.model.after_step()
        checkpoint["segmenter"] = {
            "arch": self.arch,
            "head": self.head,
            "config": self.config.model_dump(mode="json"),
            "class_names": list(self.classes.names),
            "class_ids": list(self.classes.ids),
        }
        checkpoint["training_state"] = self.model.training_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.model.load_training_state(checkpoint["training_state"])


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights that decay, and norms and biases that do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return decayed, plain


def load_segmenter(checkpoint: Path, device: str = "cpu") -> tuple[Segmenter, dict[str, Any]]:
    """The model of a checkpoint in evaluation mode, and its record (arch, head, config, class names and ids).

    Raises:
        ModelError: no checkpoint of a segmenter.
    """
    content = read_checkpoint(checkpoint)
    record = content["segmenter"]
    config = build(SegmenterConfig, record["config"])
    config = config.with_options(
        model=config.model.with_options(backbone=config.model.backbone.with_options(pretrained=False))
    )
    model = build_segmenter(record["arch"], record["head"], config)
    weights = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        got = str(error).splitlines()[-1].strip()
        raise ModelError(
            str(checkpoint), expected="the weights of its configuration", got=got, fix="train again"
        ) from None
    return model.to(device).eval(), record


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain values only are read, never code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if "segmenter" not in content:
            raise KeyError("segmenter")
    except FileNotFoundError:
        raise ModelError(str(path), expected="a checkpoint", got="no file", fix="check the path") from None
    except Exception as error:
        fix = "give a last.ckpt or best.ckpt of bpr-train segmenter"
        raise ModelError(str(path), expected="a segmenter's checkpoint", got=str(error)[:200], fix=fix) from None
    result: dict[str, Any] = content
    return result


def train_segmenter(
    arch: str,
    head: str,
    config: SegmenterConfig,
    folder: Path,
    *,
    resume: bool = True,
    json_progress: bool = False,
    quiet: bool = False,
) -> Path:
    """Train (arch, head) on a configuration's data.

    Args:
        folder: the run's folder; made when it is not there.
        resume: go on from ``last.ckpt`` where there is one.
        json_progress: JSON lines on stdout instead of a progress bar; quiet: neither.

    Returns:
        The last checkpoint.

    Raises:
        UnknownName, ConfigError, FormatError: see :func:`build_segmenter` and the data sets.
    """
    run = config.run
    if run.threads:
        torch.set_num_threads(run.threads)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", str(run.devices * run.nodes)))
    if run.batch_size % world:
        fix = "change run.batch_size"
        raise ConfigError(
            "run.batch_size", expected=f"a multiple of {world} processes", got=str(run.batch_size), fix=fix
        )
    dataset = open_data(config.data, "train", seed=run.seed, augment=True)
    module = SegmenterModule(arch, head, config, dataset.classes)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.ckpt"
    step = resume_step(last, arch, head, config) if resume and last.is_file() else 0
    if step >= run.steps:
        return last
    sampler = StreamSampler(len(dataset), seed=run.seed, first=step * run.batch_size, rank=rank, world=world)
    loader = make_loader(dataset, sampler, run.batch_size // world, run.workers)
    if rank == 0:
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    trainer = make_trainer(config, folder, kind_of(arch), json_progress=json_progress, quiet=quiet)
    trainer.fit(module, loader, ckpt_path=str(last) if step else None, weights_only=True)
    trainer.save_checkpoint(last)
    return last


def make_trainer(config: SegmenterConfig, folder: Path, kind: str, *, json_progress: bool, quiet: bool) -> L.Trainer:
    """Lightning's trainer for one run; under torchrun it takes over the processes it finds."""
    run = config.run
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "last", every_n_train_steps=run.checkpoint_every, enable_version_counter=False)
    ]
    if run.validate_every:
        callbacks.append(Validation(open_data(config.data, "val", augment=False), kind, run, folder / "best.ckpt"))
    bar = not json_progress and not quiet and sys.stderr.isatty()
    if json_progress:
        callbacks.append(ProgressLines(run.steps, run.batch_size))
    elif bar:
        callbacks.append(RichProgressBar())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(run.devices)))
    world = int(os.environ.get("WORLD_SIZE", str(run.devices * run.nodes)))
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[run.precision]
    return L.Trainer(
        default_root_dir=folder,
        accelerator="auto",
        devices=local,
        num_nodes=world // local,
        # Each process has its own banks and its own batch statistics; broadcasting them would undo both.
        strategy=DDPStrategy(broadcast_buffers=False) if world > 1 else "auto",
        sync_batchnorm=run.sync_batchnorm and world > 1,
        precision=precision,
        max_steps=run.steps,
        max_epochs=-1,
        gradient_clip_val=config.optim.gradient_clip or None,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, "logs", ""),
        enable_progress_bar=bar,
        enable_model_summary=False,
        log_every_n_steps=10,
        use_distributed_sampler=False,
    )


def resume_step(checkpoint: Path, arch: str, head: str, config: SegmenterConfig) -> int:
    """The step a checkpoint was written at.

    Raises:
        ConfigError: it belongs to another (arch, head) or another configuration.
    """
    content = read_checkpoint(checkpoint)
    record = content["segmenter"]
    theirs, ours = record["config"], config.model_dump(mode="json")
    same = (record["arch"], record["head"]) == (arch, head)
    for section in ("data", "model", "heads", "optim"):
        same = same and theirs[section] == ours[section]
    same = same and all(theirs["run"][key] == ours["run"][key] for key in ("seed", "batch_size"))
    if not same:
        raise ConfigError(
            f"{checkpoint} belongs to another run",
            expected=f"a checkpoint of {arch}, {head} with this configuration",
            got=f"{record['arch']}, {record['head']}, {theirs['name']}",
            fix="choose another folder, or start again without resuming",
        )
    return int(content["global_step"])
