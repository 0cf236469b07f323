"""A served segmenter: an ONNX file that finds instances in a picture, and the card that says what it is.

`bpr-train export-segmenter` writes both. Letters: n instances, g_h x g_w cells of a mask grid, H and W the picture's
height and width in px.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bpr_service.config import Settings, build
from bpr_service.errors import ConfigError, FormatError, ModelError
from bpr_service.masks.mask import Mask

NETWORK, CARD = "segmenter.onnx", "card.json"
OUTPUTS = ("boxes", "labels", "scores", "grids", "rects")
BYTES_A_PX = 1536
"""What the network takes at most for each pixel of its input: its widest maps, some at a time, in float32."""
F32 = NDArray[np.float32]


class SegmenterCard(Settings):
    """What a segmenter is.

    Attributes:
        task: what it segments; instance segmenters are served.
        class_ids, class_names: of its labels from 1, in order.
        min_size_px, max_size_px: the shorter side of its input, and what the longer one is never over.
        sha256: of the ONNX file.
    """

    kind: Literal["segmenter"] = "segmenter"
    name: str
    arch: str
    head: str
    task: Literal["instance", "semantic"]
    class_ids: tuple[int, ...] = Field(min_length=1)
    class_names: tuple[str, ...] = Field(min_length=1)
    min_size_px: int = Field(ge=1)
    max_size_px: int = Field(ge=1)
    sha256: str

    @property
    def version(self) -> str:
        """The first digits of the file's hash."""
        return self.sha256[:8]

    def input_pixels(self, height: int, width: int) -> int:
        """Pixels of the network's input for an (H, W) picture."""
        scale = min(self.min_size_px / min(height, width), self.max_size_px / max(height, width))
        return round(height * scale) * round(width * scale)


@dataclass(frozen=True, slots=True)
class Found:
    """One instance: its mask, its class, and how sure the segmenter is."""

    mask: Mask
    category_id: int
    category: str
    score: float


class Segmenter:
    """One segmenter on the CPU; one picture at a time, so that its memory is bounded."""

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        """Load the network of ``folder``, or of ``folder/segmenter``.

        Raises:
            FormatError: no export there.
            ModelError: a card or a network that is none, is another one's, or that the runtime cannot hold.
            ConfigError: onnxruntime is missing, or the segmenter makes label maps.
        """
        folder = next((each for each in (folder, folder / "segmenter") if (each / CARD).is_file()), folder)
        self.card, data = read_export(folder)
        if self.card.task != "instance":
            raise ConfigError(
                f"segmenter {folder}",
                expected="one that finds instances",
                got=f"{self.card.arch}, which makes label maps",
                fix="bpr-train predict writes its label maps, bpr batch semantic refines them",
            )
        self._session = open_session(data, str(folder / NETWORK))
        self._lock = threading.Lock()

    def taken_bytes(self, height: int, width: int) -> int:
        """What segmenting an (H, W) picture takes, at most."""
        return BYTES_A_PX * self.card.input_pixels(height, width) + 16 * height * width

    def segment(
        self, image: NDArray[np.uint8], *, min_score: float = 0.0, check: Callable[[], None] = lambda: None
    ) -> list[Found]:
        """The instances of a picture, best first; masks without a pixel are left out.

        Args:
            image: (H, W, 3) RGB.
            min_score: instances that score less are left out.
            check: called while another picture is worked on, and between the steps; it may raise.
        """
        while not self._lock.acquire(timeout=0.05):
            check()
        try:
            check()
            pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
            boxes, labels, scores, grids, rects = self._session.run(list(OUTPUTS), {"image": pixels})
        finally:
            self._lock.release()
        found = []
        for place in np.argsort(-scores, kind="stable").tolist():
            check()
            if float(scores[place]) < min_score:
                break
            mask = paste(grids[place], rects[place].tolist(), boxes[place].tolist(), *image.shape[:2])
            if not mask.is_empty:
                which = int(labels[place]) - 1
                names = self.card.class_ids[which], self.card.class_names[which]
                found.append(Found(mask, *names, float(scores[place])))
        return found


def read_export(folder: Path) -> tuple[SegmenterCard, bytes]:
    """The card and the network of an export, checked against each other.

    Raises:
        FormatError, ModelError: as `Segmenter`.
    """
    import json

    try:
        card_text, data = (folder / CARD).read_text(), (folder / NETWORK).read_bytes()
    except OSError as error:
        raise FormatError(
            str(folder),
            expected=f"an exported segmenter: {NETWORK} and {CARD}",
            got=f"{Path(str(error.filename)).name}: {error.strerror}",
            fix="bpr-train export-segmenter RUN",
        ) from None
    try:
        content = json.loads(card_text)
    except ValueError as error:
        raise ModelError(str(folder / CARD), expected="JSON", got=str(error), fix="export it again") from None
    if not isinstance(content, dict) or content.get("kind") != "segmenter":
        got = content.get("kind", "a card without kind") if isinstance(content, dict) else type(content).__name__
        fix = "name the export of a segmenter; refiners go into the model store"
        raise ModelError(str(folder / CARD), expected="the card of a segmenter", got=str(got), fix=fix)
    card = build(SegmenterCard, content)
    if len(card.class_ids) != len(card.class_names):
        got = f"{len(card.class_ids)} ids, {len(card.class_names)} names"
        raise ModelError(str(folder / CARD), expected="a name for each class", got=got, fix="export it again")
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise ModelError(
            str(folder / NETWORK), expected="the file that its card names", got="another one", fix="export it again"
        )
    return card, data


def open_session(data: bytes, name: str) -> Any:
    """An onnxruntime session of a network on the CPU.

    Raises:
        ConfigError: onnxruntime is missing.
        ModelError: it cannot hold the network, or the network is no segmenter's.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError(
            "a segmenter", expected="the extra onnx", got="no onnxruntime", fix="pip install 'bpr-service[onnx]'"
        ) from None
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an own tree of them, without a common root
        got = " ".join(str(error).split())[:300]
        raise ModelError(
            name, expected=f"a network that onnxruntime {onnxruntime.__version__} holds", got=got, fix="export it again"
        ) from None
    outputs = tuple(each.name for each in session.get_outputs())
    if outputs not in (OUTPUTS, ("probabilities",)):
        got = ", ".join(outputs)
        raise ModelError(name, expected=f"outputs {', '.join(OUTPUTS)}", got=got, fix="export it again")
    return session


def paste(grid: F32, rect: list[float], box: list[float], height: int, width: int, threshold: float = 0.5) -> Mask:
    """Sample a grid of probabilities at the centres of the pixels inside ``box``, bilinear, and threshold it.

    Args:
        grid: (g_h, g_w).
        rect: ``x0 y0 x1 y1`` of the picture that the grid spans.
        box: pixels whose centre lies outside are background.
        height: H.
        width: W.
        threshold: the least probability of foreground.
    """
    x0, y0 = max(round(box[0]), 0), max(round(box[1]), 0)
    x1, y1 = min(round(box[2]), width), min(round(box[3]), height)
    if x1 <= x0 or y1 <= y0:
        return Mask.from_window(np.zeros((1, 1), np.uint8), 0, 0, height, width)
    rows = _sampled(grid, y0, y1, rect[1], rect[3])
    crop = threshold <= _sampled(np.ascontiguousarray(rows.T), x0, x1, rect[0], rect[2]).T
    return Mask.from_window(np.ascontiguousarray(crop, np.uint8), x0, y0, height, width)


def _sampled(grid: F32, start: int, stop: int, low: float, high: float) -> F32:
    """The rows of a grid that spans ``low`` to ``high`` at the centres of pixels ``start`` to ``stop``."""
    cells = len(grid)
    at = (np.arange(start, stop, dtype=np.float32) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    at = np.clip(at, 0, cells - 1)
    first = np.minimum(at.astype(np.int64), max(cells - 2, 0))
    share = (at - first).astype(np.float32)[:, None]
    sampled: F32 = grid[first] * (1 - share) + grid[np.minimum(first + 1, cells - 1)] * share
    return sampled
