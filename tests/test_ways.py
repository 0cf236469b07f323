"""The way of an image and of its masks through the package: as docs/architecture.md says, and no module twice over.

What is followed are arguments: every function of `bpr_service` that is given the (H, W, 3) image, or a mask.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import pytest

import bpr_service
from bpr_service.jobs.refine.batch import Batch, run_batch
from bpr_service.jobs.requests import RefineRequest
from bpr_service.masks.mask import Mask
from bpr_service.refine.refiner import Refiner
from bpr_service.runtime.dummy import DummyModels
from bpr_service.runtime.work import Lane, Work
from bpr_service.server.codec.memory import Allowance
from bpr_service.server.codec.pool import Pool
from bpr_service.server.codec.shared import Block
from bpr_service.server.codec.steps import STEPS, try_all
from tests.server.helpers import HEIGHT, WIDTH, body, coarse, picture, serving

ROOT = Path(bpr_service.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
MOST = 2
"""How often a module is entered at most."""
_FLAGS = (4, 8)  # *args, **kwargs


def is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape == (HEIGHT, WIDTH, 3)


def is_mask(value: Any) -> bool:
    return isinstance(value, Mask)


class Follower:
    """A profile function that notes which functions are given what it follows."""

    def __init__(self, *, masks: bool = False) -> None:
        self.masks = masks
        self.visits: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)):
            return
        module = str(Path(code.co_filename).relative_to(ROOT))
        if self.masks and module == "masks/mask.py":  # a mask's own methods
            return
        wanted = is_mask if self.masks else is_image
        count = code.co_argcount + code.co_kwonlyargcount + sum(bool(code.co_flags & flag) for flag in _FLAGS)
        for name in code.co_varnames[:count]:
            value = frame.f_locals.get(name)
            several = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            if any(map(wanted, several)):
                self.visits.append((module, code.co_qualname))
                return

    def following(self, work: Callable[[], Any]) -> None:
        """Call ``work``, in this thread and those that it starts."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def way(self) -> list[str]:
        """A line a module that is entered: its functions, in the order in which they are visited."""
        entered = [(module, [name for _, name in visits]) for module, visits in groupby(self.visits, lambda v: v[0])]
        return [f"{module}: {', '.join(dict.fromkeys(names))}" for module, names in entered]


class Here(Pool):
    """A pool whose steps run in this process, where they can be followed."""

    def step(self, name: str, work: Work, block: Block, **message: Any) -> tuple[dict[str, Any], Block]:
        return STEPS[name](message, block, Allowance(lambda lasting, passing: None, limit=False))


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner.load("balanced")


def through_python(follower: Follower, refiner: Refiner, _: Path) -> None:
    mask = coarse()
    refiner.refine(picture(), [mask])
    follower.following(lambda: refiner.refine(picture(), [mask]))


def through_http(follower: Follower, refiner: Refiner, _: Path) -> None:
    class Models(DummyModels):
        def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
            lane = super().open(preset, model, version)
            return replace(lane, refiner=refiner, network_size_px=refiner.config.patch.network_size_px)

    try_all()  # kernels are loaded while nobody follows
    threading.setprofile(follower)  # the server's threads start with it
    try:
        with serving(None, Models(), pool=Here(1)) as server:
            request = body()
            server.client.post("/v1/refine/instance", json=request).raise_for_status()
            follower.visits.clear()
            server.client.post("/v1/refine/instance", json=request).raise_for_status()
    finally:
        threading.setprofile(None)


def through_batch(follower: Follower, _: Refiner, folder: Path) -> None:
    cv2.imwrite(str(folder / "a.png"), picture()[:, :, ::-1])
    entry = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    (folder / "images.json").write_text(json.dumps({"images": [entry]}))
    record = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": coarse().to_rle()}
    (folder / "coarse.json").write_text(json.dumps([record]))
    request = RefineRequest(
        task="instance",
        images=str(folder),
        dataset=str(folder / "images.json"),
        predictions=str(folder / "coarse.json"),
        out=str(folder / "out.json"),
    )
    follower.following(lambda: run_batch(request, Batch(workers=0)))


WAYS = {"Refiner.refine": through_python, "POST /v1/refine/instance": through_http, "bpr batch": through_batch}


def written() -> dict[str, list[str]]:
    """The ways as the page has them, by their names."""
    section = PAGE.read_text().split("## The way of an image\n")[1].split("\n## ")[0]
    blocks = re.findall(r"\*\*(.+?)\*\*, (image|masks):\n\n```text\n(.*?)```", section, re.DOTALL)
    return {f"{name}, {what}": lines.splitlines() for name, what, lines in blocks}


@pytest.fixture(params=[(name, what) for name in WAYS for what in ("image", "masks")], ids=", ".join)
def way(request: pytest.FixtureRequest, refiner: Refiner, tmp_path: Path) -> tuple[str, Follower]:
    name, what = request.param
    follower = Follower(masks=what == "masks")
    WAYS[name](follower, refiner, tmp_path)
    return f"{name}, {what}", follower


def test_the_way_is_as_written_and_enters_no_module_more_than_twice(way: tuple[str, Follower]) -> None:
    name, follower = way
    found = follower.way()
    assert written().get(name) == found, "write in docs/architecture.md:\n" + "\n".join(found)
    entered = Counter(line.split(":")[0] for line in found)
    assert [module for module, times in entered.items() if times > MOST] == []
