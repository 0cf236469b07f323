"""Settings of a segmenter's training run: one YAML file for all heads of its data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from bpr_service.config import Settings
from bpr_service.recipe import OptimConfig, RunConfig
from refiner_training.config import read_settings
from refiner_training.heads.b2inst import B2InstSettings
from refiner_training.heads.beis import BeisSettings
from refiner_training.heads.bmask import BMaskSettings
from refiner_training.heads.boundary_squeeze import SqueezeSettings
from refiner_training.heads.boundary_squeeze_dense import DenseSqueezeSettings
from refiner_training.heads.plain import PlainSettings
from refiner_training.segmenters.backbone import BackboneConfig
from refiner_training.segmenters.blendmask_layers import BlendMaskConfig
from refiner_training.segmenters.deeplab import DeepLabConfig
from refiner_training.segmenters.mask_rcnn import InputConfig, MaskRcnnConfig
from refiner_training.segmenters.yolact_layers import YolactConfig


class InstanceData(Settings):
    """Images and a COCO annotation file (COCO, LVIS, or Cityscapes converted to it) for each split.

    Attributes:
        classes: ``all`` categories; ``agnostic``, every instance is one class; or names, others are left out.
        num_classes: how many classes that makes; training refuses data with another number.
        augmentation: ``flip`` alone, or ``ssd`` as well: YOLACT's, see `refiner_training.segmenters.data.augment`.
        flip: chance of a horizontal flip.
        repeat_threshold: t of LVIS' repeat-factor sampling: images with a category that a smaller share of images
            than t has are shown more often; 0 shows every image once an epoch.
    """

    kind: Literal["instance"] = "instance"
    train_images: Path
    train_annotations: Path
    val_images: Path | None = None
    val_annotations: Path | None = None
    classes: Literal["all", "agnostic"] | tuple[str, ...] = "all"
    num_classes: int = Field(ge=1)
    augmentation: Literal["flip", "ssd"] = "flip"
    flip: float = Field(default=0.5, ge=0, le=1)
    repeat_threshold: float = Field(default=0.0, ge=0, le=1)


class SemanticData(Settings):
    """Folders of images and of label PNGs with the same stems for each split.

    Attributes:
        num_classes: labels are 0..num_classes-1, or ``ignore_label``.
        things: classes whose connected pieces become segments of their own in panoptic output.
        label_suffix: what a label file's name has after the image's stem (Cityscapes: ``_gtFine_labelTrainIds``),
            image_suffix likewise of the image's own (``_leftImg8bit``).
        crop_px: height and width of training crops; scale: range of the random scale before it.
    """

    kind: Literal["semantic"] = "semantic"
    train_images: Path
    train_labels: Path
    val_images: Path | None = None
    val_labels: Path | None = None
    num_classes: int = Field(ge=1, le=256)
    ignore_label: int = Field(default=255, ge=0, le=255)
    things: tuple[int, ...] = ()
    image_suffix: str = ""
    label_suffix: str = ""
    crop_px: tuple[int, int] = (832, 832)
    scale: tuple[float, float] = (0.75, 2.0)
    flip: float = Field(default=0.5, ge=0, le=1)


class HeadsConfig(Settings):
    """Settings of each head; ``bsm_dense`` is ``bsm`` on DeepLabV3+."""

    plain: PlainSettings = PlainSettings()
    bmask: BMaskSettings = BMaskSettings()
    bsm: SqueezeSettings = SqueezeSettings()
    bsm_dense: DenseSqueezeSettings = DenseSqueezeSettings()
    beis: BeisSettings = BeisSettings()
    b2inst: B2InstSettings = B2InstSettings()


class ModelConfig(Settings):
    """The backbone, the sizes of the input, and each architecture's own settings.

    Attributes:
        weights: a file of weights, or another run's folder, to start from; see `refiner_training.run.weights`.
    """

    weights: Path | None = None
    backbone: BackboneConfig = BackboneConfig()
    inputs: InputConfig = InputConfig()
    mask_rcnn: MaskRcnnConfig = MaskRcnnConfig()
    blendmask: BlendMaskConfig = BlendMaskConfig()
    yolact: YolactConfig = YolactConfig()
    deeplabv3plus: DeepLabConfig = DeepLabConfig()


class SegmenterOptim(OptimConfig):
    """Optimiser and schedule of segmenters, with detectron2's defaults.

    Attributes:
        detector_rate: what the learning rate is multiplied by for all but the mask branch; 0 freezes it, its norms
            included, so that heads that start from one detector differ in masks alone.
    """

    name: Literal["adamw", "sgd"] = "sgd"
    lr: float = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    decay_all: bool = False
    schedule: Literal["cosine", "poly", "multistep", "constant"] = "multistep"
    final_factor: float = Field(default=0.0, ge=0, le=1)
    milestones: tuple[int, ...] = (60_000, 80_000)
    warmup_steps: int = Field(default=1000, ge=0)
    gradient_clip: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    detector_rate: float = Field(default=1.0, ge=0, le=1)


class SegmenterRun(RunConfig):
    """How a segmenter's run is done."""

    steps: int = Field(default=90_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Images a step over all processes; must divide by their number."""
    sync_batchnorm: bool = False
    workers: int = Field(default=4, ge=0)
    checkpoint_every: int = Field(default=1000, ge=1)
    validate_every: int = Field(default=0, ge=0)
    """Steps between measurements of the mean mask IoU (or mIoU) on val; 0 never measures."""
    validation_batches: int = Field(default=100, ge=0)
    """Images of val that are measured, one a batch."""


class SegmenterConfig(Settings):
    """One training run of any (architecture, head) on one data set."""

    name: str
    data: InstanceData | SemanticData = Field(discriminator="kind")
    model: ModelConfig = ModelConfig()
    heads: HeadsConfig = HeadsConfig()
    optim: SegmenterOptim = SegmenterOptim()
    run: SegmenterRun = SegmenterRun()

    @model_validator(mode="after")
    def _milestones_fit(self) -> Self:
        late = [step for step in self.optim.milestones if step >= self.run.steps]
        if self.optim.schedule == "multistep" and late:
            raise ValueError(f"milestone {late[0]} is not before the last step {self.run.steps}")
        return self


def load_segmenter_config(path: Path, overrides: Mapping[str, Any] | None = None) -> SegmenterConfig:
    """A segmenter's configuration from a YAML file; see `refiner_training.config.read_settings`."""
    return read_settings(SegmenterConfig, path, overrides)
