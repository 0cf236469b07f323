"""Figures of the audit from left-out answers: how often a named kind is right, and a reliability diagram.

Letters: n masks, K kinds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from audit_fit import RATE, Rows, shares
from numpy.typing import NDArray

from bpr_service.audit.kinds import ESTIMATED

F32 = NDArray[np.float32]
PHOTOGRAPHS = ("ccp", "bsds", "camvid", "davis", "penn", "carparts", "cwfid", "wbc")
"""Domains whose suspicion is of use: kinds and the diagram are of these."""
GRID = np.arange(0.2, 0.96, 0.05)
BETA = 0.5
"""A kind that is named wrongly costs more than one that is not named."""
BINS = 10


def saved(path: Path, rows: Rows) -> tuple[F32, F32]:
    """(n,) suspicion and (n, K) kinds, each by a fit that did not see the domain (home: the picture)."""
    answers = np.load(path)
    if len(answers["suspicion"]) != len(rows.told):
        raise SystemExit(f"{path}: answers about other rows; run report again")
    return answers["suspicion"], answers["kinds"]


def _weights(rows: Rows, domains: list[str]) -> NDArray[np.float64]:
    """Weights of a data set of these domains in which `RATE` of the masks have one injected error."""
    weights = np.zeros(len(rows.kind))
    for domain in domains:
        here = rows.domain == domain
        for which, share in ((rows.kind == "exact", 1 - RATE), (np.isin(rows.kind, ESTIMATED), RATE)):
            weights[here & which] = share / max(int((here & which).sum()), 1) / len(domains)
    return weights


def _rates(named: NDArray[np.bool_], right: NDArray[np.bool_], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Precision and recall."""
    hit = float(weights[named & right].sum())
    return hit / max(float(weights[named].sum()), 1e-9), hit / max(float(weights[right].sum()), 1e-9)


def _best(rows: Rows, likely: F32, domains: list[str], kind: int) -> float:
    """The threshold of a kind with the best F-measure on some domains."""
    weights, right = _weights(rows, domains), rows.kind == ESTIMATED[kind]
    found = [_rates(likely[:, kind] >= at, right, weights) for at in GRID]
    return float(GRID[int(np.argmax([(1 + BETA**2) * p * r / max(BETA**2 * p + r, 1e-9) for p, r in found]))])


def kinds_table(rows: Rows, suspicion: F32, kinds: F32, shipped: dict[str, float]) -> list[str]:
    """Lines of Markdown: of each kind how often it is right, by the other domains' thresholds and by the `shipped`."""
    likely = suspicion[:, None] * kinds
    domains = [name for name in PHOTOGRAPHS if (rows.domain == name).any()]
    weights = _weights(rows, domains)
    named = np.zeros(likely.shape, np.bool_)
    for domain in domains:
        here = rows.domain == domain
        limits = [
            _best(rows, likely, [other for other in domains if other != domain], k) for k in range(len(ESTIMATED))
        ]
        named[here] = (likely >= limits)[here]
    by_package = likely >= [shipped[kind] for kind in ESTIMATED]
    lines = [
        "| kind | chosen on the other domains: precision, recall | from | precision, recall |",
        "|---|---|---|---|",
    ]
    for k, kind in enumerate(ESTIMATED):
        right = rows.kind == kind
        cells = [_rates(which[:, k], right, weights) for which in (named, by_package)]
        left_out, own = (f"{precision:.2f}, {recall:.2f}" for precision, recall in cells)
        lines.append(f"| {kind} | {left_out} | {shipped[kind]:.2f} | {own} |")
    exact = (rows.kind == "exact") & (weights > 0)
    for name, which in (("chosen on the other domains", named), ("the package's", by_package)):
        share = float(weights[exact & which.any(1)].sum() / weights[exact].sum())
        lines.append(f"right masks with a kind named, {name}: {share:.1%}")
    best = [f"{kind} {_best(rows, likely, domains, k):.2f}" for k, kind in enumerate(ESTIMATED)]
    return [*lines, "best on all: " + ", ".join(best)]


def reliability(rows: Rows, suspicion: F32) -> tuple[list[tuple[float, float, float]], float]:
    """Mean suspicion, share of wrong masks and share of all masks of each bin, and the calibration error.

    Over the domains of photographs, each a data set with `RATE` of its masks not exact.
    """
    domains = [name for name in PHOTOGRAPHS if (rows.domain == name).any()]
    weights = np.zeros(len(rows.kind))
    for domain in domains:
        here = rows.domain == domain
        weights[here] = shares(rows.take(here), RATE) / len(domains)
    which = np.minimum((suspicion * BINS).astype(int), BINS - 1)
    points, error = [], 0.0
    for k in range(BINS):
        share = float(weights[which == k].sum())
        if share <= 0:
            continue
        said, true = (float((weights * v)[which == k].sum() / share) for v in (suspicion, rows.truth[:, 0]))
        points.append((said, true, share))
        error += share * abs(said - true)
    return points, error


def diagram(points: list[tuple[float, float, float]], error: float) -> str:
    """The reliability diagram as SVG."""
    side, edge = 320, 48

    def at(x: float, y: float) -> tuple[float, float]:
        return edge + x * side, edge / 2 + (1 - y) * side

    def text(x: float, y: float, words: str, **more: Any) -> str:
        options = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
        return f'<text x="{x:.0f}" y="{y:.0f}"{options}>{words}</text>'

    size = side + edge + edge // 2
    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}" height="{size}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{size}" height="{size}" fill="#fff"/>',
        f'<rect x="{x0}" y="{y1}" width="{side}" height="{side}" fill="none" stroke="#bbb"/>',
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#999" stroke-dasharray="4 4"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, tick)
        parts.append(text(x, y0 + 16, f"{tick:g}", text_anchor="middle"))
        parts.append(text(x0 - 8, y + 4, f"{tick:g}", text_anchor="end"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(said, true) for said, true, _ in points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0f5c63" stroke-width="2"/>')
    for said, true, share in points:
        x, y = at(said, true)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 14 * share**0.5:.1f}" fill="#0f5c63" opacity=".6"/>')
    parts.append(text(x0 + side / 2, y0 + 34, "suspicion", text_anchor="middle"))
    middle = y1 + side / 2
    parts.append(
        text(14, middle, "share of wrong masks", text_anchor="middle", transform=f"rotate(-90 14 {middle:.0f})")
    )
    parts.append(text(x0 + 10, y1 + 18, f"calibration error {error:.3f}"))
    return "\n".join([*parts, "</svg>", ""])
