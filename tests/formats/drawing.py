"""What samples show.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

H, W = 40, 52


def ring(y: int, x: int, size: int = 14) -> np.ndarray:
    """A square with a hole and a second part at the right."""
    array = np.zeros((H, W), np.uint8)
    array[y : y + size, x : x + size] = 1
    array[y + 4 : y + 8, x + 4 : x + 9] = 0
    array[y : y + 5, x + size + 2 : x + size + 6] = 1
    return array


def disc(y: int, x: int, radius: int = 9) -> np.ndarray:
    ys, xs = np.mgrid[:H, :W]
    return ((ys - y) ** 2 + (xs - x) ** 2 <= radius**2).astype(np.uint8)


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (H, W, 3), np.uint8)).save(path)
