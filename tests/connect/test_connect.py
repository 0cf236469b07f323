"""Each connector against a plain call of the refiner: supervision and torchvision's dictionary as they are, the others
against the shapes that their documentation gives.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import supervision
import torch
from PIL import Image

from bpr_service import Mask, Refiner, connect, errors

H, W = 96, 128


def disc(x: int, y: int, r: int) -> np.ndarray:
    ys, xs = np.mgrid[:H, :W]
    return (xs - x) ** 2 + (ys - y) ** 2 <= r * r


PICTURE = np.where(disc(50, 48, 30)[..., None], (220, 40, 30), (20, 90, 200)).astype(np.uint8)
COARSE = np.stack([disc(53, 46, 30), disc(50, 50, 27)])


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner.load("fast", gate=False)


@pytest.fixture(scope="module")
def expected(refiner: Refiner) -> list[Mask]:
    masks = refiner.refine(PICTURE, list(COARSE)).masks
    assert any((mask.to_array() != before).any() for mask, before in zip(masks, COARSE, strict=True))
    return masks


def corners(masks: list[Mask]) -> list[list[float]]:
    return [[x, y, x + w, y + h] for x, y, w, h in (mask.bbox for mask in masks)]


def test_importing_it_loads_no_library() -> None:
    code = "import sys, bpr_service.connect; print({'httpx', 'torch', 'supervision', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_supervision(refiner: Refiner, expected: list[Mask]) -> None:
    detections = supervision.Detections(
        xyxy=supervision.mask_to_xyxy(COARSE).astype(np.float32), mask=COARSE, tracker_id=np.array([7, 8])
    )
    out = connect.refine_detections(refiner, PICTURE, detections)
    np.testing.assert_array_equal(out.mask, [mask.to_array() for mask in expected])
    assert out.xyxy.tolist() == corners(expected)
    assert out.tracker_id.tolist() == [7, 8]
    assert detections.mask is COARSE


def test_an_empty_frame_of_supervision_comes_back(refiner: Refiner) -> None:
    empty = supervision.Detections.empty()
    assert len(connect.refine_detections(refiner, PICTURE, empty)) == 0
    assert connect.from_detections(empty) == []
    with pytest.raises(errors.InputError, match="without masks"):
        connect.refine_detections(refiner, PICTURE, supervision.Detections(xyxy=np.zeros((1, 4))))


def test_torchvision(refiner: Refiner, expected: list[Mask]) -> None:
    target = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.tensor([3, 1]),
        "masks": torch.from_numpy(COARSE[:, None].astype(np.float32)),
    }
    out = connect.refine_target(refiner, PICTURE, target)
    soft = refiner.refine(PICTURE, [frame.astype(np.float32) for frame in COARSE]).masks
    assert out["masks"].shape == (2, 1, H, W)
    assert out["masks"].dtype == torch.float32
    np.testing.assert_array_equal(out["masks"][:, 0], [mask.to_array() for mask in soft])
    assert out["boxes"].tolist() == corners(soft)
    assert out["labels"] is target["labels"]
    assert not target["boxes"].any()
    none = {"masks": torch.zeros(0, 1, H, W), "labels": torch.zeros(0)}
    assert connect.refine_target(refiner, PICTURE, none)["masks"].shape == (0, 1, H, W)
    with pytest.raises(errors.InputError, match="masks"):
        connect.refine_target(refiner, PICTURE, {"boxes": torch.zeros(0, 4)})


class Results:
    """The members of ultralytics' `Results` that its reference names."""

    def __init__(self, masks: torch.Tensor | None, boxes: torch.Tensor) -> None:
        self.orig_img, self.orig_shape = PICTURE[:, :, ::-1], (H, W)
        self.masks: Any = None
        self.update(boxes, masks)

    def update(self, boxes: torch.Tensor, masks: torch.Tensor | None) -> None:
        self.boxes = SimpleNamespace(data=boxes, xyxy=boxes[:, :4])
        if masks is not None:
            self.masks = Frames(masks)


class Frames:
    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)


def test_ultralytics(refiner: Refiner, expected: list[Mask]) -> None:
    boxes = torch.tensor([[0, 0, 9, 9, 0.5, 3.0], [0, 0, 9, 9, 0.9, 1.0]])
    results = Results(torch.from_numpy(COARSE.astype(np.float32)), boxes)
    out = connect.refine_results(refiner, results)
    np.testing.assert_array_equal(out.masks.data, [mask.to_array() for mask in expected])
    assert out.boxes.data[:, :4].tolist() == corners(expected)
    assert out.boxes.data[:, 4:].tolist() == boxes[:, 4:].tolist()
    assert results.boxes.data is boxes
    assert connect.refine_results(refiner, (none := Results(None, boxes[:0]))) is none


def test_ultralytics_masks_of_the_letterboxed_picture(refiner: Refiner) -> None:
    """Half the size, with 8 rows of padding above and below."""
    small = np.zeros((1, 64, 64), np.float32)
    small[0, 8:56] = disc(53, 46, 30)[::2, ::2]
    out = connect.refine_results(refiner, Results(torch.from_numpy(small), torch.zeros(1, 6)))
    array = out.masks.data[0].numpy() > 0
    truth = disc(50, 48, 30)
    assert out.masks.data.shape == (1, H, W)
    assert (array & truth).sum() / (array | truth).sum() > 0.85


def test_transformers(refiner: Refiner) -> None:
    ids = np.full((H, W), -1, np.int32)
    ids[COARSE[1]] = 4
    ids[80:] = 2
    infos = [{"id": 4, "label_id": 17, "score": 0.9}, {"id": 2, "label_id": 1}, {"id": 9, "label_id": 1}]
    given = {"segmentation": torch.from_numpy(ids), "segments_info": infos}
    out = connect.refine_segmentation(refiner, PICTURE, given)
    numbers = np.where(ids == 4, 1, np.where(ids == 2, 2, 0)).astype(np.int32)
    asked = [{"id": 1, "category_id": 17}, {"id": 2, "category_id": 1}]
    after = refiner.refine_panoptic(PICTURE, numbers, asked).segment_map
    np.testing.assert_array_equal(out["segmentation"], np.array([-1, 4, 2])[after])
    assert out["segmentation"].dtype == torch.int32
    assert out["segments_info"] is infos
    maps = {"segmentation": torch.from_numpy(COARSE.astype(np.float32)), "segments_info": infos[:2]}
    stack = connect.refine_segmentation(refiner, PICTURE, maps)["segmentation"]
    np.testing.assert_array_equal(stack, [mask.to_array() for mask in refiner.refine(PICTURE, list(COARSE)).masks])
    labels = torch.from_numpy(np.where(COARSE[0], 12, 3).astype(np.int64))
    semantic = connect.refine_segmentation(refiner, PICTURE, labels)
    assert semantic.dtype == torch.int64
    plain = refiner.refine_semantic(PICTURE, labels.numpy().astype(np.uint16), None).label_map
    np.testing.assert_array_equal(semantic, plain)
    nothing: dict[str, Any] = {"segmentation": None, "segments_info": []}
    assert connect.refine_segmentation(refiner, PICTURE, nothing) == nothing


class Labels:
    """FiftyOne's ``Detections``."""

    def __init__(self, detections: list[Any]) -> None:
        self.detections = detections

    def copy(self) -> Labels:
        return copy.deepcopy(self)


def test_fiftyone(refiner: Refiner, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    mask = Mask.from_array(COARSE[0])
    x, y, w, h = (int(v) for v in mask.bbox)
    one = SimpleNamespace(label="ball", bounding_box=[x / W, y / H, w / W, h / H], mask=COARSE[0][y : y + h, x : x + w])
    box = SimpleNamespace(label="box", bounding_box=[0, 0, 1, 1], mask=None)

    class Sample(dict[str, Any]):
        filepath = str(tmp_path / "a.png")

    sample = connect.refine_sample(refiner, Sample(predictions=Labels([one, box])), into="refined")
    out = sample["refined"].detections[0]
    expected = refiner.refine(PICTURE, [mask]).masks[0]
    x, y, w, h = (int(v) for v in expected.bbox)
    np.testing.assert_array_equal(out.mask, expected.to_array()[y : y + h, x : x + w])
    np.testing.assert_allclose(out.bounding_box, [x / W, y / H, w / W, h / H])
    assert sample["predictions"].detections[0].mask is one.mask
    assert sample["refined"].detections[1].mask is None


def test_cvat_function(refiner: Refiner) -> None:
    """A mask's points as the SDK's ``encode_mask`` writes them: runs row by row, then the corner pixels of its box."""
    mask = Mask.from_array(COARSE[0])
    x0, y0, x1, y1 = mask.box
    flat = COARSE[0][y0:y1, x0:x1].ravel()
    runs = [len(list(run)) for run in np.split(flat, np.flatnonzero(np.diff(flat)) + 1)]
    shapes = [
        SimpleNamespace(type="mask", label_id=1, points=[*([0] if flat[0] else []), *runs, x0, y0, x1 - 1, y1 - 1]),
        SimpleNamespace(type="polygon", label_id=2, points=Mask.from_array(COARSE[1]).to_polygons()[0]),
        SimpleNamespace(type="rectangle", label_id=3, points=[1, 2, 3, 4]),
    ]
    inner = SimpleNamespace(spec="labels", detect=lambda context, image: copy.deepcopy(shapes))
    function = connect.RefinedFunction(inner, refiner)
    first, second, third = function.detect(None, Image.fromarray(PICTURE))
    expected = refiner.refine(PICTURE, list(COARSE)).masks
    x0, y0, x1, y1 = (int(v) for v in first.points[-4:])
    values = np.arange(len(first.points) - 4) % 2
    window = np.repeat(values, np.array(first.points[:-4], int)).reshape(y1 - y0 + 1, x1 - x0 + 1)
    np.testing.assert_array_equal(window, expected[0].window(x0, y0, x1 + 1, y1 + 1))
    np.testing.assert_array_equal(Mask.from_polygons([second.points], H, W).to_array(), expected[1].to_array())
    assert third.points == [1, 2, 3, 4]
    assert function.spec == "labels"
