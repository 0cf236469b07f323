"""The device a model runs on, by name; what is asked for is there, or an error says so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bpr_service.errors import DeviceError

if TYPE_CHECKING:
    import torch


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a processor always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def resolve_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` (the first one) or ``cuda:N`` as a `torch.device`.

    Raises :class:`DeviceError` when the name is not one of these or the device is not there; there is no
    fallback.
    """
    import torch

    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if match is None:
        raise DeviceError("unknown device", expected="cpu, cuda or cuda:N", got=repr(str(name)), fix="use device='cpu'")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match.group(1) or 0)
    if index >= count:
        there = f"{count} CUDA device{'s' if count != 1 else ''}"
        raise DeviceError(
            f"device {name} is not there",
            expected=f"at least {index + 1} CUDA device{'s' if index else ''}",
            got=there,
            fix="use device='cpu'" if count == 0 else f"use one of cuda:0 to cuda:{count - 1}",
        )
    return torch.device("cuda", index)
