"""The papers' ablations by name: what `bpr-train segmenter --set` would change of a configuration."""

from __future__ import annotations

from typing import Any

ABLATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bmask, mask to boundary alone": ("mask_rcnn", "bmask", {"heads.bmask.fusion": "mask_to_boundary"}),
    "bmask, boundary to mask alone": ("mask_rcnn", "bmask", {"heads.bmask.fusion": "boundary_to_mask"}),
    "bmask, no fusion": ("mask_rcnn", "bmask", {"heads.bmask.fusion": "none"}),
    "bmask, second branch on masks": ("mask_rcnn", "bmask", {"heads.bmask.target": "mask"}),
    "bmask, Sobel": ("mask_rcnn", "bmask", {"heads.bmask.target": "sobel"}),
    "bmask, Dice alone": ("mask_rcnn", "bmask", {"heads.bmask.bce_weight": 0.0}),
    "bmask, BCE alone": ("mask_rcnn", "bmask", {"heads.bmask.dice_weight": 0.0}),
    "bmask, weighted BCE alone": (
        "mask_rcnn", "bmask", {"heads.bmask.dice_weight": 0.0, "heads.bmask.weighted": True},
    ),
    "plain, larger mask head": ("mask_rcnn", "plain", {"heads.plain.convs": 8}),
    "bsm, contraction alone": ("mask_rcnn", "bsm", {"heads.bsm.expansion": False}),
    "bsm, expansion alone": ("mask_rcnn", "bsm", {"heads.bsm.contraction": False}),
    "bsm, no target but masks": ("mask_rcnn", "bsm", {"heads.bsm.auxiliary": []}),
    "bsm, boundary targets alone": ("mask_rcnn", "bsm", {"heads.bsm.auxiliary": ["boundary"]}),
    "bsm, no boundary targets": ("mask_rcnn", "bsm", {"heads.bsm.auxiliary": ["contraction", "expansion"]}),
    "bsm, boundary by Dice alone": ("mask_rcnn", "bsm", {"heads.bsm.bce_weight": 0.0}),
    "bsm, boundary by BCE alone": ("mask_rcnn", "bsm", {"heads.bsm.dice_weight": 0.0}),
    "bsm, without P2": ("mask_rcnn", "bsm", {"heads.bsm.fine": False}),
    "bsm, fused by concatenation": ("mask_rcnn", "bsm", {"heads.bsm.fusion": "concat"}),
    "beis, 28 px": ("mask_rcnn", "beis", {"heads.beis.channels": [256, 128]}),
    "beis, 56 px": ("mask_rcnn", "beis", {"heads.beis.channels": [256, 128, 64]}),
    "beis, a fourth refinement, 224 px": ("mask_rcnn", "beis", {"heads.beis.channels": [256, 128, 64, 32, 16]}),
    "beis, pyramid alone": ("mask_rcnn", "beis", {"heads.beis.sources": "pyramid"}),
    "beis, P2 alone": ("mask_rcnn", "beis", {"heads.beis.sources": "finest"}),
    "beis, losses off": ("mask_rcnn", "beis", {"heads.beis.ibdl": False, "heads.beis.cbdl": False}),
    "beis, within images alone": ("mask_rcnn", "beis", {"heads.beis.cbdl": False}),
    "beis, across images alone": ("mask_rcnn", "beis", {"heads.beis.ibdl": False}),
    "beis, uniform sampling": ("mask_rcnn", "beis", {"heads.beis.aqs": False, "heads.beis.aks": False}),
    "b2inst, scoring alone": ("blendmask", "b2inst", {"heads.b2inst.basis": "none"}),
    "b2inst, unsupervised basis": ("blendmask", "b2inst", {"heads.b2inst.basis": "unsupervised"}),
    "b2inst, auxiliary basis": ("blendmask", "b2inst", {"heads.b2inst.basis": "auxiliary"}),
    "b2inst, basis in instances": ("blendmask", "b2inst", {"heads.b2inst.basis": "instance"}),
    "b2inst, basis by BCE alone": ("blendmask", "b2inst", {"heads.b2inst.basis_losses": ["bce"]}),
    "b2inst, basis by Dice alone": ("blendmask", "b2inst", {"heads.b2inst.basis_losses": ["dice"]}),
    "b2inst, basis by the crisp loss alone": ("blendmask", "b2inst", {"heads.b2inst.basis_losses": ["crisp"]}),
    "b2inst, basis as a signed map": ("blendmask", "b2inst", {"heads.b2inst.basis_form": "signed"}),
    "b2inst, mask scores alone": ("blendmask", "b2inst", {"heads.b2inst.scoring": "mask"}),
    "b2inst, boundary scores alone": ("blendmask", "b2inst", {"heads.b2inst.scoring": "boundary"}),
    "b2inst, no scoring": ("blendmask", "b2inst", {"heads.b2inst.scoring": "none"}),
}  # fmt: skip
"""Name -> architecture, head, and the settings that differ from the head's own; all those of ``b2inst`` go with
``yolact``, too."""
