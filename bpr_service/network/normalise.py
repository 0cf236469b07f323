"""What a refinement network sees of a patch: the one place where pixels become numbers, in training and in serving.

Shapes: P patches of S x S px.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpr_service.kernel import kernel

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
_MEAN = (*(255 * m for m in IMAGE_MEAN), 127.5)
_STD = (*(255 * s for s in IMAGE_STD), 127.5)


def normalise(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(P, S, S, 4) uint8 RGB + mask -> (P, 4, S, S) float32, in channels-last memory: a view, nothing is moved.

    RGB is scaled by ImageNet's mean and deviation, the mask from 0..255 to [-1, 1] (Tang et al., CVPR 2021, 3.3).
    """
    out = np.empty(patches.shape, np.float32)
    _look_up(np.ascontiguousarray(patches).reshape(-1, 4), _table(), out.reshape(-1, 4))
    return out.transpose(0, 3, 1, 2)


def normalise_tensor(patches: Tensor) -> Tensor:
    """`normalise` of a tensor, on its device and to the same bits."""
    import torch

    if patches.device.type == "cpu":
        return torch.from_numpy(normalise(patches.numpy()))
    mean, std = _scale(str(patches.device))
    return ((patches.float() - mean) / std).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _scale(device: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the four channels, there once: copying them to a device would wait for it."""
    import torch

    with torch.inference_mode(False):
        return torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float32]:
    """(256, 4) float32: what each value of each channel becomes, to the last bit what a device computes."""
    values = np.arange(256, dtype=np.float32)[:, None]
    return np.asarray((values - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32), np.float32)


@kernel
def _look_up(pixels: NDArray[np.uint8], table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """(n, 4) uint8 -> (n, 4) float32, one pass: a quarter of the time of torch's three."""
    for i in range(pixels.shape[0]):
        for channel in range(4):
            out[i, channel] = table[pixels[i, channel], channel]
