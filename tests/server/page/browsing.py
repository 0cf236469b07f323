"""A page in a real browser, watched; pictures of it go to artifacts/."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.server.helpers import coarse, picture, png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTIFACTS = Path(__file__).parents[3] / "artifacts"
needs_chromium = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="needs Debian's chromium")


class Watched:
    """A page whose errors and outside requests are failures."""

    def __init__(self, browser: Any, url: str, width: int, height: int, **context: Any) -> None:
        origin = "/".join(url.split("/")[:3])
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on(
            "console",
            lambda line: line.type == "error" and "status of" not in line.text and self.faults.append(line.text),
        )
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith(("http", "ws"))
                and not request.url.startswith(origin)
                and self.faults.append(f"outside: {request.url}")
            ),
        )
        self.page.goto(url)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.faults == [], self.faults


def photograph(page: Any, name: str) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"page-{name}.png", full_page=True)


def settled(page: Any) -> None:
    """Until the page has done what it was given."""
    page.wait_for_selector("#presets input")
    page.wait_for_selector("#form[aria-busy=false]")


def refine_files(page: Any) -> None:
    settled(page)
    page.set_input_files("#image-file", {"name": "a.png", "mimeType": "image/png", "buffer": png(picture())})
    masks = [{"id": 1, "label": "disc", "segmentation": coarse().to_rle()}]
    masks.append({"id": 2, "label": "small", "segmentation": coarse(cx=30, cy=30, r=20).to_rle(compressed=False)})
    masks.append({"id": 3, "label": "corner", "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]]})
    content = json.dumps({"masks": masks}).encode()
    page.set_input_files("#mask-files", {"name": "m.json", "mimeType": "application/json", "buffer": content})
    settled(page)
    assert page.is_enabled("#go")
