"""Lightning's trainer as every run here uses it.

A run's folder holds ``config.yaml``, ``last.ckpt`` (replaced whole, by rename), ``best.ckpt`` where there is
validation, and TensorBoard logs. Started again, a run goes on from ``last.ckpt``: the data and the random numbers of
a step depend on the seed and the step alone, so the resumed run computes what an undisturbed one would have.

On several devices or machines each process is started by torchrun::

    torchrun --nproc-per-node 8 -m refiner_training.cli refiner CONFIG.yaml --set run.devices=8
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from bpr_service.errors import ConfigError
from bpr_service.recipe import RunConfig
from refiner_training.run.averaging import Averaging
from refiner_training.run.module import TrainingModule
from refiner_training.run.progress import ProgressBar, ProgressLines
from refiner_training.run.streams import processes

Progress = Literal["bar", "json", "none"]
"""A bar on a terminal, JSON lines on stdout, or neither."""


def fit(
    module: TrainingModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    folder: Path,
    config: Mapping[str, Any],
    *,
    first: int,
    progress: Progress,
) -> Path:
    """Train to the last step, leaving ``last.ckpt`` and, with validation, ``best.ckpt``.

    Args:
        module: what is trained.
        training: its endless batches.
        validation: batches to choose the best checkpoint by.
        folder: of the run.
        config: what ``config.yaml`` shall say.
        first: the step of ``last.ckpt`` to go on from; 0 starts anew.
        progress: how the run shows where it is.

    Returns:
        The last checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.ckpt"
    if processes()[0] == 0:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    with warnings.catch_warnings():
        quiet_lightning()
        trainer = make_trainer(module, folder, progress=progress, validating=validation is not None)
        trainer.fit(module, training, validation, ckpt_path=str(last) if first else None, weights_only=True)
        if trainer.global_step > first and trainer.global_step % module.run_config.checkpoint_every:
            trainer.save_checkpoint(last)
    return last


def make_trainer(module: TrainingModule, folder: Path, *, progress: Progress, validating: bool) -> L.Trainer:
    """Lightning's trainer with our callbacks; under torchrun it takes over the processes it finds."""
    run, optim = module.run_config, module.optim_config
    several = run.devices * run.nodes > 1
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "last", every_n_train_steps=run.checkpoint_every, enable_version_counter=False)
    ]
    if optim.ema_decay:
        callbacks.append(Averaging(optim.ema_decay))
    if validating:
        measure, mode = module.monitor, module.mode
        callbacks.append(ModelCheckpoint(folder, "best", measure, mode=mode, enable_version_counter=False))
        if run.patience:
            callbacks.append(EarlyStopping(measure, mode=mode, patience=run.patience))
    if progress == "json":
        callbacks.append(ProgressLines(run))
    elif progress == "bar" and sys.stderr.isatty():
        callbacks.append(ProgressBar(run))
    return L.Trainer(
        default_root_dir=folder,
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        # Each process has its own banks and its own batch statistics; broadcasting them would undo both.
        strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
        # Synchronised batch norm exists for CUDA alone.
        sync_batchnorm=run.sync_batchnorm and several and torch.cuda.is_available() and run.accelerator != "cpu",
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[run.precision],  # type: ignore[arg-type]
        max_steps=run.steps,
        max_epochs=-1,
        gradient_clip_val=optim.gradient_clip or None,
        val_check_interval=min(run.validate_every, run.steps) if validating else None,
        limit_val_batches=run.validation_batches if validating else 0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=TensorBoardLogger(folder, name="", version="logs"),
        callbacks=callbacks,
        log_every_n_steps=20,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def begin(run: RunConfig) -> None:
    """What a run needs before anything of it is built.

    Raises:
        ConfigError: torchrun and the configuration disagree on how many processes there are.
    """
    wanted, found = run.devices * run.nodes, processes()[1]
    if wanted != found:
        raise ConfigError(
            f"run.devices = {run.devices}, run.nodes = {run.nodes}",
            expected=f"{wanted} processes",
            got=str(found),
            fix=f"start it with torchrun --nnodes {run.nodes} --nproc-per-node {run.devices}, or set run.devices",
        )
    if run.threads:
        torch.set_num_threads(run.threads)
    L.seed_everything(run.seed, verbose=False)


def quiet_lightning() -> None:
    """Leave out what Lightning says of devices, tips, and loaders that are ours on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for module in (r"lightning\..*", r"torch\.optim\.lr_scheduler", r"torch\.utils\.data.*"):
        warnings.filterwarnings("ignore", module=module)
