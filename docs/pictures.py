"""The pictures of `gallery.md` and `cannot.md`, made of the bundled example: `python docs/pictures.py`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bpr_service import Mask, Refiner, RefineResult
from bpr_service.examples import NAMES, load_example
from bpr_service.masks.picture import before_after

FOLDER = Path(__file__).parent / "images"


def main() -> None:
    """Refine, write JPEGs, and print the figures that the pages have."""
    refiner = Refiner.load("balanced")
    results = {}
    for name in NAMES:
        example = load_example(name)
        results[name] = refiner.refine(example.image, [entry["segmentation"] for entry in example.instances])
        if any(report.status == "refined" for report in results[name].reports):
            write(f"gallery_{name}", results[name].picture(width_px=1000))
        for report, entry in zip(results[name].reports, example.instances, strict=True):
            print(f"{name}, {entry['label']}: {report.status}, {report.changed_px} px, confidence {report.confidence}")
    for name, (image, coarse, truth) in failures(results).items():
        result = refiner.refine(image, [coarse])
        if result.reports[0].status == "refined":
            write(f"cannot_{name}", before_after(image, result.coarse, result.masks, width_px=1000, zooms=0))
        before, after = (iou(mask, truth) for mask in (coarse, result.masks[0]))
        report = result.reports[0]
        print(f"{name}: IoU {before:.3f} -> {after:.3f}, {report.status}, confidence {report.confidence}")


def failures(results: dict[str, RefineResult]) -> dict[str, tuple[np.ndarray, Mask, Mask]]:
    """Image, coarse mask and what is right, of what goes wrong; right is what the refined mask of the example has."""
    coffee, chelsea = load_example("coffee").image, load_example("chelsea").image
    bowl, cat = results["coffee"].masks[0], results["chelsea"].masks[0]
    shifted = np.roll(bowl.to_array(), 60, axis=1)
    half = cat.to_array().copy()
    half[:, : half.shape[1] // 2] = 0
    blurred = cv2.GaussianBlur(coffee, (0, 0), 14)
    grown = cv2.dilate(bowl.to_array(), np.ones((13, 13), np.uint8))
    return {
        "far": (coffee, Mask.from_array(shifted), bowl),
        "missing": (chelsea, Mask.from_array(half), cat),
        "blurred": (blurred, Mask.from_array(grown), bowl),
    }


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union."""
    a, b = one.to_array() > 0, other.to_array() > 0
    return float((a & b).sum() / (a | b).sum())


def write(name: str, picture: np.ndarray) -> None:
    """A JPEG beside the pages."""
    cv2.imwrite(str(FOLDER / f"{name}.jpg"), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
