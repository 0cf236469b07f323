"""What is asked of an object store at once."""

from __future__ import annotations

from bpr_service.storage.object_store import GAP_BYTES, merged


def test_neighbours_are_one_request() -> None:
    far = GAP_BYTES + 10
    assert merged([(0, 4), (4, 6), (20, 5), (25 + far, 3)]) == [(0, 25), (25 + far, 3)]
    assert merged([]) == []
