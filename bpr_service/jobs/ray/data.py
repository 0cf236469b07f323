"""`RefineBatch`: refine columns of images and masks, for ``ray.data.Dataset.map_batches`` and pipelines like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bpr_service.errors import BprError, FormatError


class RefineBatch:
    """A callable class over batches of columns; Ray makes one an actor, and each loads the model once.

    ``ds.map_batches(RefineBatch, fn_constructor_kwargs={"preset": "fast"}, batch_size=8, concurrency=2)``

    Args:
        preset: or ``model`` and ``settings``, as `bpr_service.Refiner.load` takes them.
        image: the column of images: (H, W, 3) uint8 arrays, or the bytes of image files.
        masks: the column of masks: for each image a list of COCO RLE (compressed or not), polygons or PNG bytes, or an
            (N, H, W) array. It is replaced by the refined ones: arrays by an array, others by compressed RLE.
        status: a new column: for each mask ``refined``, or ``unchanged: REASON``; for an image that cannot be refined
            one entry ``failed: WHY``, and its masks stay as they were.
    """

    def __init__(
        self,
        preset: str = "balanced",
        *,
        model: str | None = None,
        device: str = "cpu",
        image: str = "image",
        masks: str = "masks",
        status: str = "status",
        **settings: Any,
    ) -> None:
        from bpr_service.refine.refiner import Refiner

        self.refiner = Refiner.load(preset, model=model, device=device, **settings)
        self.image, self.masks, self.status = image, masks, status

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with refined masks and the column of statuses.

        Raises:
            FormatError: a column is missing.
        """
        for column in (self.image, self.masks):
            if column not in batch:
                raise FormatError(
                    f"column {column!r}", expected="a batch that has it", got=", ".join(batch), fix="name the column"
                )
        masks, statuses = [], []
        for image, old in zip(batch[self.image], batch[self.masks], strict=True):
            new, status = self._one(image, old)
            masks.append(new)
            statuses.append(status)
        return {**batch, self.masks: _column(masks), self.status: _column(statuses)}

    def _one(self, image: Any, old: Any) -> tuple[Any, list[str]]:
        stacked = isinstance(old, np.ndarray) and old.ndim == 3
        try:
            result = self.refiner.refine(image, old if stacked else [_plain(mask) for mask in old])
        except BprError as error:
            return old, [f"failed: {error}"]
        status = [report.status + (f": {report.reason}" if report.reason else "") for report in result.reports]
        if not stacked:
            return [mask.to_rle() for mask in result.masks], status
        new = [mask.to_array() for mask in result.masks]
        return (np.stack(new).astype(old.dtype) if new else old), status


def _plain(mask: Any) -> Any:
    """A mask as `as_mask` takes it: Arrow gives the rows of an RLE's counts and of polygons as arrays."""
    if isinstance(mask, Mapping):
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in mask.items()}
    if isinstance(mask, np.ndarray) and mask.dtype == object:
        return [part.tolist() for part in mask]
    return mask


def _column(values: list[Any]) -> Any:
    column = np.empty(len(values), object)
    column[:] = values
    return column
