"""What the weights of other trainers are called here, and how they must be turned to mean the same.

Known: torchvision's detectors (Mask R-CNN, FCOS, RetinaNet), detectron2's Mask R-CNN and BMask R-CNN, timm's and
torchvision's backbones, and EfficientNet-Lite0 as `efficientnet-lite-pytorch` has it. A rule is a pattern of a foreign
name and the name that it has in our detector, without the prefix that the architecture gives it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Source = Literal["torchvision", "detectron2", "timm", "efficientnet", "ours"]
Rules = Sequence[tuple[str, Callable[[re.Match[str]], str]]]

HEAD = "detector.roi_heads.head."
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "mask_rcnn": {"BODY": ("detector.backbone.body",), "FPN": ("detector.backbone.fpn",)},
    "blendmask": {"BODY": ("detector.backbone.body",), "FPN": ("detector.backbone.fpn",)},
    "yolact": {"BODY": ("pyramid.body",), "FPN": ("pyramid.fpn",)},
    "deeplabv3plus": {"BODY": ("model.encoder.model",)},
    "refiner": {"BODY": ("encoder.model", "encoder")},
}
"""Where an architecture has its backbone and its feature pyramid; ``refiner``: any refinement network."""
BRANCHES = {
    "MASK_TOWER": tuple(HEAD + name for name in ("tower", "mask_tower")),
    "MASK_PREDICTOR": tuple(HEAD + name for name in ("predictor", "mask_predictor", "predictors.mask")),
}
"""What the heads call their mask branch: a plain one's weights start the mask branch of all."""

TORCHVISION: Rules = (
    (r"backbone\.body\.(.+)", lambda m: f"BODY.{m[1]}"),
    (r"backbone\.fpn\.(\w+_blocks\.\d+)\.(weight|bias)", lambda m: f"FPN.{m[1]}.0.{m[2]}"),  # torchvision < 0.13
    (r"backbone\.fpn\.(.+)", lambda m: f"FPN.{m[1]}"),
    (r"rpn\.head\.conv\.(weight|bias)", lambda m: f"detector.rpn.head.conv.0.0.{m[1]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", lambda m: f"MASK_TOWER.{2 * int(m[1]) - 2}.{m[2]}"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", lambda m: f"MASK_TOWER.{2 * int(m[1])}.{m[2]}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", lambda m: f"MASK_PREDICTOR.up.{m[1]}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", lambda m: f"MASK_PREDICTOR.logits.{m[1]}"),
    (r"((?:rpn|roi_heads|head)\..+)", lambda m: f"detector.{m[1]}"),
)
_RES = r"backbone\.bottom_up\.res(\d)\.(\d+)\."
_HEAD = r"roi_heads\.mask_head\."
DETECTRON2: Rules = (
    (r"backbone\.bottom_up\.stem\.conv1\.weight", lambda m: "BODY.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", lambda m: f"BODY.bn1.{m[1]}"),
    (_RES + r"conv(\d)\.weight", lambda m: f"BODY.layer{int(m[1]) - 1}.{m[2]}.conv{m[3]}.weight"),
    (_RES + r"conv(\d)\.norm\.(\w+)", lambda m: f"BODY.layer{int(m[1]) - 1}.{m[2]}.bn{m[3]}.{m[4]}"),
    (_RES + r"shortcut\.weight", lambda m: f"BODY.layer{int(m[1]) - 1}.{m[2]}.downsample.0.weight"),
    (_RES + r"shortcut\.norm\.(\w+)", lambda m: f"BODY.layer{int(m[1]) - 1}.{m[2]}.downsample.1.{m[3]}"),
    (r"backbone\.fpn_lateral(\d)\.(\w+)", lambda m: f"FPN.inner_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"backbone\.fpn_output(\d)\.(\w+)", lambda m: f"FPN.layer_blocks.{int(m[1]) - 2}.0.{m[2]}"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", lambda m: f"detector.rpn.head.conv.0.0.{m[1]}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", lambda m: f"detector.rpn.head.cls_logits.{m[1]}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", lambda m: f"detector.rpn.head.bbox_pred.{m[1]}"),
    (r"roi_heads\.box_head\.fc(\d)\.(\w+)", lambda m: f"detector.roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (r"(roi_heads\.box_predictor\.\w+\.\w+)", lambda m: f"detector.{m[1]}"),
    (_HEAD + r"mask_fcn(\d)\.(\w+)", lambda m: f"MASK_TOWER.{2 * int(m[1]) - 2}.{m[2]}"),
    (_HEAD + r"(?:mask_)?deconv\.(\w+)", lambda m: f"MASK_PREDICTOR.up.{m[1]}"),
    (_HEAD + r"(?:mask_)?predictor\.(\w+)", lambda m: f"MASK_PREDICTOR.logits.{m[1]}"),
    (_HEAD + r"boundary_fcn(\d)\.(\w+)", lambda m: f"{HEAD}boundary_tower.{2 * int(m[1]) - 2}.{m[2]}"),
    (_HEAD + r"boundary_deconv\.(\w+)", lambda m: f"{HEAD}boundary_predictor.up.{m[1]}"),
    (_HEAD + r"boundary_predictor\.(\w+)", lambda m: f"{HEAD}boundary_predictor.logits.{m[1]}"),
    (_HEAD + r"downsample\.(\w+)", lambda m: f"{HEAD}downsample.0.{m[1]}"),
    (_HEAD + r"mask_final_fusion\.(\w+)", lambda m: f"{HEAD}fusion.0.{m[1]}"),
    (_HEAD + r"((?:mask_to_boundary|boundary_to_mask)\.\w+)", lambda m: f"{HEAD}{m[1]}"),
)
TIMM: Rules = ((r"(.+)", lambda m: f"BODY.{m[1]}"),)
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of EfficientNet-B0 and Lite0 (Tan and Le, ICML 2019, Table 1)."""
_PARTS = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2", "project_conv": "conv_pwl",
          "bn2": "bn3"}  # fmt: skip
_FIRST_PARTS = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}


def _block(m: re.Match[str]) -> str:
    """Blocks are numbered through there, by stage in timm; those of the first stage do not expand."""
    stage, block = 0, int(m[1])
    while stage < len(LITE0_BLOCKS) - 1 and block >= LITE0_BLOCKS[stage]:
        block -= LITE0_BLOCKS[stage]
        stage += 1
    parts = _PARTS if stage else _FIRST_PARTS
    return f"BODY.blocks.{stage}.{block}.{parts.get(m[2], m[2])}.{m[3]}"


EFFICIENTNET: Rules = (
    (r"_conv_stem\.(\w+)", lambda m: f"BODY.conv_stem.{m[1]}"),
    (r"_bn0\.(\w+)", lambda m: f"BODY.bn1.{m[1]}"),
    (r"_blocks\.(\d+)\._(\w+)\.(\w+)", _block),
)
OURS: Rules = (
    (rf"{re.escape(HEAD)}(?:mask_)?tower\.(.+)", lambda m: f"MASK_TOWER.{m[1]}"),
    (rf"{re.escape(HEAD)}(?:(?:mask_)?predictor|predictors\.mask)\.(.+)", lambda m: f"MASK_PREDICTOR.{m[1]}"),
    (r"(?:detector\.backbone|pyramid)\.body\.(.+)", lambda m: f"BODY.{m[1]}"),
    (r"(?:detector\.backbone|pyramid)\.fpn\.(.+)", lambda m: f"FPN.{m[1]}"),
    (r"model\.encoder\.model\.(.+)", lambda m: f"BODY.{m[1]}"),
    (r"(.+)", lambda m: m[1]),
)
RULES: dict[Source, Rules] = {
    "torchvision": TORCHVISION,
    "detectron2": DETECTRON2,
    "timm": TIMM,
    "efficientnet": EFFICIENTNET,
    "ours": OURS,
}


def source_of(names: Sequence[str]) -> Source:
    """Whose names these are."""
    if any(name.startswith(("backbone.bottom_up.", "proposal_generator.")) for name in names):
        return "detectron2"
    if any(name.startswith("_conv_stem.") for name in names):
        return "efficientnet"
    return "torchvision" if any(name.startswith("backbone.") for name in names) else "timm"


def our_names(name: str, source: Source, arch: str, levels: int) -> Iterator[str]:
    """What a foreign weight may be called in one of our models, likeliest first.

    Args:
        name: of the foreign weight.
        source: whose it is.
        arch: of our model.
        levels: of the foreign pyramid's laterals: 4 from stride 4 on, 3 from stride 8 on.
    """
    for pattern, rename in RULES[source]:
        found = re.fullmatch(pattern, name)
        if found is not None:
            word, _, rest = rename(found).partition(".")
            if word == "FPN":
                rest = _level(rest, levels - (4 if arch == "mask_rcnn" else 3))
            places = BRANCHES.get(word) or PLACES[arch].get(word, () if word in ("BODY", "FPN") else (word,))
            yield from (f"{place}.{rest}" for place in places)
            break
    if source == "timm":  # a feature extractor joins the first two parts of a name
        yield from (f"{body}.{name.replace('.', '_', 1)}" for body in PLACES[arch]["BODY"])


def _level(name: str, down: int) -> str:
    """The same stride's block in a pyramid that begins ``down`` levels later."""
    return re.sub(r"(_blocks\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) - down}", name)


def turned(state: Mapping[str, Tensor], std: Sequence[float]) -> dict[str, Tensor]:
    """Detectron2's weights so that they mean the same here.

    Its classes put the background last, and have no box of it; its images are BGR from 0 to 255, of which only the
    mean is taken. That the stride lies in a block's first convolution is for `BackboneConfig.stride_in_1x1` to say.

    Args:
        state: by name; of detectron2.
        std: of the RGB channels in [0, 1], as this model's input is normalised.
    """
    result = dict(state)
    for name, tensor in state.items():
        if re.fullmatch(r"roi_heads\.box_predictor\.cls_score\.\w+", name):
            result[name] = torch.cat([tensor[-1:], tensor[:-1]])
        elif re.fullmatch(r"roi_heads\.box_predictor\.bbox_pred\.\w+", name):
            result[name] = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        elif re.fullmatch(r"roi_heads\.mask_head\.(mask_|boundary_)?predictor\.\w+", name):
            result[name] = torch.cat([torch.zeros_like(tensor[:1]), tensor])
        elif name == "backbone.bottom_up.stem.conv1.weight":
            result[name] = tensor.flip(1) * (255 * torch.tensor(std, dtype=tensor.dtype))[:, None, None]
    return result
