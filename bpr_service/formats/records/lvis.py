"""LVIS results: COCO results over a data set that names its images by URL.

Source: lvisdataset.org, "Results format". The data set's ``neg_category_ids`` and
``not_exhaustive_category_ids`` concern only its evaluation, which keeps the 300 best detections of an image.
"""

from __future__ import annotations

from typing import ClassVar

from bpr_service.formats.records.coco import CocoResults, text_of
from bpr_service.formats.records.record_file import Record


class LvisResults(CocoResults):
    """LVIS results; an image is ``split/name.jpg`` from the end of its ``coco_url``."""

    name: ClassVar[str] = "lvis"

    def file_name(self, entry: Record) -> str:
        if "file_name" in entry:
            return super().file_name(entry)
        return "/".join(text_of(entry, "coco_url").split("/")[-2:])
