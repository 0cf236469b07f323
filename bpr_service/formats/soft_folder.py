"""A folder of soft masks beside a prediction file: the probabilities that its masks were cut from.

One file a mask, a picture or a NumPy file as the format ``soft`` has them. It is named by the record's own ``id``
(``17.png``), or by the image and the mask's place among the image's masks from 0 (``000139_2.npy``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bpr_service import storage
from bpr_service.errors import OWN_FAULTS, FormatError
from bpr_service.formats.base import Instance, InstancePrediction, Softened, Unit, at
from bpr_service.formats.folders.mask_pngs import MASK_SUFFIXES

if TYPE_CHECKING:
    from bpr_service.masks.mask import Mask

LEAST_IOU = 0.5
"""Of a soft mask, cut at one half, with the mask that it belongs to; below, it is taken for another object's."""


class SoftFolder:
    """The files of a folder of soft masks, by name without the suffix."""

    def __init__(self, address: str, within: tuple[str, ...] | None = None, *, logits: bool = False) -> None:
        """List the folder at ``address``; ``logits``: its floats are before the sigmoid.

        Raises:
            NotFoundError: there is none.
            FormatError: it has no mask file, or two of one name.
        """
        self.address, self._within, self._logits = address, within, logits
        self._files: dict[str, str] = {}
        for name in storage.list_files(address, MASK_SUFFIXES):
            key = str(PurePosixPath(name).with_suffix(""))
            if key in self._files:
                got = f"{self._files[key]} and {name}"
                raise FormatError(
                    f"{address}: one soft mask twice", expected="one file a mask", got=got, fix="keep one"
                )
            self._files[key] = name
        if not self._files:
            what = f"files of one soft mask each: {', '.join(MASK_SUFFIXES)}"
            raise FormatError(f"{address}: no soft masks", expected=what, got="none", fix="check --soft")

    def soften(self, unit: Unit, before: InstancePrediction) -> Softened:
        """The instances of a unit, what is to be refined of each readable one, and what a person should know.

        An instance whose soft mask cannot be used has a problem, and is left as it is.
        """
        items: list[Instance] = []
        masks: list[Mask] = []
        without = 0
        for number, item in enumerate(before.instances):
            name = self._named(unit, item, number) if item.mask is not None else None
            if item.mask is None or name is None:
                without += item.mask is not None
                items.append(item)
                masks += [item.mask] if item.mask is not None else []
                continue
            try:
                masks.append(self._read(name, item.mask))
                items.append(item)
            except OWN_FAULTS as error:
                problem = at(storage.join(self.address, name), f"the soft mask of {unit.name}, mask {number}", error)
                items.append(replace(item, mask=None, problem=str(problem)))
        told = f"{unit.name}: {without} of {len(masks)} masks have no file in {self.address}; refined without"
        return InstancePrediction(tuple(items)), masks, [told] if without else []

    def _named(self, unit: Unit, item: Instance, number: int) -> str | None:
        """The file of a mask; None where there is none."""
        own = item.record.get("id") if isinstance(item.record, Mapping) else None
        image = PurePosixPath(unit.image or unit.name).with_suffix("")
        for key in (None if own is None else str(own), f"{image}_{number}", f"{image.name}_{number}"):
            if key in self._files:
                return self._files[key]
        return None

    def _read(self, name: str, hard: Mask) -> Mask:
        from bpr_service.masks.encoding import read_mask_file
        from bpr_service.masks.mask import as_mask

        data = storage.read_bytes(storage.join_inside(self.address, name, within=self._within))
        soft = as_mask(read_mask_file(data, soft=True, logits=self._logits), hard.height, hard.width)
        height, width = soft.crop.shape
        both = int((soft.crop & hard.window(soft.x, soft.y, soft.x + width, soft.y + height)).sum())
        united = soft.area + hard.area - both
        if both < LEAST_IOU * united:
            raise FormatError(
                "of another object than its mask",
                expected=f"an IoU of {LEAST_IOU} or more with it, cut at one half",
                got=f"{both / united:.2f}",
                fix="check the names of the files",
            )
        return soft
