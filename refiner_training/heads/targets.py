"""What the heads are trained to predict: masks on a RoI grid, their boundaries, bands and shells.

Letters: N RoIs, G ground-truth instances, M cells along a side of the RoI grid, H and W the height and width
in pixels, K a window's side in pixels. Masks are float tensors of 0 and 1 unless a function says otherwise.
Crowd regions must never come here: the data set drops them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from bpr_service.errors import ConfigError

Padding = Literal["zero", "replicate", "none"]


def project_masks(masks: Tensor, boxes: Tensor, matched: Tensor, size: int, *, margin: int = 0) -> Tensor:
    """Resample each RoI's ground-truth mask on the RoI's own grid, as torchvision's Mask R-CNN does.

    Args:
        masks: (G, H, W) masks of the image, any dtype.
        boxes: (N, 4) RoIs, ``x0 y0 x1 y1`` in pixels of the image.
        matched: (N,) int64, the instance of each RoI.
        size: M, cells a side.
        margin: cells of context added on every side by enlarging the box; the grid's cells stay where they were.

    Returns:
        (N, M + 2 margin, M + 2 margin) float32 in [0, 1]: the values are fractions. Binarise them with
        :func:`binarise` before any boundary or morphology operation, or boundaries come out too thick.
    """
    side = size + 2 * margin
    if len(boxes) == 0:
        return boxes.new_zeros((0, side, side), dtype=torch.float32)
    cell = (boxes[:, 2:] - boxes[:, :2]) / size
    grown = torch.cat([boxes[:, :2] - margin * cell, boxes[:, 2:] + margin * cell], dim=1)
    rois = torch.cat([matched[:, None].to(grown), grown], dim=1).float()
    return roi_align(masks[:, None].float(), rois, (side, side), 1.0)[:, 0]  # type: ignore[no-any-return]


def binarise(masks: Tensor) -> Tensor:
    """1.0 where the value is at least 0.5, the rule of the reference implementations."""
    return (masks >= 0.5).float()


def laplacian(masks: Tensor, padding: Padding = "zero") -> Tensor:
    """Response of the 3x3 Laplacian kernel (centre 8, eight times -1), clamped at 0 (BMask R-CNN, sec. 3.3).

    Args:
        masks: (..., H, W) of any values in [0, 1].
        padding: what lies outside: ``zero`` background, ``replicate`` the border's own value, ``none`` nothing,
            so that the result is (..., H - 2, W - 2).
    """
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    if padding == "replicate":
        flat = F.pad(flat, (1, 1, 1, 1), mode="replicate") if len(flat) else F.pad(flat, (1, 1, 1, 1))
    elif padding == "zero":
        flat = F.pad(flat, (1, 1, 1, 1))
    elif padding != "none":
        raise ConfigError("padding", expected="zero, replicate or none", got=repr(padding))
    inner = flat[..., 1:-1, 1:-1]
    # A sum over the 3x3 window keeps whole numbers exact; a mean would not.
    response = 9 * inner - F.avg_pool2d(flat, 3, 1, divisor_override=1)
    return response.clamp(min=0).reshape(*masks.shape[:-2], *inner.shape[-2:])


def laplace_boundary(masks: Tensor, padding: Padding = "zero") -> Tensor:
    """The inner ring of binary masks: foreground with a background pixel among its 8 neighbours.

    Source: BMask R-CNN, sec. 3.3 (Laplacian, positive responses). Shapes as in :func:`laplacian`; values 0 and 1.
    ``zero`` makes foreground at the border of the grid boundary, as the reference implementation does.
    """
    return (laplacian(masks, padding) > 0).float()


def sobel_boundary(masks: Tensor, padding: Padding = "zero") -> Tensor:
    """Both sides of the boundary: pixels where the Sobel gradient of a binary mask is not 0; as `laplace_boundary`."""
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    if padding != "none":
        flat = F.pad(flat, (1, 1, 1, 1)) if padding == "zero" or not len(flat) else F.pad(flat, (1,) * 4, "replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=flat.device)
    with torch.autocast(flat.device.type, enabled=False):
        gradient = F.conv2d(flat, torch.stack([across, across.T])[:, None])
    edge = (gradient != 0).any(1).float()
    return edge.reshape(*masks.shape[:-2], *edge.shape[-2:])


def dilate(masks: Tensor, window_px: int) -> Tensor:
    """Dilation of (..., H, W) with a K x K square; what lies outside never adds."""
    flat = masks.float().reshape(-1, 1, *masks.shape[-2:])
    return F.max_pool2d(flat, window_px, 1, window_px // 2).reshape(masks.shape)


def erode(masks: Tensor, window_px: int) -> Tensor:
    """Erosion of (..., H, W) with a K x K square; what lies outside never erodes."""
    return 1 - dilate(1 - masks.float(), window_px)


def squeeze_targets(masks: Tensor, boundary: Tensor, window_px: int, or_boundary: bool) -> tuple[Tensor, Tensor]:
    """Contraction and expansion targets of BoundarySqueeze (sec. 3.2): Gc = dilate - Gs and Ge = Gs - erode.

    Args:
        masks: (..., H, W) binary Gs.
        boundary: Gb of the same shape.
        window_px: K, 5 on the RoI grid, 15 at image resolution.
        or_boundary: also set both to 1 on Gb, as the released code does and the paper does not.
    """
    contraction = dilate(masks, window_px) - masks
    expansion = masks - erode(masks, window_px)
    if or_boundary:
        contraction, expansion = torch.maximum(contraction, boundary), torch.maximum(expansion, boundary)
    return contraction, expansion


def disc(radius_px: int, device: torch.device | None = None) -> Tensor:
    """(2r+1, 2r+1) float disc of the pixels at a Euclidean distance of at most r; 29 ones for r = 3."""
    axis = torch.arange(-radius_px, radius_px + 1, device=device)
    return ((axis[:, None] ** 2 + axis[None, :] ** 2) <= radius_px**2).float()


def boundary_band(masks: Tensor, contour: Tensor, radius_px: int = 3) -> tuple[Tensor, Tensor]:
    """The two sides of the boundary: pixels within t (Euclidean) of the contour, BEIS eq. 1.

    Args:
        masks: (N, M, M) binary.
        contour: (N, M, M) inner boundary pixels.
        radius_px: t, in cells of the grid.

    Returns:
        (b1, b0), each (N, M, M) bool: the band inside the mask and the band outside it.
    """
    with torch.autocast(masks.device.type, enabled=False):
        kernel = disc(radius_px, masks.device)[None, None]
        near = F.conv2d(contour.float()[:, None], kernel, padding=radius_px)[:, 0] > 0
    inside = masks > 0
    return near & inside, near & ~inside


def holistic_boundary(masks: Tensor, canvas: tuple[int, int], stride: int) -> Tensor:
    """The boundary basis' target: each instance's boundary at basis resolution, OR over instances (B2Inst, sec. 4.1).

    Args:
        masks: (G, H, W) of one image; G may be 0.
        canvas: height and width in pixels of the padded batch, multiples of ``stride``, not below H and W.
        stride: pixels of the canvas per basis cell.

    Returns:
        (canvas[0] / stride, canvas[1] / stride) of 0 and 1. The image's border is no boundary, and neither is
        the padding of the canvas.
    """
    rows, columns = canvas[0] // stride, canvas[1] // stride
    if len(masks) == 0:
        return torch.zeros((rows, columns), device=masks.device)
    height, width = masks.shape[-2:]
    # Objects are carried on into the padding, or the padding would draw a boundary along the image's edge.
    grown = F.pad(masks[:, None].float(), (0, canvas[1] - width, 0, canvas[0] - height), mode="replicate")
    small = F.interpolate(grown, (rows, columns), mode="bilinear", align_corners=False) > 0.5
    boundary = laplace_boundary(small.float(), "replicate").amax(dim=(0, 1))
    boundary[-(-height // stride) :] = 0
    boundary[:, -(-width // stride) :] = 0
    return boundary
