"""The refiner as a Lightning module: network, loss, optimiser, weight averaging.

Shapes: N patches of S x S px. Patches arrive as (N, S, S, 4) uint8 (RGB + mask), targets as (N, S, S) uint8 with
0 background, 1 foreground, 255 ignore; both are turned to floats on the device.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpr_service.errors import ConfigError
from bpr_service.network.normalise import normalise
from bpr_service.network.registry import build_network
from refiner_training.config import LossConfig, OptimConfig, TrainConfig

NEW_OUTPUT = 0.1
"""What the random weights of an output that is added to a trained network are multiplied by."""


def pixel_weights(patches: Tensor, targets: Tensor, padding: int, config: LossConfig) -> Tensor:
    """What each pixel weighs in the loss: (N, S, S) float32, 0 where the target is ignored.

    Args:
        patches: (N, S, S, 4) uint8.
        targets: (N, S, S) uint8.
        padding: context (network px) that is never pasted back.
    """
    both = torch.stack((targets == 1, patches[..., 3] > 127), 1).float()
    edge = (_widen(both, 1) != -_widen(-both, 1)).any(1, keepdim=True).float()
    band = _widen(edge, config.band_px)[:, 0]
    weights = 1.0 + config.band_weight * band
    if padding:
        inner = torch.full_like(weights, config.padding_weight)
        inner[:, padding:-padding, padding:-padding] = 1.0
        weights = weights * inner
    return weights * (targets != 255)


def _widen(maps: Tensor, radius: int) -> Tensor:
    """Maximum over squares of side 2 radius + 1, one axis at a time: (N, C, S, S) -> (N, C, S, S)."""
    width = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(maps, (width, 1), 1, (radius, 0)), (1, width), 1, (0, radius))


def boundary_loss(logits: Tensor, patches: Tensor, targets: Tensor, padding: int, config: LossConfig) -> Tensor:
    """Weighted binary cross-entropy of (N, C, S, S) logits: a scalar, 0 where everything is ignored.

    Where C is 2 the second map learns whether the first's decision is wrong, by the same weights: its sigmoid is the
    probability of an error. The decision is taken as it is, so that the second map's loss never bends the first.
    """
    weights = pixel_weights(patches, targets, padding, config)
    truth = (targets == 1).float()
    losses = F.binary_cross_entropy_with_logits(logits[:, 0].float(), truth, reduction="none")
    if logits.shape[1] > 1:
        wrong = ((logits[:, 0].detach() > 0) != (targets == 1)).float()
        own = F.binary_cross_entropy_with_logits(logits[:, 1].float(), wrong, reduction="none")
        losses = losses + config.confidence_weight * own
    return (losses * weights).sum() / weights.sum().clamp_min(1.0)


class RefinerModule(L.LightningModule):
    """What Lightning trains."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.save_hyperparameters({"config": config.model_dump(mode="json")})
        self.network = build_network(config.network.name, **config.network.arguments)
        if config.network.start_from is not None:
            start_from(self.network, config)
        self.average: nn.Module | None = None
        if config.optim.ema_decay > 0:
            self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        patch = config.patch
        self.padding = round(patch.padding_px * patch.network_size_px / patch.crop_size_px)

    @property
    def best_network(self) -> nn.Module:
        """The averaged network where there is one."""
        return self.average or self.network

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

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        # What a network draws at random (dropout) depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(self.config.run.seed + 7_919 * self.global_step + self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        patches, targets = batch
        logits = self.network(normalise(patches))
        loss = boundary_loss(logits, patches, targets, self.padding, self.config.loss)
        self.log("train/loss", loss)
        return loss

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        # Here, not in on_train_batch_end: callbacks save the checkpoint before that.
        self._update_average()

    def _update_average(self) -> None:
        if self.average is None:
            return
        # A short memory at first, so that the average does not drag the random start along.
        step = self.global_step + 1
        decay = min(self.config.optim.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            mean = [v for v in self.average.state_dict().values() if v.is_floating_point()]
            new = [v for v in self.network.state_dict().values() if v.is_floating_point()]
            torch._foreach_lerp_(mean, new, 1 - decay)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        patches, targets = batch
        network = self.best_network.eval()
        logits = network(normalise(patches))
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

    def configure_optimizers(self) -> Any:
        config, steps = self.config.optim, self.config.run.steps
        optimizer: torch.optim.Optimizer
        if config.name == "adamw":
            optimizer = torch.optim.AdamW(self.network.parameters(), config.lr, weight_decay=config.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                self.network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(config, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Share of the base learning rate at a step: linear warm-up, then cosine, poly or constant."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done)) * 0.99 + 0.01
    if config.schedule == "poly":
        return float((1 - done) ** config.poly_power)
    return 1.0
