"""One training run of a refiner: data in, model version out.

A run's folder holds ``config.yaml``, ``last.ckpt`` (replaced whole, by rename), TensorBoard logs, and at the end the
exported model version. Started again, a run goes on from ``last.ckpt``: batch ``i`` depends on the seed and ``i``
alone, so the resumed run computes what an undisturbed one would have.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from bpr_service.config import build
from bpr_service.errors import ConfigError
from refiner_training.config import PatchData, SimulatedData, TrainConfig
from refiner_training.data.patch_stream import PatchStream, StreamConfig
from refiner_training.data.scenes import SceneStore
from refiner_training.refiner import RefinerModule


class ProgressLines(L.Callback):
    """One JSON line on stdout every few seconds, for the job that runs the trainer as its child."""

    def __init__(self, config: TrainConfig, every_s: float = 5.0) -> None:
        self.config, self.every_s = config, every_s
        self._last = (time.monotonic(), 0)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._last = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        now, (then, step) = time.monotonic(), self._last
        last = trainer.global_step == self.config.run.steps
        if (now - then < self.every_s and not last) or not trainer.is_global_zero:
            return
        patches = (trainer.global_step - step) * self.config.run.batch_size * trainer.world_size
        rate = patches / max(now - then, 1e-9)
        left = (self.config.run.steps - trainer.global_step) * self.config.run.batch_size * trainer.world_size
        values = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}
        line = {
            "event": "progress",
            "step": trainer.global_step,
            "steps": self.config.run.steps,
            "patches_per_s": round(rate, 1),
            "time_left_s": round(left / max(rate, 1e-9)),
            **values,
        }
        print(json.dumps(line), flush=True)
        self._last = (now, trainer.global_step)


def open_data(data: SimulatedData | PatchData, config: TrainConfig, *, seed: int, first: int = 0) -> Any:
    """The stream of batches that a configuration names; every check of the data happens here."""
    if isinstance(data, PatchData):
        from refiner_training.data.patch_set import PatchSet, PatchSetStream

        return PatchSetStream(PatchSet(data.patches), config.run.batch_size, seed, first)
    patch = config.patch
    if patch.network_size_px != patch.crop_size_px:
        raise ConfigError(
            "simulated data",
            expected=f"network_size_px equal to patch_size_px + 2 padding_px ({patch.crop_size_px})",
            got=str(patch.network_size_px),
            fix="change one of them, or build a patch set",
        )
    stream = StreamConfig(
        patch_size_px=patch.patch_size_px,
        padding_px=patch.padding_px,
        batch_size=config.run.batch_size,
        sources=dict(data.sources),
        mix=dict(data.mix),
        soft_share=data.soft_share,
        scale_share=data.scale_share,
    )
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return PatchStream(SceneStore(data.scenes), stream, seed, first, rank, ranks)


def loader(stream: Any, workers: int) -> DataLoader[Any]:
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
        ConfigError: data or checkpoint do not fit the configuration.
    """
    run = config.run
    if run.threads:
        torch.set_num_threads(run.threads)
    L.seed_everything(run.seed, workers=True, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "last.ckpt"
    first = checkpoint_step(checkpoint, config) if resume and checkpoint.is_file() else 0
    training = loader(open_data(config.data, config, seed=run.seed, first=first), run.workers)
    validation = None
    if config.validation is not None and run.validation_batches:
        validation = loader(open_data(config.validation, config, seed=run.seed + 1_000_003), 0)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder, "last", every_n_train_steps=run.checkpoint_every, enable_version_counter=False)
    ]
    if validation is not None:
        callbacks.append(
            ModelCheckpoint(folder, "best", monitor="val/loss", save_weights_only=True, enable_version_counter=False)
        )
        if run.patience:
            callbacks.append(EarlyStopping("val/loss", patience=run.patience))
    if json_progress:
        callbacks.append(ProgressLines(config))
    elif sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="auto",
        devices=run.devices,
        num_nodes=run.nodes,
        strategy="ddp" if run.devices * run.nodes > 1 else "auto",
        sync_batchnorm=run.sync_batchnorm and run.devices * run.nodes > 1,
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[run.precision],  # type: ignore[arg-type]
        max_steps=run.steps,
        gradient_clip_val=config.optim.gradient_clip or None,
        val_check_interval=min(run.validate_every, run.steps) if validation is not None else None,
        limit_val_batches=run.validation_batches if validation is not None else 0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, name="", version="logs"),
        callbacks=callbacks,
        log_every_n_steps=20,
        enable_progress_bar=not json_progress and sys.stderr.isatty(),
        enable_model_summary=False,
    )
    module = RefinerModule(config)
    trainer.fit(module, training, validation, ckpt_path=checkpoint if first else None, weights_only=False)
    if not trainer.is_global_zero:
        return folder / "model"
    from refiner_training.export import export_run

    return export_run(folder, config)


def checkpoint_step(path: Path, config: TrainConfig) -> int:
    """The step a checkpoint stands at.

    Raises:
        ConfigError: it was made by another network.
    """
    state = torch.load(path, map_location="cpu", weights_only=False)
    saved = build(TrainConfig, state["hyper_parameters"]["config"])
    if saved.network != config.network or saved.patch != config.patch:
        raise ConfigError(
            str(path),
            expected=f"a checkpoint of {config.network.name} {config.network.arguments} with {config.patch}",
            got=f"{saved.network.name} {saved.network.arguments} with {saved.patch}",
            fix="give the run another folder, or --no-resume",
        )
    return int(state["global_step"])
