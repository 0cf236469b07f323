"""What ``--simplify`` costs and saves on the val split of CCP: vertices, boundary F at 1 px, gaps between neighbours.

    python benchmarks/simplify.py --preset fast [--subset 4] [--px 1]

The masks are the val annotations, or the coarse ones of ``--coarse``, refined with the preset; those of a picture are
first made disjoint, as a label map has them. Boundary F is against the masks before. Prints one line of JSON.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import shapely
import typer

from bpr_service import Mask, Refiner
from bpr_service.masks.encoding import parts_of
from bpr_service.masks.images import open_image
from bpr_service.masks.mask import as_mask
from bpr_service.masks.simplify import boundary_agreement, corners_of, drawn, simplify_label_map


def disjoint(masks: list[Mask], size: tuple[int, int]) -> np.ndarray:
    """A label map (H, W) of masks from 1 on; the later one has a pixel that two have."""
    labels = np.zeros(size, np.int32)
    for label, mask in enumerate(masks, 1):
        labels[mask.to_array() > 0] = label
    return labels


def measured(labels: np.ndarray, truth: dict[int, Mask], px: float) -> dict[str, float]:
    """Sums over the masks of one picture."""
    found = simplify_label_map(labels, px)
    sums: dict[str, float] = defaultdict(float)
    shapes = []
    for label, parts in found.items():
        mask = Mask.from_array(labels == label)
        shapes.append(shapely.MultiPolygon([(rings[0], rings[1:]) for rings in parts]))
        old = shapely.MultiLineString([[*ring, ring[0]] for rings in parts_of(mask) for ring in rings])
        again = drawn(parts, *labels.shape)
        sums["masks"] += 1
        sums["before"] += corners_of(parts_of(mask))
        sums["after"] += corners_of(parts)
        sums["agreement"] += boundary_agreement(mask, again)
        sums["f_before"] += boundary_agreement(mask, truth[label])
        sums["f_after"] += boundary_agreement(again, truth[label])
        sums["farthest"] = max(sums["farthest"], float(shapely.hausdorff_distance(old, shapely.boundary(shapes[-1]))))
    sums["torn"] = float(not shapely.coverage_is_valid(np.array(shapes, dtype=object)))
    return sums


def main(
    data: Annotated[Path, typer.Option(help="The boundary corpus.")] = Path("shared/data"),
    preset: Annotated[str, typer.Option(help="Refines the masks.")] = "fast",
    px: Annotated[float, typer.Option(help="The promised distance.")] = 1.0,
    subset: Annotated[int, typer.Option(help="Every so manieth picture.", min=1)] = 1,
    coarse: Annotated[Path | None, typer.Option(help="COCO results to refine; None: the annotations.")] = None,
) -> None:
    """Print what was measured."""
    truth = json.loads((data / "ccp" / "instances_val.json").read_text())
    given = truth["annotations"] if coarse is None else json.loads(coarse.read_text())
    by_image: dict[Any, list[Any]] = defaultdict(list)
    for entry in given:
        by_image[entry["image_id"]].append(entry)
    refiner, total = Refiner.load(preset), defaultdict[str, float](float)
    for image in truth["images"][::subset]:
        size = (image["height"], image["width"])
        masks = [as_mask(entry["segmentation"], *size) for entry in by_image[image["id"]]]
        masks = [mask for mask in masks if not mask.is_empty]
        if not masks:
            continue
        pixels = open_image(data / "ccp" / "images" / image["file_name"]).pixels
        labels = disjoint(refiner.refine(pixels, masks).masks, size)
        sums = measured(labels, dict(enumerate(masks, 1)), px)
        far = max(total["farthest"], sums.pop("farthest"))
        for key, value in sums.items():
            total[key] += value
        total["farthest"] = far
    n = total["masks"]
    print(json.dumps({
        "preset": preset, "px": px, "masks": int(n), "vertices_fewer": round(1 - total["after"] / total["before"], 4),
        "f_at_1px_lost": round((total["f_before"] - total["f_after"]) / n, 5),
        "agreement_at_1px": round(total["agreement"] / n, 5), "farthest_px": round(total["farthest"], 3),
        "pictures_with_gaps": int(total["torn"]),
    }))  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
