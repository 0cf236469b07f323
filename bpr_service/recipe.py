"""The recipe of a training: what a retraining job and the trainer both read, without torch.

The trainer's configuration (``refiner_training.config.TrainConfig``) is this and what only the trainer may name: data
and files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bpr_service.config import PatchConfig, Settings

TrainingPrecision = Annotated[Literal["32", "bf16", "16"], BeforeValidator(lambda value: str(value))]
"""32 is a number in YAML, bf16 is text; both are taken."""


class NetworkRecipe(Settings):
    """A refinement network of ``bpr_service.network.registry`` and its arguments."""

    name: str = "light_unet_s"
    arguments: dict[str, Any] = Field(default_factory=dict)


class OptimConfig(Settings):
    """Optimiser and schedule. The paper: SGD 0.01, momentum 0.9, weight decay 5e-4, poly 0.9 (section 4.1)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    decay_all: bool = True
    """Whether norms and biases decay as weights do."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "multistep", "constant"] = "cosine"
    """``cosine`` falls to ``final_factor`` and ``poly`` to 0 at the last step; ``multistep`` multiplies the rate by
    ``gamma`` at each of ``milestones``.
    """
    final_factor: float = Field(default=0.01, ge=0, le=1)
    poly_power: float = 0.9
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = Field(default=200, ge=0)
    """Steps in which the rate rises from ``warmup_factor``, before the schedule begins."""
    warmup_factor: float = Field(default=0.001, gt=0, le=1)
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Weight averaging; 0 turns it off."""


class LossConfig(Settings):
    """Binary cross-entropy, heavier in the boundary band."""

    band_px: int = Field(default=5, ge=0)
    band_weight: float = Field(default=4.0, ge=0)
    """What a pixel within ``band_px`` of the true or the coarse boundary weighs above one far from both."""
    padding_weight: float = Field(default=0.25, ge=0)
    """What a pixel of the context weighs, which is never pasted back."""
    confidence_weight: float = Field(default=0.5, ge=0)
    """What the second output's loss weighs beside the first's: the log-odds that the decision of a pixel is wrong."""
    changed_weight: float = Field(default=8.0, ge=0)
    """What a pixel that the decision changes weighs in it above others."""


class RunConfig(Settings):
    """How the run is done."""

    steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Patches a process and step."""
    precision: TrainingPrecision = "bf16"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1)
    """Processes of one machine; more than one are started by torchrun."""
    nodes: int = Field(default=1, ge=1)
    sync_batchnorm: bool = True
    workers: int = Field(default=1, ge=0)
    threads: int = Field(default=0, ge=0)
    """Processor threads of one process; 0 leaves torch's own choice."""
    seed: int = 0
    checkpoint_every: int = Field(default=500, ge=1)
    validate_every: int = Field(default=1000, ge=0)
    """Steps between validations, where there is validation data; 0 never validates."""
    validation_batches: int = Field(default=20, ge=0)
    patience: int = Field(default=0, ge=0)
    """Validations without gain after which the run stops; 0 never stops early."""


class Recipe(Settings):
    """What a training does, apart from its data."""

    network: NetworkRecipe = NetworkRecipe()
    patch: PatchConfig = PatchConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    run: RunConfig = RunConfig()
