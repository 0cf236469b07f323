"""The owner of a device: what it is asked is answered, also when it has ended."""

from __future__ import annotations

import threading

import pytest

from bpr_service.errors import NotReadyError
from bpr_service.runtime.device import DeviceOwner


def test_what_is_queued_before_the_end_runs_and_what_comes_later_is_refused() -> None:
    owner, go = DeviceOwner(), threading.Event()
    owner.start()
    first = owner.call(lambda: go.wait(60))
    second = owner.call(lambda: 2)
    owner.stop(0)
    late = owner.call(lambda: 3)
    go.set()
    assert (first.result(60), second.result(60)) == (True, 2)
    with pytest.raises(NotReadyError, match="stopping"):
        late.result(0)
