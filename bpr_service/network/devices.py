"""The device a model runs on, by name; what is asked for is there, or an error says so.

A device is its name everywhere: ``cpu`` or ``cuda:N``. What lies in the processor's memory is an array, what lies in
another device's memory a tensor; a plain install has no torch, and needs none where nothing but arrays is computed on.
"""

from __future__ import annotations

import os
import re
import sys
from types import ModuleType

from bpr_service.errors import ConfigError, DeviceError

_threads = 0


def torch_for(what: str) -> ModuleType:
    """The package torch; :class:`ConfigError` says that `what` needs it where it is not installed."""
    try:
        import torch
    except ImportError:
        raise ConfigError(
            what, expected="torch", got="no such package", fix="install it: pip install 'bpr-service[torch]'"
        ) from None
    return torch


def wait_for(device: str) -> None:
    """Until the device has done what it was given; a processor always has."""
    if device != "cpu":
        torch_for(f"device {device}").cuda.synchronize(device)


def resolve_device(name: str) -> str:
    """``cpu``, ``cuda`` (the first one) or ``cuda:N`` as ``cpu`` or ``cuda:N``.

    Raises:
        DeviceError: the name is not one of these or the device is not there; there is no fallback.
        ConfigError: a CUDA device without torch.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(name))
    if match is None:
        raise DeviceError("unknown device", expected="cpu, cuda or cuda:N", got=repr(str(name)), fix="use device='cpu'")
    if name == "cpu":
        return "cpu"
    torch = torch_for(f"device {name}")
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
    return f"cuda:{index}"


def set_threads(count: int) -> None:
    """Let networks on the CPU, opened from now on, use `count` threads."""
    global _threads
    _threads = count
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


def threads() -> int:
    """Threads of a network on the CPU: what was set, here or in torch, else one for each core this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    return _threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
