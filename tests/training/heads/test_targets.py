"""Boundary, band and shell targets, checked by hand counts, OpenCV and the definition."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from bpr_service.errors import ConfigError
from refiner_training.heads.protocol import RoiBatch, RoiTruth
from refiner_training.heads.targets import (
    binarise,
    boundary_band,
    dilate,
    disc,
    erode,
    holistic_boundary,
    laplace_boundary,
    laplacian,
    project_masks,
    squeeze_targets,
)


def square(side: int, size: int, at: int | None = None) -> torch.Tensor:
    mask = torch.zeros(size, size)
    start = (size - side) // 2 if at is None else at
    mask[start : start + side, start : start + side] = 1
    return mask


def test_inner_ring_of_a_square() -> None:
    assert laplace_boundary(square(4, 8)).sum() == 12


def test_ring_is_foreground_with_a_background_8_neighbour() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random((17, 23)) > 0.4).float()
    kernel = np.ones((3, 3), np.uint8)
    # OpenCV's erosion with zeros outside: what it removes is the ring.
    eroded = cv2.erode(mask.numpy().astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    np.testing.assert_array_equal(laplace_boundary(mask).numpy(), mask.numpy() - eroded)


@pytest.mark.parametrize(("padding", "size", "count"), [("zero", 8, 28), ("replicate", 8, 0), ("zero", 28, 108)])
def test_padding_decides_the_grid_border(padding: str, size: int, count: int) -> None:
    assert laplace_boundary(torch.ones(size, size), padding).sum() == count  # type: ignore[arg-type]


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero, replicate or none"):
        laplacian(torch.ones(4, 4), "mirror")  # type: ignore[arg-type]


def test_raw_responses_are_3_on_edges_and_5_on_corners() -> None:
    assert laplacian(square(4, 8)).unique().tolist() == [0, 3, 5]


def rois_of(mask: torch.Tensor, box: list[float]) -> RoiBatch:
    boxes = torch.tensor([box])
    labels = torch.ones(1, dtype=torch.int64)
    truth = RoiTruth([mask[None]], [labels], [torch.zeros(1, dtype=torch.int64)])
    return RoiBatch({}, [boxes], labels, truth)


@pytest.mark.parametrize(("padding", "count"), [("zero", 108), ("context", 0)])
def test_roi_inside_a_larger_object(padding: str, count: int) -> None:
    rois = rois_of(torch.ones(128, 128), [40.0, 40.0, 68.0, 68.0])
    masks, boundary = rois.boundary_targets(28, padding)  # type: ignore[arg-type]
    assert masks.min() == 1
    assert boundary.sum() == count


@pytest.mark.parametrize("padding", ["zero", "context"])
def test_roi_tight_on_a_square(padding: str) -> None:
    rois = rois_of(square(56, 128, at=36), [36.0, 36.0, 92.0, 92.0])
    assert rois.boundary_targets(28, padding)[1].sum() == 108  # type: ignore[arg-type]


def test_context_keeps_the_cells_where_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(64, 64, generator=generator) > 0.5).float()[None]
    boxes, matched = torch.tensor([[9.0, 7.0, 51.0, 49.0]]), torch.zeros(1, dtype=torch.int64)
    plain = project_masks(mask, boxes, matched, 14)
    grown = project_masks(mask, boxes, matched, 14, margin=1)
    torch.testing.assert_close(grown[:, 1:-1, 1:-1], plain, atol=1e-4, rtol=0)


def test_projection_is_torchvisions() -> None:
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    masks = (torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    boxes = torch.tensor([[3.0, 4, 30, 33], [10, 2, 48, 38]])
    matched = torch.tensor([2, 0])
    ours = project_masks(masks, boxes, matched, 28)
    torch.testing.assert_close(ours, project_masks_on_boxes(masks, boxes, matched, 28))
    assert ((ours > 0) & (ours < 1)).any(), "the values are fractions"


def test_soft_targets_thicken_the_boundary() -> None:
    soft = project_masks(square(30, 64, at=9)[None], torch.tensor([[4.0, 4, 51, 51]]), torch.zeros(1).long(), 28)
    assert (laplacian(soft) > 0).sum() > laplace_boundary(binarise(soft)).sum()


def test_projection_of_no_rois() -> None:
    none = project_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), torch.zeros(0).long(), 28, margin=1)
    assert none.shape == (0, 30, 30)


@pytest.mark.parametrize("window", [3, 5, 15])
def test_morphology_is_opencvs(window: int) -> None:
    mask = (torch.rand(40, 33, generator=torch.Generator().manual_seed(2)) > 0.7).float()
    array, kernel = mask.numpy().astype(np.uint8), np.ones((window, window), np.uint8)
    np.testing.assert_array_equal(dilate(mask, window).numpy(), cv2.dilate(array, kernel))
    np.testing.assert_array_equal(erode(mask, window).numpy(), cv2.erode(array, kernel))


@pytest.mark.parametrize(
    ("side", "size", "or_boundary", "counts"),
    [(8, 28, False, (80, 48)), (8, 28, True, (108, 48)), (4, 16, False, (48, 16))],
)
def test_shells_of_a_square(side: int, size: int, or_boundary: bool, counts: tuple[int, int]) -> None:
    mask = square(side, size)
    contraction, expansion = squeeze_targets(mask, laplace_boundary(mask), 5, or_boundary)
    assert (contraction.sum(), expansion.sum()) == counts
    if not or_boundary:
        assert not (contraction * mask).any()
    assert not (expansion * (1 - mask)).any()


def test_shells_of_a_full_grid_are_empty() -> None:
    mask = torch.ones(28, 28)
    contraction, expansion = squeeze_targets(mask, laplace_boundary(mask), 5, False)
    assert contraction.sum() == expansion.sum() == 0


def test_disc_has_29_taps() -> None:
    assert disc(3).sum() == 29


@pytest.mark.parametrize(("side", "size", "inside", "outside"), [(4, 16, 16, 64), (8, 32, 64, 112)])
def test_band_of_a_square(side: int, size: int, inside: int, outside: int) -> None:
    mask = square(side, size)[None]
    b1, b0 = boundary_band(mask, laplace_boundary(mask))
    assert (b1.sum(), b0.sum()) == (inside, outside)


def test_band_is_the_euclidean_distance_to_the_contour() -> None:
    mask = (torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(3)) > 0.8).float()
    contour = laplace_boundary(mask)
    distance = cv2.distanceTransform((1 - contour[0]).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    b1, b0 = boundary_band(mask, contour, 3)
    np.testing.assert_array_equal((b1 | b0)[0].numpy(), distance <= 3 + 1e-4)


def abutting() -> torch.Tensor:
    masks = torch.zeros(2, 16, 16)
    masks[0, 4:10, 2:6] = 1
    masks[1, 4:10, 6:10] = 1
    return masks


def test_abutting_instances_keep_the_boundary_between_them() -> None:
    masks = abutting()
    assert laplace_boundary(masks).amax(0).sum() == 32
    assert laplace_boundary(masks.amax(0)).sum() == 24
    assert holistic_boundary(masks, (16, 16), 1).sum() == 32


def test_holistic_boundary_of_no_instances_is_empty() -> None:
    target = holistic_boundary(torch.zeros(0, 30, 40), (32, 64), 4)
    assert target.shape == (8, 16)
    assert target.sum() == 0


def test_neither_image_border_nor_padding_is_a_boundary() -> None:
    masks = torch.ones(1, 30, 40)
    assert holistic_boundary(masks, (32, 64), 4).sum() == 0


def test_bands_survive_autocast() -> None:
    mask = square(8, 32)[None]
    with torch.autocast("cpu", torch.bfloat16):
        b1, b0 = boundary_band(mask, laplace_boundary(mask))
    assert (b1.sum(), b0.sum()) == (64, 112)
