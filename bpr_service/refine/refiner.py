"""`Refiner`: Boundary Patch Refinement of one image (Tang et al., CVPR 2021; Hu et al., IJCV 2022).

Letters: H, W are the image's size, px; P patches, S ``network_size_px``, C output maps.

``image, masks -> boundary pixels -> patches (P, 4) -> crops (P, S, S, 4) -> network (P, C, S, S) ->
reassembly -> masks``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bpr_service.config import PRESETS, RefineConfig, build
from bpr_service.errors import ConfigError, InputError, MaskError, UnknownName
from bpr_service.masks.images import as_image, check_pixels, read_image
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.network.backends import Forward, label, open_backend, settle
from bpr_service.network.devices import resolve_device
from bpr_service.network.normalise import normalise
from bpr_service.network.registry import NETWORKS
from bpr_service.network.weights import LoadedModel, ModelCard, bundled_models, load_model, read_int8
from bpr_service.refine.gate import CertaintyGate
from bpr_service.refine.prepared import Prepared
from bpr_service.refine.reassemble import Gate
from bpr_service.refine.resident import upload
from bpr_service.refine.tasks import (
    InstanceTask,
    MaskReport,
    PanopticResult,
    PanopticTask,
    RefineResult,
    Run,
    SemanticResult,
    SemanticTask,
)

__all__ = ["MaskReport", "PanopticResult", "Prepared", "RefineResult", "Refiner", "SemanticResult"]

R = TypeVar("R", bound=Run)


class Refiner:
    """Coarse masks in, exact masks out. Make one with :meth:`load` and keep it: loading is the slow part."""

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        config: RefineConfig,
        *,
        device: str = "cpu",
        gate: Gate | None = None,
        folder: Path | None = None,
    ) -> None:
        """From a network in memory. `gate` decides, mask by mask, whether the refined one is taken;
        without one, the model's card says for instances (unless ``config.gate`` is off). `folder` is the
        version's, where its quantised network lies.
        """
        spec = NETWORKS.get(card.network.name)
        size = config.patch.network_size_px
        if spec is not None and size % spec.multiple_px:
            raise ConfigError(
                f"network_size_px for {card.network.name}",
                expected=f"a multiple of {spec.multiple_px}",
                got=str(size),
                fix=f"use {-(-size // spec.multiple_px) * spec.multiple_px}",
            )
        self.device = resolve_device(device)
        config = settle(config, card, self.device)
        self.card, self.config = card, config
        self.gate = gate if config.gate else None
        # Labels that compete for pixels hold each other in check: the card's rule is measured on, and for, instances.
        certainty = CertaintyGate(card.gate) if config.gate and card.gate > 0 else None
        self.instance_gate = self.gate or certainty
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)
        # Squares of one size are cut and averaged on an accelerator; boxes of many sizes, before and after it.
        self.resident = self.device.type == "cuda" and config.patch.scheme != "instance"
        self.forward = self._open(folder)

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

        Parameters
        ----------
        preset_or_model : ``fast``, ``lean``, ``balanced``, ``best``, the name of a bundled model, or a folder
        device : ``cpu``, ``cuda`` or ``cuda:N``; never another one than asked for
        model : another model version for the preset's settings
        overrides : fields of `RefineConfig` or `PatchConfig`

        Raises
        ------
        UnknownName, ConfigError, ModelError, DeviceError
        """
        resolve_device(device)  # before the weights are read
        name = str(preset_or_model)
        preset = PRESETS.get(name)
        if preset is None and not Path(name).is_dir() and name not in bundled_models():
            raise UnknownName("preset or model", name, [*PRESETS, *bundled_models()])
        loaded: LoadedModel = load_model(model if model is not None else preset.model if preset else name)
        patch = preset.patch(loaded.card.patch) if preset else loaded.card.patch
        config = build(RefineConfig, {"patch": patch.model_dump(), **overrides})
        return cls(loaded.network, loaded.card, config, device=device, folder=loaded.folder)

    def _open(self, folder: Path | None) -> Forward:
        """The network as a function of patches on the device."""
        backend, precision = self.config.backend, self.config.precision
        int8 = read_int8(folder, self.card) if precision == "int8" else None
        size = self.config.patch.network_size_px
        return open_backend(backend, precision, self.network, self.device, size, int8)

    @property
    def model(self) -> str:
        """Name and version of the model."""
        return f"{self.card.name}@{self.card.version}"

    @property
    def runs_on(self) -> str:
        """What every answer names: the device, and backend and precision where they are not the usual ones."""
        return label(self.device, self.config.backend, self.config.precision)

    # ---- the whole operation -------------------------------------------------------------------------------

    def refine(self, image: Any, masks: Any) -> RefineResult:
        """Refine instance masks: they may overlap, and each keeps its place in the list.

        Parameters
        ----------
        image : (H, W, 3) uint8 RGB array, or whatever `as_image` takes, or a file
        masks : a list of what `as_mask` takes (Mask, array, RLE, polygons, PNG), an (N, H, W) array, or one
            mask

        Raises :class:`ImageError`, :class:`MaskError` (with the mask's number), :class:`LimitError`.
        """
        return self._run(self.prepare(image, masks))

    def refine_semantic(self, image: Any, label_map: Any, ignore_label: int | None = 255) -> SemanticResult:
        """Refine every label of an (H, W) map; pixels of `ignore_label` stay as they are and it never
        spreads.
        """
        return self._run(self.prepare_semantic(image, label_map, ignore_label))

    def refine_panoptic(self, image: Any, segment_map: Any, segments_info: Sequence[dict[str, Any]]) -> PanopticResult:
        """Refine every segment of an (H, W) id map, things and stuff together; 0 is void and stays void."""
        return self._run(self.prepare_panoptic(image, segment_map, segments_info))

    def _run(self, prepared: Prepared[R]) -> R:
        if self.resident:
            prepared.reside(self.device)
        for start in range(0, prepared.n_patches, self.config.batch_size):
            crops = prepared.crops(start, start + self.config.batch_size)
            with prepared.timed("network"):
                logits = self.predict(crops) if isinstance(crops, np.ndarray) else self.logits(crops)
            prepared.add(start, logits)
        return prepared.finish()

    # ---- its stages, for an engine that batches across images ----------------------------------------------

    def prepare(self, image: Any, masks: Any) -> Prepared[RefineResult]:
        """Boundary pixels and patches of instance masks; on the CPU."""
        pixels = self._image(image)
        height, width = pixels.shape[:2]
        parsed = [self._mask(i, m, height, width) for i, m in enumerate(_listed(masks))]
        return self._prepared(pixels, InstanceTask(parsed, self.instance_gate))

    def prepare_semantic(self, image: Any, label_map: Any, ignore_label: int | None = 255) -> Prepared[SemanticResult]:
        """Boundary pixels and patches of every label; on the CPU."""
        pixels = self._image(image)
        return self._prepared(pixels, SemanticTask(_same_size(label_map, pixels), ignore_label, self.gate))

    def prepare_panoptic(
        self, image: Any, segment_map: Any, segments_info: Sequence[dict[str, Any]]
    ) -> Prepared[PanopticResult]:
        """Boundary pixels and patches of every segment; on the CPU."""
        pixels = self._image(image)
        return self._prepared(pixels, PanopticTask(_same_size(segment_map, pixels), segments_info, self.gate))

    def predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, S, S, 4) uint8 crops -> (n, C, S, S) float32 logits: the only stage that touches the device."""
        if crops.shape[0] == 0:
            return np.empty((0, self.card.outputs, *crops.shape[1:3]), np.float32)
        out: NDArray[np.float32] = self.logits(upload(crops, self.device)).contiguous().cpu().numpy()
        return out

    def logits(self, crops: torch.Tensor) -> torch.Tensor:
        """`predict` of a tensor on the device, to a tensor there; does not wait for it."""
        with torch.inference_mode():
            patches = normalise(crops)
            logits = self.forward(patches)
            if self.config.flip:
                logits = (logits + self.forward(patches.flip(3)).flip(3)) / 2
            return logits.float()

    def _prepared(self, image: NDArray[np.uint8], task: Any) -> Prepared[Any]:
        return Prepared(image, task, self.config, model=self.model, device=self.runs_on, outputs=self.card.outputs)

    def _image(self, image: Any) -> NDArray[np.uint8]:
        if isinstance(image, bytes | str | Path):
            return read_image(image, max_pixels=self.config.max_pixels)
        pixels = as_image(image)
        check_pixels(pixels.shape[0], pixels.shape[1], self.config.max_pixels)
        return pixels

    def _mask(self, index: int, value: Any, height: int, width: int) -> Mask:
        try:
            return as_mask(value, height, width, max_pixels=self.config.max_pixels)
        except InputError as error:
            error.args = (f"mask {index}: {error}",)
            raise


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
