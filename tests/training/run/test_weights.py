"""Weights from elsewhere: taken where they mean the same, reported where not, refused where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision.models.detection import FCOS, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from bpr_service.errors import ConfigError, ModelError
from bpr_service.network.registry import build_network
from refiner_training.run.segmenter import load_segmenter, train_segmenter
from refiner_training.run.weight_names import turned
from refiner_training.run.weights import load_encoder, load_weights, read_weights
from refiner_training.segmenters.registry import build_segmenter

STD = (0.229, 0.224, 0.225)
RESNET = {"model.backbone.name": "resnet18", "model.backbone.fpn_channels": 64}
NARROW = {"heads.plain.channels": 256, "heads.bmask.channels": 256, "heads.bsm.channels": 256}
FULL = {"model.backbone.name": "resnet18", "model.backbone.fpn_channels": 256, **NARROW}


def torchvision_mask_rcnn(classes: int = 3) -> MaskRCNN:
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    torch.manual_seed(1)
    model = MaskRCNN(
        backbone, classes, min_size=96, max_size=128, box_score_thresh=0.3, box_detections_per_img=10,
        rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=50,
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.1, 0.1)
    return model.eval()


def kept(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_a_torchvision_mask_rcnn_predicts_here_what_it_predicts_there(configure: Any, tmp_path: Path) -> None:
    theirs = torchvision_mask_rcnn()
    config = configure(
        "mask_rcnn",
        **FULL,
        **{"model.mask_rcnn.box_hidden": 1024, "model.mask_rcnn.score_threshold": 0.3},
    )
    ours: Any = build_segmenter("mask_rcnn", "plain", config).eval()
    report = load_weights(ours, kept(theirs.state_dict(), tmp_path / "t.pth"), "mask_rcnn", std=STD)
    assert (report.source, report.differing, report.fresh, report.unused) == ("torchvision", {}, (), ())
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        found, wanted = ours([image])[0], theirs([image])[0]
    assert len(wanted["boxes"]) > 0
    torch.testing.assert_close(found.boxes, wanted["boxes"], atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(found.scores, wanted["scores"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("head", "tower"), [("bmask", "mask_tower"), ("bsm", "mask_tower")])
def test_a_plain_mask_branch_starts_that_of_every_head(head: str, tower: str, configure: Any, tmp_path: Path) -> None:
    theirs = torchvision_mask_rcnn().state_dict()
    model = build_segmenter("mask_rcnn", head, configure("mask_rcnn", **FULL, **{"model.mask_rcnn.box_hidden": 1024}))
    report = load_weights(model, kept(theirs, tmp_path / "t.pth"), "mask_rcnn", std=STD)
    state = model.state_dict()
    assert torch.equal(state[f"head.{tower}.6.weight"], theirs["roi_heads.mask_head.3.0.weight"])
    assert any("boundary" in name for name in report.fresh)


def test_fcos_and_retinanet(configure: Any, tmp_path: Path) -> None:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    fcos, retina = FCOS(backbone, 3).state_dict(), RetinaNet(backbone, 3).state_dict()
    blend = build_segmenter("blendmask", "plain", configure("blendmask", **FULL))
    report = load_weights(blend, kept(fcos, tmp_path / "f.pth"), "blendmask", std=STD)
    assert torch.equal(
        blend.state_dict()["detector.head.regression_head.conv.0.weight"], fcos["head.regression_head.conv.0.weight"]
    )
    assert all("attention" in name or name.startswith("basis.") for name in report.fresh)
    yolact = build_segmenter("yolact", "plain", configure("yolact", **FULL))
    report = load_weights(yolact, kept(retina, tmp_path / "r.pth"), "yolact", std=STD)
    assert torch.equal(
        yolact.state_dict()["pyramid.fpn.inner_blocks.2.0.weight"], retina["backbone.fpn.inner_blocks.2.0.weight"]
    )
    assert any(name.startswith("head.classification_head") for name in report.unused)


def test_levels_of_another_pyramid_are_matched_by_stride(configure: Any, tmp_path: Path) -> None:
    theirs = torchvision_mask_rcnn().state_dict()
    yolact = build_segmenter("yolact", "plain", configure("yolact", **FULL))
    load_weights(yolact, kept(theirs, tmp_path / "t.pth"), "yolact", std=STD)
    state = yolact.state_dict()
    for ours, level in ((0, 1), (2, 3)):  # P3 and P5
        name = "pyramid.fpn.layer_blocks.{}.0.weight"
        assert torch.equal(state[name.format(ours)], theirs[f"backbone.fpn.layer_blocks.{level}.0.weight"])


def detectron2_state(classes: int) -> dict[str, torch.Tensor]:
    """The names of a BMask R-CNN of detectron2 on a ResNet-50, with a number of its own in each."""
    state: dict[str, torch.Tensor] = {"backbone.bottom_up.stem.conv1.weight": torch.randn(64, 3, 7, 7)}
    state |= {f"backbone.bottom_up.stem.conv1.norm.{n}": torch.rand(64) for n in ("weight", "bias", "running_mean",
                                                                                "running_var")}  # fmt: skip
    state["backbone.bottom_up.res3.0.conv2.weight"] = torch.randn(128, 128, 3, 3)
    state["backbone.bottom_up.res3.0.shortcut.weight"] = torch.randn(512, 256, 1, 1)
    state["backbone.fpn_lateral3.weight"] = torch.randn(256, 512, 1, 1)
    state["proposal_generator.rpn_head.conv.weight"] = torch.randn(256, 256, 3, 3)
    state["roi_heads.box_predictor.cls_score.weight"] = torch.arange(classes + 1.0)[:, None].expand(-1, 32).clone()
    state["roi_heads.box_predictor.bbox_pred.weight"] = torch.arange(4.0 * classes)[:, None].expand(-1, 32).clone()
    for name in ("mask_fcn1", "boundary_fcn2", "downsample", "mask_final_fusion"):
        state[f"roi_heads.mask_head.{name}.weight"] = torch.randn(256, 256, 3, 3)
    state["roi_heads.mask_head.mask_deconv.weight"] = torch.randn(256, 256, 2, 2)
    state["roi_heads.mask_head.boundary_predictor.weight"] = torch.randn(classes, 256, 1, 1)
    return state


def test_detectron2s_bmask(configure: Any, tmp_path: Path) -> None:
    theirs = detectron2_state(2)
    options = {"model.backbone.name": "resnet50", "model.backbone.stride_in_1x1": True, **NARROW}
    config = configure("mask_rcnn", **options, **{"model.backbone.fpn_channels": 256})
    model = build_segmenter("mask_rcnn", "bmask", config)
    report = load_weights(model, kept({"model": theirs}, tmp_path / "d.pth"), "mask_rcnn", std=STD)
    assert (report.source, report.unused, report.differing) == ("detectron2", (), {})
    state = model.state_dict()
    pairs = {
        "detector.backbone.body.layer2.0.conv2.weight": "backbone.bottom_up.res3.0.conv2.weight",
        "detector.backbone.body.layer2.0.downsample.0.weight": "backbone.bottom_up.res3.0.shortcut.weight",
        "detector.backbone.fpn.inner_blocks.1.0.weight": "backbone.fpn_lateral3.weight",
        "detector.rpn.head.conv.0.0.weight": "proposal_generator.rpn_head.conv.weight",
        "head.boundary_tower.2.weight": "roi_heads.mask_head.boundary_fcn2.weight",
        "head.fusion.0.weight": "roi_heads.mask_head.mask_final_fusion.weight",
        "head.mask_predictor.up.weight": "roi_heads.mask_head.mask_deconv.weight",
    }
    for ours, name in pairs.items():
        assert torch.equal(state[ours], theirs[name]), ours
    scores = state["detector.roi_heads.box_predictor.cls_score.weight"]
    assert scores[:, 0].tolist() == [2.0, 0.0, 1.0], "the background comes first here"
    assert state["detector.roi_heads.box_predictor.bbox_pred.weight"][:, 0].tolist() == [0, 0, 0, 0, *range(8)]
    assert torch.equal(
        state["head.boundary_predictor.logits.weight"][1:], theirs["roi_heads.mask_head.boundary_predictor.weight"]
    )
    block: Any = model.detector.backbone.body.layer2[0]  # type: ignore
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_the_first_layer_sees_what_it_saw_in_detectron2() -> None:
    weight = torch.randn(8, 3, 7, 7)
    ours = turned({"backbone.bottom_up.stem.conv1.weight": weight}, STD)["backbone.bottom_up.stem.conv1.weight"]
    rgb = torch.rand(1, 3, 16, 16)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), STD))
    bgr = (255 * (rgb - mean)).flip(1)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(conv((rgb - mean) / std, ours), conv(bgr, weight), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_backbones_file(suffix: str, configure: Any, tmp_path: Path) -> None:
    theirs = timm.create_model("resnet10t").state_dict()
    path = tmp_path / f"b.{suffix}"
    if suffix == "pth":
        torch.save(theirs, path)
    else:
        from safetensors.torch import save_file

        save_file(theirs, path)
    for arch, place in (("deeplabv3plus", "model.encoder.model."), ("blendmask", "detector.backbone.body.")):
        model = build_segmenter(arch, "plain", configure(arch))
        report = load_weights(model, path, arch, std=STD)
        assert report.unused == ("fc.bias", "fc.weight")
        assert torch.equal(model.state_dict()[place + "layer4.0.conv2.weight"], theirs["layer4.0.conv2.weight"])


def test_a_transformers_names_are_joined(configure: Any, tmp_path: Path) -> None:
    theirs = timm.create_model("convnext_atto").state_dict()
    model = build_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **{"model.backbone.name": "convnext_atto"}))
    report = load_weights(model, kept(theirs, tmp_path / "c.pth"), "mask_rcnn", std=STD)
    assert not [name for name in report.fresh if ".body." in name]


def test_another_run_starts_one_with_other_classes(configure: Any, tmp_path: Path) -> None:
    train_segmenter("mask_rcnn", "plain", configure("mask_rcnn"), tmp_path / "first", progress="none")
    one = configure("mask_rcnn", **{"data.classes": "agnostic", "data.num_classes": 1, "optim.lr": 1e-12,
                                    "model.weights": str(tmp_path / "first")})  # fmt: skip
    train_segmenter("mask_rcnn", "bmask", one, tmp_path / "second", progress="none")
    before, after = (load_segmenter(tmp_path / run / "last.ckpt")[0].state_dict() for run in ("first", "second"))
    for same in ("detector.rpn.head.bbox_pred.weight", "detector.backbone.fpn.layer_blocks.0.0.weight"):
        torch.testing.assert_close(after[same], before[same])
    torch.testing.assert_close(after["head.mask_tower.0.weight"], before["head.tower.0.weight"])
    report = json.loads((tmp_path / "second" / "weights.json").read_text())
    assert report["source"] == "ours"
    assert (
        "(3, 32) in the file, (2, 32) here" in report["differing"]["detector.roi_heads.box_predictor.cls_score.weight"]
    )
    assert any("boundary" in name for name in report["fresh"])


def test_a_resumed_run_does_not_start_again_from_the_weights(configure: Any, tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    config = configure("deeplabv3plus", **{"model.weights": str(kept(state, tmp_path / "b.pth")), "run.steps": 1})
    train_segmenter("deeplabv3plus", "plain", config, tmp_path / "run", progress="none")
    (tmp_path / "b.pth").unlink()
    more = config.with_options(run=config.run.with_options(steps=2))
    last = train_segmenter("deeplabv3plus", "plain", more, tmp_path / "run", progress="none")
    assert torch.load(last, weights_only=True)["global_step"] == 2


def test_cocos_rows_of_its_80_categories(configure: Any, tmp_path: Path) -> None:
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    state = torchvision_mask_rcnn(91).state_dict()
    model = build_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **FULL, **{
        "data.num_classes": 80, "model.mask_rcnn.box_hidden": 1024}))  # fmt: skip
    report = load_weights(model, kept(state, tmp_path / "c.pth"), "mask_rcnn", std=STD, class_ids=ids)
    assert report.differing == {}
    ours, theirs = model.state_dict(), state["roi_heads.box_predictor.bbox_pred.weight"]
    boxes = ours["detector.roi_heads.box_predictor.bbox_pred.weight"]
    assert torch.equal(boxes[-4:], theirs[360:364])
    assert torch.equal(boxes[4 * 12 : 4 * 13], theirs[4 * 13 : 4 * 14]), "12 is no category, so label 12 is id 13"


def test_weights_of_another_architecture(configure: Any, tmp_path: Path) -> None:
    model = build_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **RESNET))
    deep = timm.create_model("convnext_atto").state_dict()
    with pytest.raises(ModelError, match=r"another architecture.*detector\.backbone\.body.*0 of \d+ fit"):
        load_weights(model, kept(deep, tmp_path / "c.pth"), "mask_rcnn", std=STD)
    wide = timm.create_model("wide_resnet50_2").state_dict()
    report = load_weights(model, kept(wide, tmp_path / "w.pth"), "mask_rcnn", std=STD)
    assert "in the file" in report.differing["detector.backbone.body.layer2.0.conv1.weight"]
    assert "does not fit" in str(report)
    assert "not used" in str(report)


def test_another_norm_is_not_taken_for_the_same(configure: Any, tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    model = build_segmenter("mask_rcnn", "plain", configure("mask_rcnn", **{"model.backbone.norm": "group"}))
    report = load_weights(model, kept(state, tmp_path / "b.pth"), "mask_rcnn", std=STD)
    assert report.differing["detector.backbone.body.bn1.weight"] == "of another kind of norm"


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04cos\nsystem\n.", "list", "empty folder", "refiner"])
def test_files_that_hold_no_weights(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if content == "list":
        torch.save([1, 2], path)
    elif content == "refiner":
        torch.save({"trained": {"kind": "refiner"}, "state_dict": {}}, path)
    elif content == "empty folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.pth"):
        read_weights(path)


ENCODERS = {"fcn_resnet18": "resnet18", "fcn_hrnet_w18s": "hrnet_w18_small_v2", "deeplabv3plus_resnet50": "resnet50"}


def drawn(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """The weights of a classifier of timm, of which each tensor is known by its values."""
    state = timm.create_model(name, pretrained=False, **arguments).state_dict()
    return {
        key: value + index if value.is_floating_point() else value for index, (key, value) in enumerate(state.items())
    }


@pytest.mark.parametrize("name", ENCODERS)
def test_a_refiner_takes_a_classifiers_encoder_whole(name: str, tmp_path: Path) -> None:
    theirs = drawn(ENCODERS[name])
    network = build_network(name)
    mask = network.state_dict()["encoder.conv1.weight"][:, 3:].clone()
    report = load_encoder(network, name, kept(theirs, tmp_path / "t.pth"))
    ours = {k.removeprefix("encoder."): v for k, v in network.state_dict().items() if k.startswith("encoder.")}
    stem = ours.pop("conv1.weight")
    assert torch.equal(stem, torch.cat([theirs["conv1.weight"], mask], 1))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not any(each.startswith("encoder.") for each in report.fresh)
    assert report.unused


def lite0_names() -> list[str]:
    """The names of `efficientnet-lite-pytorch`, in the order of timm's."""
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{n}" for n in norms)]
    for block in range(16):
        parts = [("_expand_conv", "_bn0")] * (block > 0) + [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for convolution, norm in parts:
            names += [f"_blocks.{block}.{convolution}.weight", *(f"_blocks.{block}.{norm}.{n}" for n in norms)]
    return [*names, "_conv_head.weight", *(f"_bn1.{n}" for n in norms), "_fc.weight", "_fc.bias"]


def test_efficientnet_lite0_has_blocks_numbered_through_elsewhere(tmp_path: Path) -> None:
    theirs = drawn("tf_efficientnet_lite0")
    names = lite0_names()
    assert len(names) == len(theirs)
    network = build_network("unet_lite0")
    report = load_encoder(
        network, "unet_lite0", kept(dict(zip(names, theirs.values(), strict=True)), tmp_path / "l.pth")
    )
    assert (report.source, report.differing) == ("efficientnet", {})
    for key, value in network.state_dict().items():
        if key.startswith("encoder.model.") and not key.endswith("conv_stem.weight"):
            assert torch.equal(value, theirs[key.removeprefix("encoder.model.")]), key
    assert sorted(report.unused) == sorted(n for n in names if n.startswith(("_conv_head", "_bn1", "_fc")))


def test_an_encoder_of_another_network_is_refused(tmp_path: Path) -> None:
    file = kept(drawn("resnet50"), tmp_path / "r50.pth")
    with pytest.raises(
        ModelError, match=r"every layer of the encoder of fcn_resnet18.*layer1.0.conv1.*Set network.name"
    ) as caught:
        load_encoder(build_network("fcn_resnet18"), "fcn_resnet18", file)
    assert "97 that fit" in str(caught.value)
    with pytest.raises(ConfigError, match="light_unet_s, which has none"):
        load_encoder(build_network("light_unet_s"), "light_unet_s", file)
