"""Arcs with as few corners as a distance allows, where corners need not be points of the arc.

A line through the middle of a staircase of pixels strays half a pixel from it, one through its corners nearly a whole
one. So new corners are chosen among places around the arc's points, the fewest that keep the promise, by dynamic
programming over them (Imai and Iri 1988; whether a stretch of the arc lies near a segment: Chan and Chin 1996). Where
arcs meet, all of them vote for the place of their common end.

Letters: n points of an arc; k places where a corner may be in place of each; m arcs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

Points = NDArray[np.float64]
_ANGLES = np.arange(16) * (np.pi / 8)
_OFFSETS = np.concatenate([[(0.0, 0.0)], 0.99 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)])
"""Where a corner may be in place of a point, as shares of the distance: there, and around it. More places or circles
bring a tenth of a percent fewer corners for twice to four times the time."""
_REACH = 512
"""Points that one new edge may pass: bounds the work."""
_SURE = 1 - 1e-9


@kernel
def _error(points: Points, sums: Points, i: int, j: int, q: Points, ex: float, ey: float) -> float:
    """The squared distances of points i to j from the line through q along (ex, ey), summed, times its length^2."""
    x, y, xx, xy, yy = sums[j + 1] - sums[i]
    n = j + 1 - i
    ox, oy = q[0] - points[0, 0], q[1] - points[0, 1]
    across = yy - 2 * oy * y + n * oy * oy
    along = xx - 2 * ox * x + n * ox * ox
    both = xy - ox * y - oy * x + n * ox * oy
    return float(ey * ey * along + ex * ex * across - 2 * ex * ey * both)


@kernel
def _none_beyond(points: Points, i: int, j: int, end: Points, ex: float, ey: float, tolerance: float) -> bool:
    """Whether every point i to j that lies beyond ``end`` in the direction (ex, ey) is near it."""
    for m in range(i, j):
        x, y = points[m, 0] - end[0], points[m, 1] - end[1]
        if x * ex + y * ey > 0 and x * x + y * y > tolerance * tolerance:
            return False
    return True


@kernel
def _cheapest(
    points: Points, places: Points, tolerance: float, reach: int, cost: Points, before: NDArray[np.int64]
) -> None:
    """Fill `cost` and `before` (n * k) of the best way from the first place of point 0 to all `places` (n, k, 2).

    An edge costs 1, and a little for its squared distances (px^2), so that of as many the nearest are taken. It leads
    from a place q of point i to one of point j where points i to j lie within `tolerance` of it: the directions from q
    that pass near all of them are a wedge, and none may lie beyond the end.
    """
    n, k = places.shape[:2]
    sums = np.zeros((n + 1, 5))
    for i in range(n):
        x, y = points[i, 0] - points[0, 0], points[i, 1] - points[0, 1]
        for c, value in enumerate((x, y, x * x, x * y, y * y)):
            sums[i + 1, c] = sums[i, c] + value
    cost[:], before[:] = np.inf, -1
    cost[0] = 0.0
    for at in range((n - 1) * k):
        if cost[at] == np.inf:
            continue
        i = at // k
        q = places[i, at - i * k]
        bounded, farthest = False, 0.0
        lx, ly, rx, ry = 0.0, 0.0, 0.0, 0.0  # the wedge's left and right
        for j in range(i + 1, min(n, i + reach + 1)):
            for b in range(k):
                to = j * k + b
                ex, ey = places[j, b, 0] - q[0], places[j, b, 1] - q[1]
                length2 = ex * ex + ey * ey
                if length2 < 1e-12 or cost[at] + 1.0 >= cost[to]:
                    continue
                if bounded and (rx * ey < ry * ex or ex * ly < ey * lx or ex * (lx + rx) + ey * (ly + ry) <= 0.0):
                    continue
                if farthest > length2 and not _none_beyond(points, i + 1, j, places[j, b], ex, ey, tolerance):
                    continue
                new = cost[at] + 1.0 + 1e-4 * _error(points, sums, i, j, q, ex, ey) / length2
                if new < cost[to]:
                    cost[to], before[to] = new, at
            px, py = points[j, 0] - q[0], points[j, 1] - q[1]
            away2 = px * px + py * py
            farthest = max(farthest, away2)
            if away2 <= tolerance * tolerance:
                continue
            tangent = np.sqrt(away2 - tolerance * tolerance)
            ux, uy = px * tangent - py * tolerance, py * tangent + px * tolerance
            vx, vy = px * tangent + py * tolerance, py * tangent - px * tolerance
            if not bounded:
                bounded, lx, ly, rx, ry = True, ux, uy, vx, vy
                continue
            if px * (lx + rx) + py * (ly + ry) <= 0.0:
                break
            if ux * ly >= uy * lx:
                lx, ly = ux, uy
            if vx * ry <= vy * rx:
                rx, ry = vx, vy
            if rx * ly < ry * lx:
                break


class _Ways:
    """The best ways along points (n, 2) from one place to every place around the last point.

    Attributes:
        places: (n, k, 2) where a corner may be.
        cost: (k,) of the best way to each place of the last point.
    """

    def __init__(self, points: Points, start: Points, tolerance: float, frame: tuple[Points, Points]) -> None:
        self.places = np.clip(points[:, None] + tolerance * _OFFSETS, *frame)
        self.places[0] = start
        size = len(points) * len(_OFFSETS)
        cost, self._before = np.empty(size), np.empty(size, np.int64)
        _cheapest(points, self.places, tolerance, _REACH, cost, self._before)
        self.cost = cost[-len(_OFFSETS) :]

    def corners(self, end: int) -> tuple[Points, NDArray[np.int64]]:
        """(c, 2) corners of the way to place ``end`` of the last point, and the point that each is in place of."""
        n, k = self.places.shape[:2]
        way = [(n - 1) * k + end]
        while self._before[way[-1]] >= 0:
            way.append(int(self._before[way[-1]]))
        at = np.array([0, *way[-2::-1]])
        return self.places[at // k, at % k], at // k

    def to(self, end: Points) -> tuple[Points, NDArray[np.int64]]:
        """`corners` to the place where ``end`` is."""
        return self.corners(int(np.abs(self.places[-1] - end).sum(axis=1).argmin()))


class FewCorners:
    """Arcs with few corners, whose common ends stay common; `tighten` those that turn out to cross others.

    Args:
        arcs: (n, 2) corners x, y of each, px, n of 2 or more; a closed one ends where it begins.
        tolerance_px: no point of an arc is farther from its new line, and none of the line from the arc.
        frame: x, y of its left top and of its right bottom; new corners are inside.
    """

    def __init__(self, arcs: Sequence[Points], tolerance_px: float, frame: tuple[Points, Points]) -> None:
        self._arcs, self._frame = arcs, frame
        self._points = [_with_middles(arc) for arc in arcs]
        self._whole = tolerance_px * _SURE
        self._tolerance = np.full(len(arcs), self._whole)
        ends = np.array([(arc[0], arc[-1]) for arc in arcs]).reshape(-1, 2)
        self._old_ends, at = np.unique(ends, axis=0, return_inverse=True)
        self._ends, self._end_of = self._old_ends.copy(), at.reshape(-1, 2)
        self._arcs_at: list[list[int]] = [[] for _ in self._ends]
        for i, both in enumerate(self._end_of.tolist()):
            for end in set(both):
                self._arcs_at[end].append(i)
        self.corners: list[Points] = list(arcs)
        for end in range(len(self._ends)):
            self._vote(end)

    @property
    def loose(self) -> NDArray[np.bool_]:
        """(m,) whether an arc is not yet as it was."""
        return self._tolerance > 0

    def tighten(self, wrong: NDArray[np.bool_]) -> bool:
        """Halve the distance of arcs that are ``wrong`` (m,), then leave them as they were; their ends go back.

        Returns:
            Whether there was anything left to tighten.
        """
        again: set[int] = set()
        for i in np.flatnonzero(wrong & self.loose).tolist():
            self._tolerance[i] = self._whole / 2 if self._tolerance[i] == self._whole else 0.0
            for end in self._end_of[i].tolist():
                self._ends[end] = self._old_ends[end]
                again.update(self._arcs_at[end])
        for i in again:
            self._solve(i)
        return bool(again)

    def _vote(self, end: int) -> None:
        """Move the end that arcs share to where they have the fewest corners, their other ends as they lie now."""
        is_first = {i: self._end_of[i, 0] == end for i in self._arcs_at[end]}
        closed = [i for i in is_first if self._end_of[i, 0] == self._end_of[i, 1]]
        ways = {i: self._ways(i, backwards=first) for i, first in is_first.items() if i not in closed}
        if ways:
            best = int(np.sum([way.cost for way in ways.values()], axis=0).argmin())
            self._ends[end] = next(iter(ways.values())).places[-1, best]
        for i, way in ways.items():
            self.corners[i] = way.corners(best)[0][:: -1 if is_first[i] else 1]
        for i in closed:
            self._solve(i)

    def _ways(self, i: int, *, backwards: bool = False) -> _Ways:
        points, start = self._points[i], self._ends[self._end_of[i, int(backwards)]]
        return _Ways(points[::-1].copy() if backwards else points, start, self._tolerance[i], self._frame)

    def _solve(self, i: int) -> None:
        """The corners of an arc between its ends as they lie now."""
        first, last = self._end_of[i]
        if not self._tolerance[i]:
            self.corners[i] = self._arcs[i]
        elif first == last and len(self._arcs_at[first]) == 1:
            self.corners[i] = self._ring(self._points[i], self._tolerance[i])
        else:
            self.corners[i] = self._ways(i).to(self._ends[last])[0]

    def _ring(self, points: Points, tolerance: float) -> Points:
        """The corners of a closed arc, which begins nowhere in particular: the second try, at a corner of the first."""
        corners, at = _Ways(points, points[0], tolerance, self._frame).to(points[0])
        start, turn = corners[len(at) // 2], at[len(at) // 2]
        turned = np.concatenate([points[turn:-1], points[: turn + 1]])
        again = _Ways(turned, start, tolerance, self._frame).to(start)[0]
        return again if len(again) <= len(corners) else corners


def _with_middles(arc: Points) -> Points:
    """(2 n - 1, 2) corners of an arc and the middles between them."""
    points = np.empty((2 * len(arc) - 1, 2))
    points[0::2], points[1::2] = arc, (arc[:-1] + arc[1:]) / 2
    return points
