"""The fit of the audit's model of suspicion: data sets put together from measured masks, and a perceptron over them.

Letters: n masks, M measures, v virtual data sets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpr_service.audit.kinds import ESTIMATED
from bpr_service.audit.measures import INPUTS
from bpr_service.audit.suspicion import WRONG_BOUNDARY_F, WRONG_IOU, Judge, Judged, Usual
from bpr_service.network.weights import AuditCard

F32 = NDArray[np.float32]

RATES = (0.02, 0.05, 0.1, 0.1, 0.1, 0.1, 0.2, 0.4)
"""Shares of wrong masks in the virtual data sets, each drawn once of every domain; their middle is a tenth."""
COARSE_SHARE = 0.6
"""Of the wrong masks, how many are coarse or a network's; the others have one injected error."""
HIDDEN_UNITS, SEEDS, STEPS = 32, 3, 300


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Measured masks: (n, M) inputs, what is known of each, and (n, 3) wrong, IoU, boundary F."""

    inputs: F32
    told: list[dict[str, Any]]
    truth: F32
    domain: NDArray[np.str_]
    kind: NDArray[np.str_]
    group: NDArray[np.str_]

    def take(self, which: NDArray[np.bool_]) -> Rows:
        """Some of the masks."""
        told = [row for row, wanted in zip(self.told, which, strict=True) if wanted]
        return Rows(
            self.inputs[which], told, self.truth[which], self.domain[which], self.kind[which], self.group[which]
        )


def load(path: Path) -> Rows:
    """The rows that were collected. Raises `SystemExit` where they are of other measures."""
    saved = np.load(path)
    names = json.loads(str(saved["names"]))
    if not set(INPUTS) <= set(names):
        raise SystemExit(f"{path}: measured by another version; collect again")
    told = json.loads(str(saved["rows"]))
    iou, f2 = (np.array([row[key] for row in told], np.float32) for key in ("iou", "f2"))
    truth = np.stack([(iou < WRONG_IOU) | (f2 < WRONG_BOUNDARY_F), iou, f2], 1).astype(np.float32)
    domain, kind, group = (np.array([row[key] for row in told]) for key in ("domain", "kind", "group"))
    return Rows(
        saved["inputs"][:, [names.index(name) for name in INPUTS]].astype(np.float32), told, truth, domain, kind, group
    )


def shares(rows: Rows, rate: float) -> NDArray[np.float64]:
    """(n,) weight of each mask in a data set of the rows in which a share `rate` is not exact; the sum is 1."""
    exact, coarse = rows.kind == "exact", rows.kind == "coarse"
    parts = ((exact, 1 - rate), (coarse, rate * COARSE_SHARE), (~(exact | coarse), rate * (1 - COARSE_SHARE)))
    weights = np.zeros(len(rows.kind))
    for which, share in parts:
        if which.any():
            weights[which] = share / which.sum()
    return weights / weights.sum()


def virtual_sets(judge: Judge, rows: Rows, rng: np.random.Generator) -> tuple[F32, NDArray[np.int64], F32]:
    """What the perceptron sees of the masks in every virtual set, the masks' numbers, and their weights."""
    seen, number, weight = [], [], []
    for domain in np.unique(rows.domain):
        here = np.flatnonzero(rows.domain == domain)
        of_domain = rows.take(rows.domain == domain)
        for rate in RATES:
            share = shares(of_domain, rate)
            drawn = rng.choice(len(here), int(rng.integers(30, 400)), p=share)
            seen.append(judge.table(of_domain.inputs, judge.usual(of_domain.inputs[drawn])))
            number.append(here)
            weight.append(share * np.sqrt(len(here)))
    weights = np.concatenate(weight)
    return np.concatenate(seen), np.concatenate(number), (weights / weights.mean()).astype(np.float32)


def fitted(rows: Rows, seed: int = 0) -> dict[str, Any]:
    """The fields of an `AuditCard`: several perceptrons side by side as one."""
    import torch

    # the middle of what is right stands for a data set of which little is known
    exact = rows.inputs[rows.kind == "exact"]
    mean, scale = np.median(exact, 0), 1.4826 * np.median(np.abs(exact - np.median(exact, 0)), 0)
    scale = np.maximum(scale, 0.25 * rows.inputs.std(0)) + 1e-3
    wide = 2 * len(INPUTS)
    bare = AuditCard(
        inputs=list(INPUTS), kinds=list(ESTIMATED), mean=mean.tolist(), scale=scale.tolist(),
        hidden=np.zeros((wide + 1, 1)).tolist(), out=np.zeros((2, 3 + len(ESTIMATED))).tolist(),
    )  # fmt: skip
    x, number, weight = virtual_sets(Judge(bare), rows, np.random.default_rng(seed))
    given, wanted = torch.from_numpy(x), torch.from_numpy(rows.truth[number])
    weighed = torch.from_numpy(weight)
    which = np.array([ESTIMATED.index(kind) if kind in ESTIMATED else -1 for kind in rows.kind.tolist()])[number]
    kind = torch.from_numpy(which)
    hidden, out = [], []
    for k in range(SEEDS):
        one, two = _perceptron(given, wanted, weighed, kind, seed + k)
        hidden.append(one)
        out.append(two / SEEDS)
    together = np.concatenate([*(o[:-1] for o in out), sum(o[-1:] for o in out)])
    return {
        "inputs": list(INPUTS),
        "kinds": list(ESTIMATED),
        "mean": _rounded(mean),
        "scale": _rounded(scale),
        "hidden": _rounded(np.concatenate(hidden, 1)),
        "out": _rounded(together),
    }


def _perceptron(given: Any, wanted: Any, weight: Any, kind: Any, seed: int) -> tuple[F32, F32]:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, dropout

    torch.manual_seed(seed)
    first = torch.nn.Linear(given.shape[1], HIDDEN_UNITS)
    second = torch.nn.Linear(HIDDEN_UNITS, 3 + len(ESTIMATED))
    optimiser = torch.optim.AdamW([*first.parameters(), *second.parameters()], 6e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    named = kind >= 0
    for _ in range(STEPS):
        part = torch.randint(0, len(given), (2048,))
        x, y, w, k, n = given[part], wanted[part], weight[part], kind[part], named[part]
        answer = second(dropout(torch.tanh(first(x + 0.15 * torch.randn_like(x))), 0.1))
        wrong = binary_cross_entropy_with_logits(answer[:, 0], y[:, 0], reduction="none")
        close = (torch.sigmoid(answer[:, 1:3]) - y[:, 1:]).abs().sum(1)
        loss = ((wrong + 3.0 * close) * w).mean() + 0.2 * cross_entropy(answer[n, 3:], k[n])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return tuple(torch.cat((layer.weight.T, layer.bias[None])).numpy() for layer in (first, second))  # type: ignore[return-value]


def _rounded(values: Any) -> list[Any]:
    out: list[Any] = np.round(np.asarray(values, np.float64), 4).tolist()
    return out


def usual_of(judge: Judge, rows: Rows, rate: float, seed: int = 0) -> Usual:
    """What is usual in a data set of the rows in which a share `rate` is not exact."""
    rng = np.random.default_rng(seed)
    return judge.usual(rows.inputs[rng.choice(len(rows.kind), 1000, p=shares(rows, rate))])


# ---- figures --------------------------------------------------------------------------------------------------------

RATE = 0.1
"""Share of masks that are not exact, in the figures."""
BIG_PX = 48


def judged_by(card: dict[str, Any], rows: Rows) -> Judged:
    """What is thought of the rows of a domain, as a data set with `RATE` of its masks not exact."""
    judge = Judge(AuditCard(**card))
    return judge(rows.inputs, usual_of(judge, rows, RATE))


def auroc(positive: NDArray[np.bool_], score: F32) -> float:
    """Area under the ROC curve; NaN where there is nothing to tell apart."""
    from scipy.stats import rankdata

    n, k = len(score), int(positive.sum())
    return float((rankdata(score)[positive].sum() - k * (k + 1) / 2) / (k * (n - k))) if 0 < k < n else float("nan")


def shown(rows: Rows, answers: list[tuple[NDArray[np.bool_], Judged]]) -> str:
    """A line of figures; `answers`: which rows, and what is thought of all, by each fit."""
    suspicion, iou = np.zeros((2, len(rows.told)), np.float32)
    likely = np.zeros((len(rows.told), len(ESTIMATED)), np.float32)
    for which, found in answers:
        suspicion[which], iou[which] = found.suspicion[which], found.iou[which]
        likely[which] = (found.suspicion[:, None] * found.kinds)[which]
    exact, coarse = rows.kind == "exact", (rows.kind == "coarse") & (rows.truth[:, 1] < WRONG_IOU)
    weight = exact * (1 - RATE) / max(exact.sum(), 1) + coarse * RATE / max(coarse.sum(), 1)
    order = np.argsort(-suspicion)
    top = order[np.cumsum(weight[order]) <= 0.05]
    precision = (weight[top] * coarse[top]).sum() / max(weight[top].sum(), 1e-9)
    share = shares(rows, RATE)
    bins = np.minimum((suspicion * 10).astype(int), 9)
    off = sum(abs((share * (suspicion - rows.truth[:, 0]))[bins == k].sum()) for k in range(10))
    error = float((share * np.abs(iou - rows.truth[:, 1])).sum())
    big = np.array([row["size"] >= BIG_PX for row in rows.told])
    each = []
    for k, kind in enumerate(ESTIMATED):
        mine = (rows.kind == kind) & big
        among = mine | (exact & big)
        each.append(f"{kind} {auroc(mine[among], likely[among, k]):.2f}" if mine.sum() > 3 else "")
    both = exact | coarse
    return (
        f"masks {both.sum()}, AUROC {auroc(coarse[both], suspicion[both]):.3f}, precision at 5 % {precision:.2f}, "
        f"IoU off {error:.3f}, calibration off {off:.3f}; " + ", ".join(filter(None, each))
    )
