"""How a prediction file is read and written, beside where it lies: the same options in every entry point."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bpr_service.config import Settings
from bpr_service.masks.encoding import Encoding
from bpr_service.masks.images import Exif


class FileOptions(Settings):
    """How a prediction file is read and written, beside where it lies."""

    exif: Exif | None = None
    """Whether masks speak of the upright photograph ("apply") or of the pixels as stored ("ignore"); None takes the
    convention of the format."""
    encoding: Encoding = "same"
    """How masks are written: as they came, or all in one way."""
    crowds: bool = False
    """Refine records that are marked as crowds too."""
    match: str | None = None
    """Which files of a folder are predictions and of which image: ``*_mask.png``."""
    columns: Literal["none", "confidence", "confidence+track"] | None = None
    """YOLO: what stands behind the points of a line; None finds out."""
    logits: bool = False
    """Floats of soft masks are what a network gives before its sigmoid, of classes before its softmax."""
    classes: int | None = Field(default=None, ge=2)
    """Semantic: how many classes there are; maps of probabilities must have as many channels."""
    simplify: float | None = Field(default=None, gt=0, le=1000)
    """Write polygons with few corners, none of whose points is farther from the refined edge than this, in px."""
    page: int | None = Field(default=None, ge=1)
    """Which page of a TIFF is the image, from 1."""
    window: Literal["auto"] | tuple[float, float] | None = None
    """Values of the image that become black and white; see `bpr_service.masks.images.open_image`."""

    no_data: Literal["auto"] | float | None = None
    """Which pixels of the image hold no data, where no mask changes: see `bpr_service.masks.images.open_image`."""

    @field_validator("window", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        """The numbers of ``LOW,HIGH``."""
        return value.split(",") if isinstance(value, str) and "," in value else value

    @model_validator(mode="before")
    @classmethod
    def _simplified_are_polygons(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("simplify") is not None:
            if values.get("encoding", "same") not in ("same", "polygon"):
                raise ValueError("simplify writes polygons: leave encoding out")
            return {**values, "encoding": "polygon"}
        return values
