"""One training run of a refiner: data in, model version out.

A run's folder holds ``config.yaml``, ``last.ckpt`` (replaced whole, by rename), ``best.ckpt`` where there is
validation, TensorBoard logs, and at the end the exported model version. Started again, a run goes on from
``last.ckpt``: batch ``i`` depends on the seed and ``i`` alone, so the resumed run computes what an undisturbed one
would have.

On several devices or machines each process is started by torchrun::

    torchrun --nproc-per-node 8 -m refiner_training.cli refiner CONFIG.yaml --set run.devices=8
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from bpr_service.errors import ConfigError
from refiner_training.config import PatchData, SimulatedData, TrainConfig
from refiner_training.export import check_same_network, export_run
from refiner_training.progress import ProgressBar, ProgressLines
from refiner_training.refiner import RefinerModule

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

VALIDATION_SEED = 1_000_003


def processes() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def open_data(
    data: SimulatedData | PatchData, config: TrainConfig, *, seed: int, first: int = 0, augment: bool = True
) -> IterableDataset[Any]:
    """The stream of batches that a configuration names; every check of the data happens here.

    Raises:
        FormatError: a store that is missing or not finished.
        ConfigError: one that does not fit the configuration.
    """
    rank, ranks = processes()
    patch = config.patch
    if isinstance(data, PatchData):
        from refiner_training.data.patch_set import PatchSet, PatchSetStream

        patches = PatchSet(data.patches)
        built = patches.manifest["settings"]["patch"]
        for key in ("patch_size_px", "padding_px", "scheme"):
            if built[key] != getattr(patch, key):
                raise ConfigError(
                    f"patch.{key}",
                    expected=f"{built[key]}, as {data.patches} was built",
                    got=str(getattr(patch, key)),
                    fix="change it, or build another patch set",
                )
        size = patch.network_size_px
        return PatchSetStream(
            patches, config.run.batch_size, seed, first, network_size_px=size, rank=rank, ranks=ranks, augment=augment
        )
    from refiner_training.data.scenes.store import SceneStore
    from refiner_training.data.scenes.stream import PatchStream, StreamConfig

    if patch.network_size_px != patch.crop_size_px or patch.scheme == "instance":
        raise ConfigError(
            "simulated data",
            expected=f"network_size_px equal to patch_size_px + 2 padding_px ({patch.crop_size_px}), no instance crops",
            got=f"{patch.network_size_px}, {patch.scheme}",
            fix="change one of them, or build a patch set",
        )
    stream = StreamConfig(
        patch_size_px=patch.patch_size_px,
        padding_px=patch.padding_px,
        batch_size=config.run.batch_size,
        sources=data.used(config.notes),
        **data.model_dump(exclude={"kind", "scenes", "sources", "leave_out", "stated_terms_only"}),
    )
    return PatchStream(SceneStore(data.scenes), stream, seed, first, rank, ranks)


def loader(stream: IterableDataset[Any], workers: int) -> DataLoader[Any]:
    """Batches as they are, in the order of their index."""
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def train(config: TrainConfig, folder: Path, *, resume: bool = True, json_progress: bool = False) -> Path:
    """Train, and export the best network as a model version.

    Args:
        folder: the run's folder; made when it is not there.
        resume: go on from ``last.ckpt`` where there is one.
        json_progress: JSON lines on stdout instead of a progress bar.

    Returns:
        The folder of the model version.

    Raises:
        ConfigError, FormatError, ModelError: the configuration, data or checkpoint do not fit; before any long work.
    """
    run, checkpoint = config.run, folder / "last.ckpt"
    check_processes(config)
    if run.threads:
        torch.set_num_threads(run.threads)
    L.seed_everything(run.seed, verbose=False)
    module = RefinerModule(config)
    module.check_patches()
    first = check_same_network(checkpoint, config) if resume and checkpoint.is_file() else 0
    training = loader(open_data(config.data, config, seed=run.seed, first=first), run.workers)
    validation = None
    if config.validation is not None and run.validation_batches:
        stream = open_data(config.validation, config, seed=run.seed + VALIDATION_SEED, augment=False)
        validation = loader(stream, 0)
    folder.mkdir(parents=True, exist_ok=True)
    if processes()[0] == 0:
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    with warnings.catch_warnings():
        quiet_lightning()
        trainer = make_trainer(config, folder, json_progress=json_progress, validating=validation is not None)
        trainer.fit(module, training, validation, ckpt_path=checkpoint if first else None, weights_only=False)
        if trainer.global_step > first and trainer.global_step % run.checkpoint_every:
            trainer.save_checkpoint(checkpoint)
    if not trainer.is_global_zero:
        return folder / "model"
    return export_run(folder, config)


def make_trainer(config: TrainConfig, folder: Path, *, json_progress: bool, validating: bool) -> L.Trainer:
    """Lightning's trainer with our callbacks."""
    run = config.run
    several = run.devices * run.nodes > 1
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "last", every_n_train_steps=run.checkpoint_every, enable_version_counter=False)
    ]
    if validating:
        callbacks.append(
            ModelCheckpoint(folder, "best", monitor="val/loss", save_weights_only=True, enable_version_counter=False)
        )
        if run.patience:
            callbacks.append(EarlyStopping("val/loss", patience=run.patience))
    if json_progress:
        callbacks.append(ProgressLines(run))
    elif sys.stderr.isatty():
        callbacks.append(ProgressBar(run))
    return L.Trainer(
        default_root_dir=folder,
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy="ddp" if several else "auto",
        # Synchronised batch norm exists for CUDA alone.
        sync_batchnorm=run.sync_batchnorm and several and torch.cuda.is_available() and run.accelerator != "cpu",
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[run.precision],  # type: ignore[arg-type]
        max_steps=run.steps,
        max_epochs=-1,
        gradient_clip_val=config.optim.gradient_clip or None,
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


def check_processes(config: TrainConfig) -> None:
    """Raise :class:`ConfigError` where torchrun and the configuration disagree on how many processes there are."""
    wanted, found = config.run.devices * config.run.nodes, processes()[1]
    if wanted != found:
        raise ConfigError(
            f"run.devices = {config.run.devices}, run.nodes = {config.run.nodes}",
            expected=f"{wanted} processes",
            got=str(found),
            fix=f"start it with torchrun --nnodes {config.run.nodes} --nproc-per-node {config.run.devices}, "
            "or set run.devices",
        )


def quiet_lightning() -> None:
    """Leave out what Lightning says of devices, tips, and loaders that are ours on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for module in (r"lightning\..*", r"torch\.optim\.lr_scheduler", r"torch\.utils\.data.*"):
        warnings.filterwarnings("ignore", module=module)
