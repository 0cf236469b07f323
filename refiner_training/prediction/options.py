"""How to predict, and what of it changes the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bpr_service.config import Settings
from bpr_service.errors import ConfigError
from refiner_training.segmenters.config import SegmenterConfig
from refiner_training.segmenters.registry import kind_of

Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
HOW = ("scores", "devices", "resume")
"""What says where and with what a prediction is made, not what comes out."""


class Options(Settings):
    """How to predict; what is None is left as the model was trained.

    Attributes:
        min_score: instances below are left out.
        panoptic_score: likewise for panoptic segments of instances.
        size_px: the shorter side of the network's input (the side of YOLACT's square); max_size_px: the longer side is
            never over this.
        score_threshold: the detector's own, before its NMS; detections: most instances of an image.
        batch: images that go through the network together.
        precision: ``bf16`` and ``16`` compute what is safe to in half precision (autocast).
        flip: also predict the mirrored image; scales: sizes of the input, as factors. All views are merged.
        scores: a folder for PNGs of the label maps' confidence (the largest class probability times 255).
        devices: each gets a copy of the model, and the next batch that is waiting.
        resume: go on where an interrupted prediction with the same options stopped.
    """

    min_score: float = Field(default=0.0, ge=0, le=1)
    panoptic_score: float = Field(default=0.5, ge=0, le=1)
    size_px: int | None = Field(default=None, ge=32)
    max_size_px: int | None = Field(default=None, ge=32)
    score_threshold: float | None = Field(default=None, ge=0, lt=1)
    detections: int | None = Field(default=None, ge=1)
    batch: int = Field(default=1, ge=1)
    precision: Literal["32", "bf16", "16"] = "32"
    flip: bool = False
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field(default=(1.0,), min_length=1)
    scores: Path | None = None
    devices: tuple[Device, ...] = Field(default=("cpu",), min_length=1)
    resume: bool = True

    def record(self) -> dict[str, Any]:
        """What changes the predictions: parts made with another record are never mixed."""
        return self.model_dump(mode="json", exclude=set(HOW))

    def applied(self, arch: str, config: SegmenterConfig) -> SegmenterConfig:
        """The configuration of a trained model with these options in place of what it was trained with.

        Raises:
            ConfigError: an option that the architecture does not have.
        """
        own: dict[str, Any] = {"score_threshold": self.score_threshold, "detections": self.detections}
        inputs: dict[str, Any] = {}
        if arch == "yolact":
            own["size_px"] = self.size_px
        elif kind_of(arch) == "semantic":
            own["test_size_px"] = self.size_px
        else:
            inputs = {"min_size": self.size_px and (self.size_px,), "max_size": self.max_size_px}
        settings = getattr(config.model, arch)
        own, inputs = ({name: value for name, value in each.items() if value is not None} for each in (own, inputs))
        foreign = {*own} - {*type(settings).model_fields}
        if self.max_size_px is not None and "max_size" not in inputs:
            foreign.add("max_size_px")
        if foreign:
            fix = f"leave it out, or predict with another architecture than {arch}"
            raise ConfigError(
                sorted(foreign)[0], expected=f"an option that {arch} has", got="one that it lacks", fix=fix
            )
        model = config.model.with_options(
            **{arch: settings.with_options(**own)}, inputs=config.model.inputs.with_options(**inputs)
        )
        return config.with_options(model=model)
