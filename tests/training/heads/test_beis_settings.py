"""BEIS: where its features come from, and what processes share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed

from tests.training.heads.test_beis import make_head, make_rois, step


@pytest.mark.parametrize("sources", ["pyramid", "finest"])
def test_one_source_of_features(sources: Any) -> None:
    head, rois = make_head(sources=sources), make_rois()
    assert len(head.spec.poolers) == 1
    losses = step(head, rois)
    assert all(torch.isfinite(value) for value in losses.values())


def test_processes_share_their_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, played one after the other: both write what both saw."""
    from refiner_training.heads import beis_contrast

    seen = [(torch.full((1, 2), float(rank)),) * 7 for rank in (0, 1)]

    def gather(into: list[Any], own: Any) -> None:
        into[:] = [[seen[0]], [seen[1]]]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    for rank in (0, 1):
        found = beis_contrast._of_all_processes([seen[rank]])
        assert [float(entry[0][0, 0]) for entry in found] == [0, 1]
