"""Pixels to numbers: the table of the processor and the arithmetic of a device give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bpr_service.network.normalise import IMAGE_MEAN, IMAGE_STD, normalise, normalise_tensor

EVERY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1).reshape(4, 8, 8, 4)


def test_every_value_of_every_channel() -> None:
    out = normalise(EVERY)
    assert out.shape == (4, 4, 8, 8)
    assert out.dtype == np.float32
    assert torch.from_numpy(out).is_contiguous(memory_format=torch.channels_last)
    value = EVERY.astype(np.float64).transpose(0, 3, 1, 2)
    mean = 255 * np.array([*IMAGE_MEAN, 0.5])[:, None, None]
    std = 255 * np.array([*IMAGE_STD, 0.5])[:, None, None]
    np.testing.assert_allclose(out, (value - mean) / std, rtol=1e-6, atol=1e-6)
    assert (out[:, 3].min(), out[:, 3].max()) == (-1, 1)


def test_it_is_the_arithmetic_of_a_device_to_the_last_bit() -> None:
    mean = torch.tensor([*(255 * m for m in IMAGE_MEAN), 127.5])
    std = torch.tensor([*(255 * s for s in IMAGE_STD), 127.5])
    every = torch.from_numpy(EVERY)
    there = ((every.float() - mean) / std).permute(0, 3, 1, 2)
    assert torch.equal(torch.from_numpy(normalise(EVERY)), there)
    assert torch.equal(normalise_tensor(every), there)


@pytest.mark.parametrize("patches", [EVERY[:0], EVERY[:, ::2, 1:], EVERY[1:2]], ids=["none", "a view", "one"])
def test_any_number_and_layout(patches: np.ndarray) -> None:
    np.testing.assert_array_equal(normalise(patches), normalise(patches.copy()))
    assert normalise(patches).shape == (len(patches), 4, *patches.shape[1:3])
    same = normalise_tensor(torch.from_numpy(patches))
    np.testing.assert_array_equal(same.numpy(), normalise(patches))
