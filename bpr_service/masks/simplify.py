"""Polygons that a person can edit: outlines with few corners, none of them farther from the pixels' edge than promised.

The pixels' edges between labels are cut where three labels meet, and each arc is simplified once for both its sides
(`few_corners`), so neighbours keep one edge between them. An arc that would cross another or lose a region is kept
nearer to what it was, so holes, parts and regions stay what they were.

Letters: H, W are the image's height and width in px; n corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.masks.encoding import Parts
from bpr_service.masks.few_corners import FewCorners
from bpr_service.masks.polygons import joined

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

Arcs = NDArray[np.object_]


def simplify_masks(masks: Sequence[Mask], tolerance_px: float) -> list[Parts]:
    """The parts of each mask with few corners; masks that do not overlap keep one edge between them.

    Args:
        masks: of one image.
        tolerance_px: no point of a new outline is farther from the old one, and none of the old from the new.
    """
    out: list[Parts] = [[] for _ in masks]
    for group in _disjoint(masks):
        boxes = np.array([masks[i].box for i in group])
        (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        labels = np.zeros((y1 - y0, x1 - x0), np.int32)
        for label, i in enumerate(group, 1):
            left, top, right, bottom = masks[i].box
            window = labels[top - y0 : bottom - y0, left - x0 : right - x0]
            window[masks[i].window(left, top, right, bottom) > 0] = label
        frame = (-x0, -y0, masks[group[0]].width - x0, masks[group[0]].height - y0)
        for label, parts in simplify_label_map(labels, tolerance_px, frame).items():
            out[group[label - 1]] = [[ring + np.array([x0, y0]) for ring in rings] for rings in parts]
    return out


def simplify_label_map(
    labels: NDArray[np.integer[Any]], tolerance_px: float, frame: tuple[int, int, int, int] | None = None
) -> dict[int, Parts]:
    """The parts of every label of an (H, W) map but 0, with few corners and without gaps between neighbours.

    Args:
        labels: (H, W); 0 is no label.
        tolerance_px: as in `simplify_masks`.
        frame: x0, y0, x1, y1 of the picture, px on the map; None: the map is the picture.
    """
    import shapely

    padded = np.pad(labels.astype(np.int64), 1)
    arcs, sides = _arcs(padded)
    if not len(arcs):
        return {}
    frame = (0, 0, labels.shape[1], labels.shape[0]) if frame is None else frame
    old = [shapely.get_coordinates(arc) for arc in shapely.simplify(arcs, 0.0, preserve_topology=False)]
    few = FewCorners(old, tolerance_px, (np.array(frame[:2], float), np.array(frame[2:], float)))
    order = shapely.length(arcs).argsort().argsort()
    while True:  # every round leaves more arcs as they were; with all of them the faces are the labels' own
        counts = [len(corners) for corners in few.corners]
        new = shapely.linestrings(np.concatenate(few.corners), indices=np.repeat(np.arange(len(counts)), counts))
        bad = _crossing(new, few.loose, order)
        if not bad.any():
            faces = shapely.orient_polygons(shapely.get_parts(shapely.polygonize(new)))
            own = _labels_of(faces, padded)
            bad = _lost(new, sides, faces, own)
        if not few.tighten(bad):
            break
    wanted = np.flatnonzero(own)
    out: dict[int, Parts] = {}
    for i in wanted.tolist():
        rings = [faces[i].exterior, *faces[i].interiors]
        out.setdefault(int(own[i]), []).append([shapely.get_coordinates(ring)[:-1] for ring in rings])
    return out


def drawn(parts: Parts, height: int, width: int) -> Mask:
    """The mask that the outlines are, holes left out."""
    from bpr_service.masks.mask import Mask

    return Mask.from_polygons([joined(rings).reshape(-1).tolist() for rings in parts], height, width)


def corners_of(parts: Parts) -> int:
    """How many corners all rings have."""
    return sum(len(ring) for rings in parts for ring in rings)


def boundary_agreement(one: Mask, other: Mask) -> float:
    """Boundary F of two masks of one image at 1 px; 1 where both are empty.

    It is the harmonic mean of the shares of either's boundary pixels that lie within 1 px of the other's.
    """
    import cv2

    boxes = np.array([box for box in (one.box, other.box) if box[2]])
    if len(boxes) < 2:
        return float(not len(boxes))
    x0, y0 = (boxes[:, :2].min(axis=0) - 2).tolist()
    x1, y1 = (boxes[:, 2:].max(axis=0) + 2).tolist()
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    windows = [mask.window(x0, y0, x1, y1) for mask in (one, other)]
    edges = [(window - cv2.erode(window, np.ones((3, 3), np.uint8))).astype(bool) for window in windows]
    near = [cv2.dilate(edge.astype(np.uint8), cross).astype(bool) for edge in edges]
    shares = [float((edges[i] & near[1 - i]).sum() / edges[i].sum()) for i in (0, 1)]
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def _disjoint(masks: Sequence[Mask]) -> list[list[int]]:
    """The masks that are not empty in as few groups as a greedy choice gives, without overlap in a group."""
    groups: list[tuple[list[int], NDArray[np.bool_]]] = []
    for i, mask in enumerate(masks):
        if mask.is_empty:
            continue
        x0, y0, x1, y1 = mask.box
        own = mask.window(x0, y0, x1, y1) > 0
        free = (each for each in groups if not (each[1][y0:y1, x0:x1] & own).any())
        group, taken = next(free, ([], np.zeros((mask.height, mask.width), bool)))
        if not group:
            groups.append((group, taken))
        group.append(i)
        taken[y0:y1, x0:x1] |= own
    return [group for group, _ in groups]


def _arcs(padded: NDArray[np.int64]) -> tuple[Arcs, NDArray[np.int64]]:
    """The arcs along pixels' edges between labels, and (arcs, 2) the labels on their two sides."""
    import shapely

    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([np.stack([x, y - 1], 1), np.stack([x, y], 1)], 1)
    y, x = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([np.stack([x - 1, y], 1), np.stack([x, y], 1)], 1)
    edges = shapely.multilinestrings(shapely.linestrings(np.concatenate([upright, level]).astype(float)))
    arcs = shapely.get_parts(shapely.line_merge(edges))
    if not len(arcs):
        return arcs, np.zeros((0, 2), np.int64)
    first, second = (shapely.get_coordinates(shapely.get_point(arcs, i)).astype(int) for i in (0, 1))
    low = np.minimum(first, second)
    is_upright = first[:, 0] == second[:, 0]
    row, column = low[:, 1] + 1, low[:, 0] + 1
    here = padded[row, column]
    there = np.where(is_upright, padded[row, column - 1], padded[row - 1, column])
    return arcs, np.stack([here, there], 1)


def _crossing(arcs: Arcs, loose: NDArray[np.bool_], order: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which arcs cross, cover or are another, cross themselves, or have shrunk to nothing.

    Of two that meet, the later in ``order`` that is still ``loose`` is named: the other may do as it is.
    """
    import shapely

    bad = ~shapely.is_simple(arcs) | (shapely.is_closed(arcs) & (shapely.get_num_coordinates(arcs) < 4))
    tree = shapely.STRtree(arcs)
    for predicate in ("crosses", "overlaps", "contains"):
        a, b = tree.query(arcs, predicate=predicate)
        a, b = a[a != b], b[a != b]
        later = np.where(order[a] > order[b], a, b)
        bad[np.where(loose[later], later, a + b - later)] = True
    return np.asarray(bad)


def _labels_of(faces: Arcs, padded: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label at a point inside of each face."""
    import shapely

    points = np.floor(shapely.get_coordinates(shapely.point_on_surface(faces))).astype(int) + 1
    rows, columns = (np.clip(points[:, i], 0, padded.shape[1 - i] - 1) for i in (1, 0))
    found: NDArray[np.int64] = padded[rows, columns]
    return found


def _lost(arcs: Arcs, sides: NDArray[np.int64], faces: Arcs, own: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which arcs bound a label whose faces are not bounded by just its arcs: told by their lengths."""
    import shapely

    known, at = np.unique(np.concatenate([sides.reshape(-1), own]), return_inverse=True)
    of_arcs, of_faces = at[: sides.size].reshape(-1, 2), at[sides.size :]
    length = np.zeros(len(known))
    np.add.at(length, of_arcs, shapely.length(arcs)[:, None])
    around = np.zeros(len(known))
    np.add.at(around, of_faces, shapely.length(faces))
    wrong = (np.abs(length - around) > 1e-6 * np.maximum(length, 1.0)) & (known != 0)
    return np.asarray(wrong[of_arcs].any(axis=1))
