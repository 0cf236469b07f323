"""The same image and masks through each door, as a person would send them there.

Letters: H, W are the image's height and width in pixels.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bpr_service.client import Client
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.refine.refiner import Refiner
from tests.calls import call_bpr
from tests.jobs.samples import SETTINGS
from tests.server.helpers import Running

H, W = 80, 104


def photo() -> np.ndarray:
    """(80, 104, 3): no symmetry, so that a turned picture is another one."""
    ys, xs = np.mgrid[:H, :W]
    noise = np.random.default_rng(3).integers(0, 60, (H, W, 3), dtype=np.uint8)
    shade = np.stack([ys, xs, ys + xs], -1).astype(np.uint8)
    return np.where(blob()[:, :, None] > 0, 255 - shade, noise).astype(np.uint8)


def blob(dy: int = 0, dx: int = 0) -> np.ndarray:
    """(80, 104) uint8: an ellipse with a notch, off the centre."""
    ys, xs = np.mgrid[:H, :W]
    inside = ((ys - 34 - dy) / 22.0) ** 2 + ((xs - 60 - dx) / 30.0) ** 2 <= 1
    inside[20 + dy : 30 + dy, 70 + dx : 95 + dx] = False
    return inside.astype(np.uint8)


def saved(array: np.ndarray, kind: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    """The bytes of a picture file; with another `orientation`, of one whose upright view is `array`."""
    picture = Image.fromarray(array)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 5: Image.Transpose.TRANSPOSE}
    if orientation != 1:
        picture = picture.transpose(back[orientation])
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """An upright (H, W) array as the pixels of a file of that orientation lie."""
    back: Any = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: np.rot90, 5: lambda a: np.swapaxes(a, 0, 1)}
    return np.ascontiguousarray(back[orientation](array))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Doors:
    """Where to send things."""

    model: str
    start: Callable[[], Running]
    folder: Path

    @property
    def server(self) -> Running:
        return self.start()

    # ---- the commands

    def bpr(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        return call_bpr(*arguments, "--model", self.model, *settings, cwd=self.folder, stdin=stdin)

    def file(self, name: str, data: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path

    def refine(self, image: bytes, masks: bytes | str, name: str, *options: object, code: int = 0) -> bytes:
        """``bpr refine`` of a file of masks; the file that comes back."""
        image_path, given = self.file("images/a.png", image), self.file(f"given/{name}", masks)
        out = self.folder / "out" / name
        self.said = self.bpr("refine", image_path, given, "-o", out, *options)
        assert self.said.returncode == code, self.said.stderr
        return out.read_bytes() if code == 0 else b""

    def batch(
        self, image: bytes, masks: bytes | str, name: str, *options: object, task: str = "instance", code: int = 0
    ) -> bytes:
        """``bpr batch`` of a file, or of a folder that holds it; what comes back."""
        self.file("images/a.png", image)
        given = self.file(f"given/{name}", masks)
        is_file = name.endswith((".json", ".jsonl"))
        out = self.folder / "out" / (name if is_file else "")
        report = self.folder / "report.json"
        call = ("batch", task, "--images", self.folder / "images", "--predictions", given if is_file else given.parent)
        self.said = self.bpr(*call, "--out", out, "--workers", 0, "--report", report, *options)
        assert self.said.returncode == code, self.said.stderr + self.said.stdout
        if code == 2:
            return b""
        self.report = json.loads(report.read_text())
        return (out if is_file else out / name).read_bytes()

    # ---- HTTP

    def post(self, body: dict[str, Any], task: str = "instance", code: int = 200) -> dict[str, Any]:
        text, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        response = self.server.client.post(f"/v1/refine/{task}", content=text, headers=kind)
        assert response.status_code == code, response.text
        answer: dict[str, Any] = json.loads(response.content)
        return answer

    def http(self, image: bytes, masks: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Masks over HTTP, as JSON; the masks that come back."""
        self.answer = self.post({"image": {"data": b64(image)}, "masks": masks, "options": options})
        found: list[dict[str, Any]] = self.answer["masks"]
        return found

    # ---- all

    def records(self, door: str, image: bytes, records: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """COCO records through a door."""
        named = {name.replace("_", "-"): value for name, value in options.items()}
        flags = [f"--{name}={value}" if value is not True else f"--{name}" for name, value in named.items()]
        if door == "http":
            return self.http(image, records, **options)
        text = json.dumps(records)
        found = getattr(self, door)(image, text, "masks.json", *flags)
        refined: list[dict[str, Any]] = json.loads(found)
        return refined

    def mask(self, door: str, image: bytes, mask: np.ndarray, **options: Any) -> np.ndarray:
        """One mask (h, w) as RLE through a door, as an array."""
        size = mask.shape
        if door == "python":
            return self.refiner().refine(image, [mask], **options).masks[0].to_array()
        rle = Mask.from_array(mask).to_rle()
        if door == "client":
            with Client(self.server.url) as client:
                return client.refine(image, [rle], **options).masks[0].to_array()
        (record,) = self.records(door, image, [{"image_id": "a", "category_id": 1, "segmentation": rle}], **options)
        return as_mask(record["segmentation"], *size).to_array()

    def refiner(self) -> Refiner:
        return Refiner.load(model=self.model, **SETTINGS)
