"""Weights to start a training from: a file of another trainer, a backbone's file, or another run; with a report.

Nothing in a file is run as code. What fits by name and shape is taken; the rest stays as it was drawn, and the report
says what and why. A file of which no layer of the backbone fits is an error: it is of another architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bpr_service import storage
from bpr_service.errors import ConfigError, ModelError
from bpr_service.network.normalise import IMAGE_STD
from bpr_service.network.registry import CHANNELS
from refiner_training.run.checkpoint import weights_of
from refiner_training.run.weight_names import PLACES, Source, our_names, source_of, turned

COCO_LABELS = 91
"""Classes of models trained on COCO's own category ids, 1 to 90 with ten that are no class, and the background."""
NAMED = 8  # names that a message tells


@dataclass(frozen=True)
class WeightsReport:
    """What became of every weight.

    Attributes:
        file: where they are from, and whose names they have.
        loaded: our names of those taken.
        differing: our names of those that were found but do not fit, and why.
        unused: names in the file that nothing here is called.
        fresh: our names of those that the file does not have.
    """

    file: str
    source: Source
    loaded: tuple[str, ...]
    differing: dict[str, str]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"weights of {self.file} ({self.source}): {len(self.loaded)} tensors taken"]
        lines += [f"  does not fit, left as drawn: {name}: {why}" for name, why in self.differing.items()]
        for title, names in (("not in the file, left as drawn", self.fresh), ("in the file, not used", self.unused)):
            if names:
                more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
                lines.append(f"  {title}: {len(names)}: {', '.join(names[:NAMED])}{more}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Keep it beside the run's checkpoints."""
        storage.write_bytes(path, json.dumps(asdict(self), indent=1).encode())


def load_weights(
    model: nn.Module, file: Path, arch: str, *, std: Sequence[float] = IMAGE_STD, class_ids: Sequence[int] = ()
) -> WeightsReport:
    """Put into a fresh model what a file has for it.

    Args:
        model: the fresh one, changed in place.
        file: ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors``; or a run's folder, of which it takes
            ``best.ckpt``, else ``last.ckpt``.
        arch: of the model.
        std: of the RGB channels in [0, 1], as the model's input is normalised; of detectron2's weights alone.
        class_ids: category ids of the model's labels; a model trained on COCO's ids 1 to 90 gives its rows of them to
            one trained on the 80 categories.

    Raises:
        ModelError: no such file, one that is damaged or holds code, or one of another architecture.
    """
    found, source = read_weights(file)
    names, tensors = sorted(found), dict(found)
    if source == "detectron2":
        tensors = turned(tensors, std)
    ours = _unique(model.state_dict())
    levels = 4 if source == "detectron2" or any("inner_blocks.3." in name for name in names) else 3
    taken: dict[str, Tensor] = {}
    differing: dict[str, str] = {}
    unused = []
    for name in names:
        target = next((each for each in our_names(name, source, arch, levels) if each in ours), None)
        if target is None:
            unused.append(name)
            continue
        tensor = _rows(tensors[name], ours[target], class_ids)
        if arch == "refiner":
            tensor = _with_mask(tensor, ours[target])
        why = _misfit(tensor, ours[target], target, ours, name, found)
        if why is None:
            taken[target] = tensor
        else:
            differing[target] = why
    body = [name for name in ours if name.startswith(PLACES[arch]["BODY"]) and not _counter(name)]
    if not any(name in taken for name in body):
        got = f"{source} names as {', '.join(names[:3])}; {len(taken)} of {len(names)} fit"
        if differing:
            name, why = next(iter(differing.items()))
            got += f"; {name}: {why}"
        raise ModelError(
            f"{file} is of another architecture",
            expected=f"weights of a {arch} or of its backbone, as {', '.join(body[:2])}",
            got=got,
            fix="set model.backbone to the one that the file is of",
        )
    model.load_state_dict(taken, strict=False)
    fresh = tuple(n for n in ours if n not in taken and n not in differing and not _counter(n))
    return WeightsReport(str(file), source, tuple(taken), differing, tuple(unused), fresh)


def load_encoder(network: nn.Module, name: str, file: Path) -> WeightsReport:
    """Put a pretrained encoder's weights into a fresh refinement network: all of them, or none is of use.

    The first convolution's filters of RGB are the file's; those of the mask channel stay as they were drawn.

    Args:
        network: of `bpr_service.network.registry`, changed in place.
        name: what it is called there.
        file: as `load_weights` reads it; a classifier's own layers are left out, and reported.

    Raises:
        ConfigError: the network has no encoder that others train.
        ModelError: see :func:`load_weights`; or not every layer of the encoder is in the file.
    """
    if not any(each.startswith("encoder.") for each in network.state_dict()):
        raise ConfigError(
            f"network.encoder_weights {file}",
            expected="a network with an encoder of timm or segmentation-models-pytorch",
            got=f"{name}, which has none",
            fix="set network.name to another network, as fcn_resnet50, or leave network.encoder_weights out",
        )
    report = load_weights(network, file, "refiner")
    lacking = [each for each in (*report.differing, *report.fresh) if each.startswith("encoder.")]
    if lacking:
        why = report.differing.get(lacking[0], "not in the file")
        raise ModelError(
            f"network.encoder_weights {file} is of another network",
            expected=f"every layer of the encoder of {name}",
            got=f"{len(report.loaded)} that fit and {len(lacking)} that do not; {lacking[0]}: {why}",
            fix="set network.name to the network that the file is of, or give another file",
        )
    return report


def read_weights(file: Path) -> tuple[dict[str, Tensor], Source]:
    """The tensors of a file by name, and whose names they are; plain tensors only are read, never code.

    Raises:
        ModelError: see :func:`load_weights`.
    """
    if file.is_dir():
        kept = [file / name for name in ("best.ckpt", "last.ckpt") if (file / name).is_file()]
        if not kept:
            raise ModelError(str(file), expected="a run's folder with a checkpoint", got="none", fix="check the path")
        file = kept[0]
    if not file.is_file():
        raise ModelError(str(file), expected="a file of weights", got="no file", fix="check the path")
    try:
        content: Any
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises whatever its unpickler meets
        got, fix = f"{type(cause).__name__}: {cause}"[:200], "save the bare state dict with torch.save or safetensors"
        raise ModelError(str(file), expected="tensors by name, and nothing to run", got=got, fix=fix) from cause
    if isinstance(content, dict) and "trained" in content:
        if content["trained"].get("kind") != "segmenter":
            got = f"one of a {content['trained'].get('kind')}"
            raise ModelError(str(file), expected="a checkpoint of a segmenter", got=got, fix="give another file")
        return weights_of(content), "ours"
    for key in ("model", "state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ModelError(str(file), expected="tensors by name", got=type(content).__name__, fix="give another file")
    return tensors, source_of(sorted(tensors))


def _unique(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once: a module that two others hold has two names."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in state.items():
        if tensor.numel() == 0 or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def _rows(tensor: Tensor, wanted: Tensor, class_ids: Sequence[int]) -> Tensor:
    """COCO's 80 categories out of a layer with a row (or four) for each id from 0 to 90."""
    coco = len(class_ids) == 80 and max(class_ids) == COCO_LABELS - 1
    if not coco or tensor.ndim != wanted.ndim or tensor.shape[1:] != wanted.shape[1:]:
        return tensor
    for each in (1, 4):
        if tensor.shape[0] == each * COCO_LABELS and wanted.shape[0] == each * (len(class_ids) + 1):
            return tensor.reshape(COCO_LABELS, each, *tensor.shape[1:])[[0, *class_ids]].flatten(0, 1)
    return tensor


def _with_mask(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A first convolution of RGB with the filters of the mask channel as they were drawn."""
    rgb = wanted[:, :3] if wanted.ndim == 4 and wanted.shape[1] == CHANNELS else wanted
    return torch.cat([tensor, wanted[:, 3:]], 1) if rgb is not wanted and tensor.shape == rgb.shape else tensor


def _misfit(
    tensor: Tensor,
    wanted: Tensor,
    target: str,
    ours: Mapping[str, Tensor],
    name: str,
    theirs: Mapping[str, Tensor],
) -> str | None:
    if tensor.shape != wanted.shape:
        return f"{tuple(tensor.shape)} in the file, {tuple(wanted.shape)} here"
    stem = target.rpartition(".")[0]
    normed = name.rpartition(".")[0] + ".running_var" in theirs
    if normed != (f"{stem}.running_var" in ours):
        return "of another kind of norm"
    return None


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
