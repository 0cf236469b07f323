"""Instance measures: mask AP (COCO), boundary AP (Cheng et al., CVPR 2021) and AF.

Letters: D detections and G true instances of one image and category, T = 10 IoU thresholds .50:.05:.95,
R = 101 recall points, K categories, A = 4 area ranges (all, small, medium, large).

The overlaps are measured here, in box windows and in parallel; matching and accumulating them into AP is
faster-coco-eval's, whose results are those of pycocotools. Boundary AP uses min(mask IoU, boundary IoU), for
ground truth that is no crowd. A pair below IoU 0.5 can never match, so its boundary is never looked at.

AF is the mean boundary F of the true positives: at each IoU threshold over all pairs that mask AP counts as
true positives there, then over the thresholds that have any. F is that of
:func:`~refiner_training.metrics.boundary.boundary_f` at 1 px.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bpr_service.kernel import kernel
from refiner_training.metrics.boundary import (
    boundary_distance_px,
    boundary_f,
    boundary_region,
    intersection,
    region_iou,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bpr_service.masks.mask import Mask

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AF_TOLERANCE_PX = 1
AREAS = ("all", "small", "medium", "large")
_LOWEST = 0.5 - 1e-9  # below the lowest threshold a pair can never match


@dataclass(frozen=True, slots=True)
class Matchable:
    """One annotation or one detection, without its mask: what matching needs to know."""

    index: int  # in its file
    image: int  # ordinal of the image, in the order of ids
    category: int
    area: float  # px
    score: float = 1.0
    crowd: bool = False


@dataclass(slots=True)
class Cell:
    """The overlaps of one image and category: rows are detections by falling score, columns true instances."""

    image: int
    category: int
    detections: list[Matchable]
    truths: list[Matchable]
    iou: NDArray[np.float64]  # (D, G); a crowd's is intersection over the detection's area
    boundary_iou: NDArray[np.float64]  # (D, G) min(mask IoU, boundary IoU) where IoU >= 0.5, else mask IoU
    match: NDArray[np.int64]  # (D,) column matched at IoU 0.5, else -1
    f_total: NDArray[np.float64]  # (T,) sum of the boundary F of the true positives
    f_count: NDArray[np.int64]  # (T,) the number of true positives


@dataclass(slots=True)
class InstanceScores:
    """AP arrays and AF; :meth:`summary` is what people read."""

    categories: list[int]
    precision: NDArray[np.float64]  # (T, R, K, A), -1 where a category has no instance
    boundary_precision: NDArray[np.float64]  # (T, R, K, A)
    af: NDArray[np.float64]  # (T,), nan where there was no true positive
    af_per_category: NDArray[np.float64]  # (K,)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)  # detection, truth, IoU: matched at 0.5

    def summary(self) -> dict[str, Any]:
        """Give AP, AP50, AP75, AP90, AP_small, AP_medium, AP_large, the same of boundary AP, AF."""
        out: dict[str, Any] = {}
        for prefix, precision in (("", self.precision), ("boundary_", self.boundary_precision)):
            out[f"{prefix}AP"] = _mean(precision[..., 0])
            for percent, t in ((50, 0), (75, 5), (90, 8)):
                out[f"{prefix}AP{percent}"] = _mean(precision[t, ..., 0])
            for a, name in enumerate(AREAS[1:], start=1):
                out[f"{prefix}AP_{name}"] = _mean(precision[..., a])
        out["AF"] = float(np.nanmean(self.af)) if np.isfinite(self.af).any() else None
        out["AF_threshold_px"] = AF_TOLERANCE_PX
        names = [f"{t:.2f}" for t in IOU_THRESHOLDS]
        out["AP_per_iou"] = {n: _mean(self.precision[t, ..., 0]) for t, n in enumerate(names)}
        out["boundary_AP_per_iou"] = {n: _mean(self.boundary_precision[t, ..., 0]) for t, n in enumerate(names)}
        out["AF_per_iou"] = {n: _finite(self.af[t]) for t, n in enumerate(names)}
        return out

    def per_class(self) -> dict[int, dict[str, Any]]:
        """Give AP, boundary AP and AF of each category; None where it has no instance."""
        return {
            category: {
                "AP": _mean(self.precision[:, :, k, 0]),
                "boundary_AP": _mean(self.boundary_precision[:, :, k, 0]),
                "AF": _finite(self.af_per_category[k]),
            }
            for k, category in enumerate(self.categories)
        }


def measure_image(
    truths: Sequence[tuple[Matchable, Mask]],
    detections: Sequence[tuple[Matchable, Mask]],
    *,
    boundary_ratio: float = 0.02,
    max_detections: int = 100,
) -> list[Cell]:
    """Measure the overlaps of one image's masks, category by category, with at most `max_detections` each."""
    cells = []
    for category in sorted({t.category for t, _ in truths} & {d.category for d, _ in detections}):
        columns = [pair for pair in truths if pair[0].category == category]
        rows = [pair for pair in detections if pair[0].category == category]
        rows = sorted(rows, key=lambda pair: -pair[0].score)[:max_detections]
        cells.append(_measure_cell(category, columns, rows, boundary_ratio))
    return cells


def _measure_cell(
    category: int,
    columns: Sequence[tuple[Matchable, Mask]],
    rows: Sequence[tuple[Matchable, Mask]],
    boundary_ratio: float,
) -> Cell:
    iou = np.zeros((len(rows), len(columns)))
    tight, f = iou.copy(), np.full(iou.shape, np.nan)
    regions: dict[int, NDArray[np.uint8]] = {}

    def region(mask: Mask) -> NDArray[np.uint8]:
        if id(mask) not in regions:
            regions[id(mask)] = boundary_region(mask, boundary_distance_px(mask.height, mask.width, boundary_ratio))
        return regions[id(mask)]

    areas = [int(d.area) for d, _ in rows]
    for g, (truth, true_mask) in enumerate(columns):
        true_area = true_mask.area
        for d, (_, mask) in enumerate(rows):
            shared = intersection(mask, true_mask)
            union = areas[d] if truth.crowd else areas[d] + true_area - shared
            iou[d, g] = tight[d, g] = shared / max(union, 1)
            if iou[d, g] >= _LOWEST and not truth.crowd:
                tight[d, g] = min(iou[d, g], region_iou(mask, region(mask), true_mask, region(true_mask)))
                f[d, g] = boundary_f(mask, true_mask, AF_TOLERANCE_PX)
    crowd = np.array([t.crowd for t, _ in columns], dtype=np.bool_)
    matched = true_positive_f(iou, f, crowd, IOU_THRESHOLDS)
    image = columns[0][0].image
    return Cell(image, category, [d for d, _ in rows], [t for t, _ in columns], iou, tight, *matched)


def score(
    cells: Sequence[Cell],
    truths: Sequence[Matchable],
    detections: Sequence[Matchable],
    *,
    images: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    max_detections: int = 100,
    lvis: bool = False,
) -> InstanceScores:
    """Accumulate measured overlaps into AP, boundary AP and AF.

    `images` and `categories` are COCO records whose image ``id`` is the ordinal that instances carry; with
    `lvis` their ``neg_category_ids`` and ``not_exhaustive_category_ids`` count as in the LVIS protocol.
    """
    place = (lambda image, category: image) if lvis else _ranks([*truths, *detections])
    table = {(place(cell.image, cell.category), cell.category): cell for cell in cells}
    if not lvis:
        most = max((place(i.image, i.category) for i in (*truths, *detections)), default=0)
        images = [{"id": n} for n in range(most + 1)]
    gt, dt = (_coco(side, images, categories, place) for side in (truths, detections))
    ids = sorted(c["id"] for c in categories)

    def accumulate(overlap: Callable[[Cell], NDArray[np.float64]]) -> NDArray[np.float64]:
        run = _evaluator(gt, dt, {key: overlap(cell) for key, cell in table.items()}, max_detections, lvis)
        return np.asarray(run.eval["precision"], dtype=np.float64)[..., -1]

    precision = accumulate(lambda cell: cell.iou)
    boundary_precision = accumulate(lambda cell: cell.boundary_iou)
    af, per_category, pairs = _true_positive_f(cells, ids)
    return InstanceScores(ids, precision, boundary_precision, af, per_category, pairs)


def _ranks(instances: Sequence[Matchable]) -> Callable[[int, int], int]:
    """Number the images of each category from 0, in their order.

    AP never looks across categories, so each may count its own images: the evaluator's time goes with images
    times categories, most of which are empty.
    """
    seen = sorted({(i.category, i.image) for i in instances})
    rank: dict[tuple[int, int], int] = {}
    before, number = None, 0
    for category, image in seen:
        number = number + 1 if category == before else 0
        rank[image, category] = number
        before = category
    return lambda image, category: rank[image, category]


def _coco(
    instances: Sequence[Matchable], images: Sequence[dict[str, Any]], categories: Any, place: Callable[[int, int], int]
) -> Any:
    """Build the index faster-coco-eval reads, with ids from 1 in file order and without any mask."""
    from faster_coco_eval.core.coco import COCO

    index = COCO()
    index.dataset = {
        "images": list(images),
        "categories": list(categories),
        "annotations": [
            {
                "id": number,
                "image_id": place(i.image, i.category),
                "category_id": i.category,
                "area": i.area,
                "score": i.score,
                "iscrowd": int(i.crowd),
                "bbox": [0.0, 0.0, 1.0, 1.0],
            }
            for number, i in enumerate(instances, start=1)
        ],
    }
    index.createIndex()
    return index


def _evaluator(gt: Any, dt: Any, overlaps: dict[tuple[int, int], Any], max_detections: int, lvis: bool) -> Any:
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    class MeasuredEval(COCOeval_faster):  # type: ignore[misc]
        """COCOeval with the overlaps that were measured before; "bbox" keeps it from decoding masks."""

        def computeIoU(self, imgId: int, catId: int) -> Any:
            return overlaps.get((imgId, catId), [])

        def _prepare_freq_group(self) -> list[list[int]]:
            return []  # AP of rare, common and frequent is not among the measures

    run = MeasuredEval(gt, dt, "bbox", print_function=logging.getLogger(__name__).debug, lvis_style=lvis)
    run.params.maxDets = [max_detections]
    run.params.iouThrs = IOU_THRESHOLDS
    run.evaluate()
    run.accumulate()
    return run


def _true_positive_f(
    cells: Sequence[Cell], categories: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[int, int, float]]]:
    """Average F over the true positives: AF at each threshold (T,), of each category (K,), matched pairs."""
    column = {category: k for k, category in enumerate(categories)}
    total = np.zeros((len(IOU_THRESHOLDS), len(categories)))
    count = np.zeros_like(total)
    pairs: list[tuple[int, int, float]] = []
    for cell in cells:
        total[:, column[cell.category]] += cell.f_total
        count[:, column[cell.category]] += cell.f_count
        for d, g in enumerate(cell.match.tolist()):
            if g >= 0:
                pairs.append((cell.detections[d].index, cell.truths[g].index, float(cell.iou[d, g])))
    with np.errstate(invalid="ignore", divide="ignore"):
        af = total.sum(1) / count.sum(1)
        by_threshold = total / count
    seen = np.isfinite(by_threshold)
    per_category = np.where(seen.any(0), np.where(seen, by_threshold, 0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)
    return af, per_category, pairs


@kernel
def match_detections(iou: Any, crowd: Any, thresholds: Any) -> Any:
    """Match detections by falling score, each to the free true instance of highest IoU (COCO's rule).

    `iou` (D, G), `crowd` (G,) -> (T, D) int64: the column matched at each threshold, -1 where there is none
    or it is a crowd.
    """
    n_detections, n_truths = iou.shape
    out = np.zeros((thresholds.size, n_detections), np.int64)
    for t in range(thresholds.size):
        taken = np.zeros(n_truths, np.bool_)
        for d in range(n_detections):
            best, at = min(thresholds[t], 1 - 1e-10), -1
            for g in range(n_truths):
                if not crowd[g] and not taken[g] and iou[d, g] >= best:
                    best, at = iou[d, g], g
            if at >= 0:
                taken[at] = True
            out[t, d] = at
    return out


@kernel
def true_positive_f(iou: Any, f: Any, crowd: Any, thresholds: Any) -> Any:
    """Match at each threshold and add up F (D, G) over the matches: match at the first (D,), sums (T,), counts (T,)."""
    match = match_detections(iou, crowd, thresholds)
    total = np.zeros(thresholds.size, np.float64)
    count = np.zeros(thresholds.size, np.int64)
    for t in range(thresholds.size):
        for d in range(iou.shape[0]):
            if match[t, d] >= 0:
                total[t] += f[d, match[t, d]]
                count[t] += 1
    return match[0].copy(), total, count


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
