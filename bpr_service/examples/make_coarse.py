"""Make the coarse masks of the bundled example: ``python -m bpr_service.examples.make_coarse``.

Each object was clicked by hand, a corner every few dozen pixels. The polygon is then sampled to 28 x 28 over its box
and enlarged again, which is what a Mask R-CNN head leaves of an object.
"""

from __future__ import annotations

import json

import cv2
import numpy as np
from numpy.typing import NDArray

from bpr_service.examples import FOLDER, load_example
from bpr_service.masks.mask import Mask

POLYGONS: dict[str, dict[str, list[list[tuple[int, int]]]]] = {
    "astronaut": {
        "person": [
            [
                (153, 70), (158, 58), (170, 48), (185, 42), (190, 33), (205, 22), (222, 16), (240, 15), (262, 20),
                (280, 30), (293, 48), (298, 66), (301, 85), (299, 103), (293, 115), (283, 124), (272, 134), (266, 142),
                (260, 160), (256, 174), (272, 186), (288, 202), (299, 218), (304, 236), (320, 247), (335, 258),
                (345, 275), (352, 290), (357, 310), (361, 330), (362, 347), (340, 353), (322, 366), (308, 382),
                (295, 400), (285, 420), (280, 445), (277, 475), (277, 512), (40, 512), (33, 475), (25, 440), (20, 405),
                (22, 380), (25, 350), (30, 330), (40, 305), (47, 282), (58, 258), (75, 238), (95, 220), (112, 207),
                (114, 195), (120, 185), (125, 175), (135, 162), (150, 152), (168, 148), (184, 150), (182, 135),
                (175, 130), (172, 120), (164, 112), (157, 98), (154, 85),
            ]
        ],
        "helmet": [
            [
                (277, 512), (277, 475), (280, 445), (285, 420), (295, 400), (308, 382), (322, 366), (345, 353),
                (370, 346), (400, 344), (430, 350), (455, 366), (475, 386), (488, 410), (495, 440), (498, 456),
                (508, 462), (511, 490), (508, 512),
            ]
        ],
    },
    "chelsea": {
        "cat": [
            [
                (38, 0), (35, 30), (32, 60), (30, 95), (20, 112), (0, 122), (0, 299), (296, 299), (306, 280),
                (314, 258), (322, 236), (332, 214), (344, 194), (354, 172), (362, 150), (365, 130), (362, 108),
                (356, 88), (352, 76), (362, 68), (372, 45), (385, 20), (398, 0),
            ]
        ],
        "eye": [
            [
                (134, 104), (138, 95), (147, 88), (160, 85), (177, 87), (192, 94), (202, 108), (206, 124), (202, 137),
                (190, 145), (172, 147), (155, 140), (143, 128), (136, 114),
            ]
        ],
    },
    "coffee": {
        "porcelain": [
            [
                (173, 112), (178, 86), (190, 62), (210, 40), (236, 25), (262, 19), (290, 18), (318, 22), (346, 31),
                (372, 47), (392, 70), (404, 94), (407, 118), (403, 142), (390, 166), (370, 186), (344, 200),
                (314, 207), (286, 208), (256, 204), (228, 192), (204, 174), (186, 150), (176, 130),
            ],
            [
                (204, 150), (212, 132), (228, 112), (250, 100), (278, 95), (306, 97), (334, 106), (354, 122),
                (366, 142), (369, 160), (358, 176), (338, 187), (312, 193), (284, 193), (256, 186), (230, 172),
            ],
        ],
        "spoon bowl": [
            [
                (326, 276), (332, 264), (344, 254), (358, 246), (372, 242), (384, 244), (394, 254), (402, 268),
                (405, 284), (401, 300), (392, 314), (378, 323), (360, 325), (344, 319), (333, 306), (327, 292),
            ]
        ],
    },
}  # fmt: skip


def draw(shape: tuple[int, int], polygons: list[list[tuple[int, int]]]) -> NDArray[np.uint8]:
    """Even-odd filling, so that a polygon inside another is a hole: (H, W) uint8."""
    drawn = np.zeros(shape, np.uint8)
    cv2.fillPoly(drawn, [np.array(p, np.int32) for p in polygons], 1)
    return drawn


def through_mask_head(mask: NDArray[np.uint8], size: int = 28) -> NDArray[np.uint8]:
    """What size x size cells over the mask's box keep of it: (H, W) uint8."""
    x, y, w, h = cv2.boundingRect(mask)
    cells = cv2.resize(mask[y : y + h, x : x + w].astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    cells = cv2.GaussianBlur(cells, (0, 0), 0.8, borderType=cv2.BORDER_REPLICATE)
    coarse = np.zeros_like(mask)
    coarse[y : y + h, x : x + w] = cv2.resize(cells, (w, h), interpolation=cv2.INTER_LINEAR) > 0.5
    return coarse


def main() -> None:
    """Write one JSON file a photograph."""
    for name, objects in POLYGONS.items():
        (FOLDER / f"{name}.json").write_text('{"instances": []}')
        height, width = load_example(name).image.shape[:2]
        instances = []
        for number, (label, polygons) in enumerate(objects.items(), 1):
            mask = Mask.from_array(through_mask_head(draw((height, width), polygons)))
            instances.append({"id": number, "label": label, "segmentation": mask.to_rle()})
        (FOLDER / f"{name}.json").write_text(json.dumps({"instances": instances}, indent=1) + "\n")


if __name__ == "__main__":
    main()
