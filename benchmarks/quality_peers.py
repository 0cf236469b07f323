"""Classical refiners of coarse masks, to compare with on the same masks: guided filter, GrabCut, dense CRF.

Letters: (H, W) the image, (h, w) a window of it, L the number of labels of a map.

Each peer moves the boundary only within a band around the coarse one, as a refiner of boundaries does: what is far
from the boundary stays as it is. Their settings were chosen on the val splits themselves, in their favour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.mask import Mask

U8, F32 = NDArray[np.uint8], NDArray[np.float32]
MARGIN_PX = 32
"""What a peer sees around a mask's box."""


class Method(Protocol):
    """Coarse masks of one image in, refined ones out."""

    def instances(self, image: U8, masks: Sequence[Mask]) -> list[Mask]:
        """Each mask on its own."""

    def semantic(self, image: U8, label_map: NDArray[Any]) -> NDArray[Any]:
        """An (H, W) label map; 255 is never changed and never spreads."""

    def panoptic(self, image: U8, segments: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        """An (H, W) map of segment ids; 0 is void."""


class Coarse:
    """The masks as they came: the zero of every scale."""

    def instances(self, image: U8, masks: Sequence[Mask]) -> list[Mask]:
        return list(masks)

    def semantic(self, image: U8, label_map: NDArray[Any]) -> NDArray[Any]:
        return label_map

    def panoptic(self, image: U8, segments: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        return segments


class Peer:
    """What the peers share: windows around masks, label maps as planes, the band."""

    band_px = 8

    def scores(self, image: U8, planes: F32) -> F32:
        """(h, w, 3) uint8 RGB and (L, h, w) {0, 1} planes that add up to 1 -> (L, h, w) scores."""
        raise NotImplementedError

    def instances(self, image: U8, masks: Sequence[Mask]) -> list[Mask]:
        return [self._instance(image, mask) for mask in masks]

    def _instance(self, image: U8, mask: Mask) -> Mask:
        if mask.is_empty:
            return mask
        x0, y0, x1, y1 = mask.box
        x0, y0 = max(x0 - MARGIN_PX, 0), max(y0 - MARGIN_PX, 0)
        x1, y1 = min(x1 + MARGIN_PX, mask.width), min(y1 + MARGIN_PX, mask.height)
        before = mask.window(x0, y0, x1, y1)
        labels = self._labels(np.ascontiguousarray(image[y0:y1, x0:x1]), before, [0, 1])
        return Mask.from_window(labels.astype(np.uint8), x0, y0, mask.height, mask.width)

    def _labels(self, image: U8, labels: NDArray[Any], wanted: Sequence[int]) -> NDArray[Any]:
        """Refine a map in the band around its boundaries; labels not wanted stay and do not spread."""
        present = [label for label in wanted if (labels == label).any()]
        if len(present) < 2:
            return labels
        planes = np.stack([(labels == label) for label in present]).astype(np.float32)
        best = np.asarray(present, labels.dtype)[self.scores(image, planes).argmax(0)]
        return np.where(self._band(planes) & planes.any(0), best, labels)

    def _band(self, planes: F32) -> NDArray[np.bool_]:
        """Pixels within ``band_px`` of two labels."""
        kernel = np.ones((2 * self.band_px + 1,) * 2, np.uint8)
        near = sum(cv2.dilate(plane.astype(np.uint8), kernel).astype(np.int32) for plane in planes)
        return np.asarray(near > 1, np.bool_)

    def semantic(self, image: U8, label_map: NDArray[Any]) -> NDArray[Any]:
        return self._labels(image, label_map, [int(v) for v in np.unique(label_map) if v != 255])

    def panoptic(self, image: U8, segments: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[Any]:
        return self._labels(image, segments, [int(info["id"]) for info in infos])


class GuidedFilter(Peer):
    """The guided filter with a colour guide (He, Sun and Tang, TPAMI 2013, equations 19 to 21), by box filters.

    OpenCV's own, of its contrib modules, is the same filter and is used where it is installed.
    """

    def __init__(self, radius_px: int = 4, epsilon: float = 1e-3) -> None:
        self.radius_px, self.epsilon = radius_px, epsilon

    def scores(self, image: U8, planes: F32) -> F32:
        guide = image.astype(np.float32) / 255
        if hasattr(cv2, "ximgproc"):
            filtered = [cv2.ximgproc.guidedFilter(guide, p, self.radius_px, self.epsilon) for p in planes]
            return np.stack(filtered)
        return self._filter(guide, planes)

    def _mean(self, x: F32) -> F32:
        side = 2 * self.radius_px + 1
        return np.asarray(cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    def _filter(self, guide: F32, planes: F32) -> F32:
        mean = self._mean(guide)
        covariance = np.empty((*guide.shape[:2], 3, 3), np.float32)
        for i in range(3):
            for j in range(i, 3):
                value = self._mean(guide[..., i] * guide[..., j]) - mean[..., i] * mean[..., j]
                covariance[..., i, j] = covariance[..., j, i] = value
        inverse = np.linalg.inv(covariance + self.epsilon * np.eye(3, dtype=np.float32))
        out = np.empty_like(planes)
        for k, plane in enumerate(planes):
            mean_p = self._mean(plane)
            cross = self._mean(guide * plane[..., None]) - mean * mean_p[..., None]
            a = np.einsum("hwij,hwj->hwi", inverse, cross)
            b = mean_p - (a * mean).sum(-1)
            out[k] = (self._mean(a) * guide).sum(-1) + self._mean(b)
        return out


class GrabCut(Peer):
    """GrabCut (Rother et al., SIGGRAPH 2004): colours learnt from outside the band decide inside it.

    A map of several labels is cut label by label; a pixel that several labels claim, or none, keeps its own.
    """

    band_px = 4

    def __init__(self, iterations: int = 3) -> None:
        self.iterations = iterations

    def scores(self, image: U8, planes: F32) -> F32:
        band = self._band(planes)
        bgr = np.ascontiguousarray(image[..., ::-1])
        if len(planes) == 2:
            won = self._cut(bgr, planes[1], band)
            return np.stack([1 - won, won])
        won = np.stack([self._cut(bgr, plane, band) for plane in planes])
        return np.where(won.sum(0) == 1, won, planes)

    def _cut(self, bgr: U8, plane: F32, band: NDArray[np.bool_]) -> F32:
        inside = plane > 0
        trimap = np.where(inside, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8)
        trimap[band & inside] = cv2.GC_PR_FGD
        trimap[band & ~inside] = cv2.GC_PR_BGD
        here = trimap[band]
        if len(here) == 0 or not inside.any() or inside.all():
            return plane
        cv2.setRNGSeed(0)
        models = np.zeros((2, 1, 65))
        try:
            cv2.grabCut(bgr, trimap, None, models[0], models[1], self.iterations, cv2.GC_INIT_WITH_MASK)
        except cv2.error:  # too few pixels of one side to learn its colours from
            return plane
        return np.asarray((trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD), np.float32)


class DenseCRF(Peer):
    """The fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011), of the package pydensecrf.

    Its last release on the registry holds generated C++ of an old Cython and builds only after those files
    (``pydensecrf/eigen.cpp``, ``pydensecrf/densecrf.cpp``) are deleted from the unpacked source, with Cython below 3:
    see docs/training.md.
    """

    def __init__(self, blur_px: float = 2.0, colour: float = 8.0, reach_px: float = 20.0, weight: float = 4.0) -> None:
        import pydensecrf.densecrf  # noqa: F401  so that a missing package is an error before any work

        self.blur_px, self.colour, self.reach_px, self.weight = blur_px, colour, reach_px, weight

    def scores(self, image: U8, planes: F32) -> F32:
        from pydensecrf.densecrf import DenseCRF2D

        height, width = image.shape[:2]
        soft = np.stack([cv2.GaussianBlur(p, (0, 0), self.blur_px) for p in planes])
        soft = np.clip(soft / soft.sum(0, keepdims=True).clip(1e-6), 0.02, 1)
        unary = -np.log(soft / soft.sum(0)).reshape(len(planes), -1).astype(np.float32)
        crf = DenseCRF2D(width, height, len(planes))
        crf.setUnaryEnergy(np.ascontiguousarray(unary))
        crf.addPairwiseGaussian(sxy=2, compat=2)
        crf.addPairwiseBilateral(
            sxy=self.reach_px, srgb=self.colour, rgbim=np.array(image, order="C"), compat=self.weight
        )
        return np.asarray(crf.inference(5), np.float32).reshape(planes.shape)


PEERS: dict[str, type[Peer]] = {"guided": GuidedFilter, "grabcut": GrabCut, "crf": DenseCRF}
