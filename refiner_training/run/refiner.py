"""The training of a refiner: data in, model version out.

Shapes: N patches of S x S px. Patches arrive as (N, S, S, 4) uint8 (RGB + mask), targets as (N, S, S) uint8 with
0 background, 1 foreground, 255 ignore; both are turned to floats on the device.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bpr_service.errors import ConfigError
from bpr_service.network.normalise import normalise_tensor
from bpr_service.network.registry import build_network
from refiner_training.config import TrainConfig
from refiner_training.run.checkpoint import resume_step
from refiner_training.run.export import export_run
from refiner_training.run.loss import boundary_loss
from refiner_training.run.module import TrainingModule
from refiner_training.run.streams import VALIDATION_SEED, loader, open_data
from refiner_training.run.trainer import Progress, begin, fit
from refiner_training.run.weights import WeightsReport, load_encoder

NEW_OUTPUT = 0.1
"""What the random weights of an output that is added to a trained network are multiplied by."""


class RefinerModule(TrainingModule):
    """What Lightning trains."""

    kind, unit, monitor, mode = "refiner", "patches", "val/loss", "min"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(build_network(config.network.name, **config.network.arguments), config.optim, config.run)
        self.config = config
        if config.network.start_from is not None:
            start_from(self.network, config)
        self.encoder_report: WeightsReport | None = None
        if config.network.encoder_weights is not None:
            self.encoder_report = load_encoder(self.network, config.network.name, config.network.encoder_weights)
        patch = config.patch
        self.padding = round(patch.padding_px * patch.network_size_px / patch.crop_size_px)

    def record(self) -> dict[str, Any]:
        return {"config": self.config.model_dump(mode="json")}

    def check_patches(self) -> None:
        """Raise :class:`ConfigError` when the network cannot take patches of the configured size."""
        size = self.config.patch.network_size_px
        training = self.network.training
        with torch.no_grad():
            logits = self.network.eval()(torch.zeros(1, 4, size, size))
        self.network.train(training)
        if logits.shape not in ((1, 1, size, size), (1, 2, size, size)):
            raise ConfigError(
                f"network {self.config.network.name}",
                expected=f"a logit a pixel, and one of an error where there are two maps: (1, 1 or 2, {size}, {size})",
                got=str(tuple(logits.shape)),
                fix="set the argument `outputs` to 1 or 2",
            )

    def on_fit_start(self) -> None:
        # NHWC is what convolutions are fastest in, on CPU and GPU alike.
        self.network.to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        patches, targets = batch
        logits = self.network(normalise_tensor(patches))
        loss = boundary_loss(logits, patches, targets, self.padding, self.config.loss)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        patches, targets = batch
        logits = self.network(normalise_tensor(patches))
        loss = boundary_loss(logits, patches, targets, self.padding, self.config.loss)
        p = self.padding
        inner = slice(p, -p) if p else slice(None)
        truth = targets[:, inner, inner]
        known = truth != 255
        wrong_before = ((patches[:, inner, inner, 3] > 127) != (truth == 1)) & known
        wrong_after = ((logits[:, 0, inner, inner] > 0) != (truth == 1)) & known
        removed = 1 - wrong_after.sum() / wrong_before.sum().clamp_min(1)
        if logits.shape[1] > 1:
            expected = logits[:, 1, inner, inner].sigmoid()[known].mean()
            self.log("val/expected_wrong", expected, sync_dist=True)
            self.log("val/wrong", wrong_after.sum() / known.sum().clamp_min(1), sync_dist=True)
        self.log("val/loss", loss, sync_dist=True)
        self.log("val/error_removed", removed, sync_dist=True)


def start_from(network: nn.Module, config: TrainConfig) -> None:
    """Load the weights of a model version into a network; a second output that the model lacks begins anew.

    Raises:
        ConfigError: the model is of another network.
    """
    from bpr_service.network.weights import load_model

    path = config.network.start_from
    loaded = load_model(str(path))
    found, wanted = loaded.card.network, config.network
    arguments = [{**n.arguments, "outputs": 1} for n in (found, wanted)]
    more = wanted.arguments.get("outputs", 1) >= loaded.card.outputs
    if found.name != wanted.name or arguments[0] != arguments[1] or not more:
        raise ConfigError(
            f"network.start_from {path}",
            expected=f"a model of {wanted.name} {wanted.arguments}",
            got=f"{found.name} {found.arguments}",
            fix="change network.name and network.arguments to the model's",
        )
    state = network.state_dict()
    for name, values in loaded.network.state_dict().items():
        if values.shape == state[name].shape:
            state[name] = values
        else:  # the head, whose first rows are the first output's
            state[name][: values.shape[0]] = values
            state[name][values.shape[0] :] *= NEW_OUTPUT
    network.load_state_dict(state)


def train(config: TrainConfig, folder: Path, *, resume: bool = True, progress: Progress = "bar") -> Path:
    """Train, and export the best network as a model version.

    Args:
        config: the run.
        folder: where it keeps its files; made when missing.
        resume: go on from ``last.ckpt`` where there is one; otherwise start anew.
        progress: how the run shows where it is.

    Returns:
        The exported model version's folder.

    Raises:
        ConfigError, UnknownName, FormatError: data, network or checkpoint do not fit, before any training.
        ModelError: ``last.ckpt`` is damaged or of another layout; ``network.encoder_weights`` cannot be used.
    """
    run = config.run
    begin(run)
    module = RefinerModule(config)
    module.check_patches()
    record, checkpoint = module.record(), folder / "last.ckpt"
    same = ("config.network.name", "config.network.arguments", "config.patch")
    first = resume_step(checkpoint, "refiner", record, same) if resume and checkpoint.is_file() else 0
    if first == 0 and module.encoder_report is not None and module.global_rank == 0:
        module.encoder_report.write(folder / "weights.json")
        print(module.encoder_report, file=sys.stderr)
    training = loader(open_data(config.data, config, seed=run.seed, first=first), run.workers)
    validation = None
    if config.validation is not None and run.validation_batches and run.validate_every:
        stream = open_data(config.validation, config, seed=run.seed + VALIDATION_SEED, augment=False)
        validation = loader(stream, 0)
    fit(module, training, validation, folder, record["config"], first=first, progress=progress)
    if module.global_rank:
        return folder / "model"
    return export_run(folder, config)
