"""Masks in the objects of other libraries, refined in place of theirs: three lines each, none of them is imported here.

Each function takes a `bpr_service.Refiner` (or a `bpr_service.client.Client`) and gives a new object back, with refined
masks and their boxes; all else in it, and the object that came in, stays as it is.
"""

from bpr_service.connect.cvat import RefinedFunction
from bpr_service.connect.detections import from_detections, refine_detections, to_detections
from bpr_service.connect.fiftyone import refine_sample
from bpr_service.connect.torchvision import refine_target
from bpr_service.connect.transformers import refine_segmentation
from bpr_service.connect.ultralytics import refine_results

__all__ = [
    "RefinedFunction",
    "from_detections",
    "refine_detections",
    "refine_results",
    "refine_sample",
    "refine_segmentation",
    "refine_target",
    "to_detections",
]
