"""`Refiner`: Boundary Patch Refinement of one image (Tang et al., CVPR 2021; Hu et al., IJCV 2022).

Letters: H, W are the image's size, px; P patches, S ``network_size_px``, C output maps.

``image, masks -> boundary pixels -> patches (P, 4) -> crops (P, S, S, 4) -> network (P, C, S, S) ->
reassembly -> masks``
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bpr_service.config import PRESETS, RefineConfig, build
from bpr_service.errors import ConfigError, InputError, MaskError, UnknownName
from bpr_service.masks.images import Exif, as_image, check_pixels, open_image
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.network.backends import batch_sizes, label
from bpr_service.network.model import Model, Predict, Runs, check_scale
from bpr_service.network.weights import ModelCard, bundled_models
from bpr_service.refine.assess import Assessor, CertaintyGate
from bpr_service.refine.estimate import Estimator
from bpr_service.refine.labels.soft_labels import SoftLabels
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.reassemble import Gate, as_valid
from bpr_service.refine.scale import Scales
from bpr_service.refine.tasks import InstanceTask, PanopticTask, SemanticTask
from bpr_service.results import MaskReport, PanopticResult, Provenance, RefineResult, SemanticResult

__all__ = ["MaskReport", "PanopticResult", "Prepared", "RefineResult", "Refiner", "SemanticResult"]

R = TypeVar("R", bound=Provenance)


class Refiner:
    """Coarse masks in, exact masks out: a shared `Model` and a config.

    Make one with :meth:`load` and keep it: loading is the slow part. Others of the same model, by :meth:`load` or
    :meth:`with_options`, share its network and what runs it.

    Attributes:
        model: what runs the network.
        config: the settings, with what the model's card decides in them.
        gate: of label maps: the reason to keep a mask as it is, or None.
        instance_gate: of instance masks.
        scales: of the masks of an image.
        resides: the device in whose memory patches are cut and averaged; None for the host's.
    """

    def __init__(self, model: Runs, config: RefineConfig, *, gate: Gate | None = None) -> None:
        """A refiner of a model and settings.

        Args:
            model: what runs the network.
            config: the settings; what the model's card decides is put into them.
            gate: decides, mask by mask, whether the refined one is taken; without one, the model's card says for
                instances. ``config.gate`` turns either off.

        Raises:
            ConfigError: settings that the model cannot run with.
        """
        self._asked, config = config, model.settle(config)
        self.model, self.config, self._gate = model, config, gate
        card = model.card
        self.gate = gate if config.gate else None
        # Labels that compete for pixels hold each other in check: the card's rule is measured on, and for, instances.
        certainty = CertaintyGate(card.gate) if config.gate and card.gate > 0 and not card.estimate else None
        self.instance_gate = self.gate or certainty
        self._assess = None
        if card.estimate:  # by which nothing is refused where another gate decides, or none
            refuses = config.gate and self.gate is None
            self._assess = partial(Assessor, estimator=Estimator(card.estimate), gate=refuses)
        boxes = config.patch.scheme == "instance"  # of any size: they have no scale
        tries = config.tries if card.estimate and not boxes else (1.0,)  # the estimate chooses between them
        asked = 1.0 if boxes and config.scale == "auto" else config.scale
        self.scales = Scales(asked, tries, *card.scales)
        # Squares of one size are cut and averaged on an accelerator; boxes of many sizes, before and after it.
        self.resides = model.device if model.accelerator and config.patch.scheme != "instance" else None
        self._predict: Predict = model.predictor(config)
        """Takes and gives what `Prepared` holds: tensors where pixels reside on a device, else arrays."""
        if model.accelerator and self.resides is None:
            self._predict = _from_host(self._predict, model.device)

    @classmethod
    def load(
        cls,
        preset_or_model: str | Path = "balanced",
        *,
        device: str = "cpu",
        model: str | Path | None = None,
        **overrides: Any,
    ) -> Refiner:
        """A Refiner of a preset, or of a model version's folder with the settings of its card.

        Args:
            preset_or_model: ``fast``, ``lean``, ``balanced``, ``best``, the name of a bundled model, or a folder.
            device: ``cpu``, ``cuda`` or ``cuda:N``; never another one than asked for.
            model: another model version for the preset's settings.
            overrides: fields of `RefineConfig` or `PatchConfig`.

        Raises:
            UnknownName, ConfigError, ModelError, DeviceError: what was asked for is not there, or does not fit.
        """
        name = str(preset_or_model)
        preset = PRESETS.get(name)
        if preset is None and not Path(name).is_dir() and name not in bundled_models():
            raise UnknownName("preset or model", name, [*PRESETS, *bundled_models()])
        loaded = Model.load(model if model is not None else preset.model if preset else name, device=device)
        patch = preset.patch(loaded.card.patch) if preset else loaded.card.patch
        tries = {"tries": preset.tries} if preset else {}
        return cls(loaded, build(RefineConfig, {"patch": patch.model_dump(), **tries, **overrides}))

    def with_options(self, **options: Any) -> Refiner:
        """A Refiner of the same model with `options` changed: fields of `RefineConfig` or `PatchConfig`.

        Raises:
            ConfigError: as the constructor.
        """
        return Refiner(self.model, self._asked.with_options(**options), gate=self._gate)

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self.model.card

    @property
    def device(self) -> str:
        """Where the network runs: ``cpu`` or ``cuda:N``."""
        return self.model.device

    @property
    def runs_on(self) -> str:
        """What every answer names: the device, and backend and precision where they are not the usual ones."""
        return label(self.device, self.config.backend, self.config.precision)

    # ---- the whole operation -------------------------------------------------------------------------------

    def refine(
        self, image: Any, masks: Any, scales: Sequence[float] | None = None, *, exif: Exif = "ignore", valid: Any = None
    ) -> RefineResult:
        """Refine instance masks: they may overlap, and each keeps its place in the list.

        Args:
            image: (H, W, 3) uint8 RGB array, or whatever `as_image` takes, or a file.
            exif: of a file: "apply" where the masks speak of the upright photograph, "ignore" of its stored pixels.
            masks: a list of what `as_mask` takes (Mask, array, RLE, polygons, PNG), an (N, H, W) array, or one mask.
            scales: of each mask, image pixels of its patches over those the model was trained at; None: the config's.
            valid: (H, W) not 0 where the image holds data; nothing changes outside. None: everywhere.

        Raises :class:`ImageError`, :class:`MaskError` (with the mask's number), :class:`LimitError`.
        """
        prepared = self.prepare(image, masks, scales, exif=exif, valid=valid)
        return replace(self.run(prepared), image=prepared.image)

    def refine_labels(self, image: Any, id_map: Any, *, exif: Exif = "ignore", valid: Any = None) -> SemanticResult:
        """Refine every instance of an (H, W) map of their ids; 0 is background, and no id is ignored."""
        return self.run(self.prepare_semantic(image, id_map, None, exif=exif, valid=valid))

    def refine_semantic(
        self, image: Any, label_map: Any, ignore_label: int | None = 255, *, exif: Exif = "ignore", valid: Any = None
    ) -> SemanticResult:
        """Refine every label of an (H, W) map; pixels of `ignore_label` stay as they are and it never spreads.

        The map may be the probabilities (C, H, W) of classes 0, 1, ...; `SoftLabels` are of logits and other labels.
        """
        return self.run(self.prepare_semantic(image, label_map, ignore_label, exif=exif, valid=valid))

    def refine_panoptic(
        self,
        image: Any,
        segment_map: Any,
        segments_info: Sequence[dict[str, Any]],
        *,
        exif: Exif = "ignore",
        valid: Any = None,
    ) -> PanopticResult:
        """Refine every segment of an (H, W) id map, things and stuff together; 0 is void and stays void."""
        return self.run(self.prepare_panoptic(image, segment_map, segments_info, exif=exif, valid=valid))

    def run(self, prepared: Prepared[R]) -> R:
        """What is left of the operation once an image is prepared: batch by batch through the network."""
        for start in range(0, prepared.n_patches, self.config.batch_size):
            crops = prepared.crops(start, start + self.config.batch_size)
            with prepared.timed("network"):
                logits = self.logits(crops)
            prepared.add(start, logits)
        return prepared.finish()

    # ---- its stages, for an engine that batches across images ----------------------------------------------

    def prepare(
        self, image: Any, masks: Any, scales: Sequence[float] | None = None, *, exif: Exif = "ignore", valid: Any = None
    ) -> Prepared[RefineResult]:
        """Boundary pixels and patches of instance masks; on the CPU."""
        pixels = self._image(image, exif)
        height, width = pixels.shape[:2]
        parsed = [self._mask(i, m, height, width) for i, m in enumerate(_listed(masks))]
        each = None if scales is None else self._asked_scales(scales, len(parsed))
        choose = self.scales if each is None else lambda *_: each
        task = InstanceTask(parsed, choose, self.instance_gate, self._assess, as_valid(valid, (height, width)))
        return self._prepared(pixels, task)

    def prepare_semantic(
        self, image: Any, label_map: Any, ignore_label: int | None = 255, *, exif: Exif = "ignore", valid: Any = None
    ) -> Prepared[SemanticResult]:
        """Boundary pixels and patches of every label; on the CPU."""
        pixels = self._image(image, exif)
        if not isinstance(label_map, SoftLabels) and np.ndim(label_map) == 3:
            size = (pixels.shape[0], pixels.shape[1])
            label_map = SoftLabels.from_array(label_map, ignore_label=ignore_label, size=size)
        soft = label_map if isinstance(label_map, SoftLabels) else None
        hard = _same_size(label_map if soft is None else soft.labels, pixels)
        labels, known = hard if soft is None else soft, as_valid(valid, pixels.shape[:2])
        return self._prepared(pixels, SemanticTask(labels, ignore_label, self.gate, self.scales.of_map, known))

    def prepare_panoptic(
        self,
        image: Any,
        segment_map: Any,
        segments_info: Sequence[dict[str, Any]],
        *,
        exif: Exif = "ignore",
        valid: Any = None,
    ) -> Prepared[PanopticResult]:
        """Boundary pixels and patches of every segment; on the CPU."""
        pixels = self._image(image, exif)
        segments = _same_size(segment_map, pixels)
        return self._prepared(
            pixels,
            PanopticTask(segments, segments_info, self.gate, self.scales.of_map, as_valid(valid, segments.shape)),
        )

    def batch_sizes(self, most: int) -> list[int]:
        """What to warm up with for batches of up to `most` patches: see `bpr_service.network.backends.batch_sizes`."""
        return batch_sizes(self.config.backend, self.device, most)

    def logits(self, crops: Any) -> Any:
        """(n, S, S, 4) uint8 crops -> (n, C, S, S) float32 logits, in the memory that the crops are in.

        The only stage that runs the network. Arrays, or tensors where pixels reside on a device: it does not wait for
        those.
        """
        return self._predict(crops)

    def predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`logits` of an array, to an array, wherever pixels reside."""
        predict = self._predict if self.resides is None else _from_host(self._predict, self.resides)
        out: NDArray[np.float32] = predict(crops)
        return out

    def _asked_scales(self, scales: Sequence[float], count: int) -> list[tuple[float, ...]]:
        """One scale for each of `count` masks."""
        if len(scales) != count:
            fix = "give each mask its scale, or none"
            raise ConfigError("scales", expected=f"{count}, one a mask", got=str(len(scales)), fix=fix)
        for scale in set(scales):
            check_scale(self.card, self.config.with_options(scale=scale))
        return [(scale,) for scale in scales]

    def _prepared(self, image: NDArray[np.uint8], task: Any) -> Prepared[Any]:
        return Prepared(
            image, task, self.config,
            model=self.model.name, device=self.runs_on, outputs=self.card.outputs, resides=self.resides,
        )  # fmt: skip

    def _image(self, image: Any, exif: Exif) -> NDArray[np.uint8]:
        if isinstance(image, bytes | str | Path):
            read = open_image(image, max_pixels=self.config.max_pixels, exif=exif)
            for line in read.warnings:
                warnings.warn(line, stacklevel=4)
            return read.pixels
        pixels = as_image(image)
        check_pixels(pixels.shape[0], pixels.shape[1], self.config.max_pixels)
        return pixels

    def _mask(self, index: int, value: Any, height: int, width: int) -> Mask:
        try:
            return as_mask(value, height, width, max_pixels=self.config.max_pixels)
        except InputError as error:
            error.args = (f"mask {index}: {error}",)
            raise


def _from_host(predict: Predict, device: str) -> Predict:
    """A function of tensors on `device` as one of arrays."""
    from bpr_service.refine.device_canvas import upload

    def there_and_back(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = predict(upload(crops, device)).contiguous().cpu().numpy()
        return out

    return there_and_back


def _listed(masks: Any) -> Iterable[Any]:
    """One mask as a list of one; a list or (N, H, W) array as it is."""
    single = isinstance(masks, Mask | Mapping | bytes | str | Path)
    if single or (isinstance(masks, np.ndarray) and masks.ndim == 2):
        return [masks]
    if not isinstance(masks, Iterable):
        raise MaskError("masks", expected="a list of masks", got=type(masks).__name__, fix="pass [mask]")
    return masks


def _same_size(label_map: Any, image: NDArray[np.uint8]) -> NDArray[Any]:
    labels = np.asarray(label_map)
    if labels.shape != image.shape[:2]:
        raise MaskError(
            "the label map is of another size than the image",
            expected=f"{image.shape[0]} x {image.shape[1]} (height x width)",
            got=" x ".join(map(str, labels.shape)) or "a single number",
            fix="scale it to the image, with nearest-neighbour",
        )
    return labels
