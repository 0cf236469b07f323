"""A device that is asked for is there, or an error says so."""

from __future__ import annotations

import pytest
import torch

from bpr_service.errors import DeviceError
from bpr_service.network.devices import resolve_device


def test_cpu() -> None:
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "cpu:0", "cuda:x"])
def test_unknown(name: str) -> None:
    with pytest.raises(DeviceError, match="expected cpu, cuda or cuda:N"):
        resolve_device(name)


def test_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"cuda is not there.*device='cpu'"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(DeviceError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")
