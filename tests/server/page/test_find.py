"""Masks that the served segmenter finds, on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpr_service.network.segmenter import Segmenter
from tests.segmenters import write_segmenter
from tests.server.helpers import Running, picture, png, serving
from tests.server.page.browsing import Watched, needs_chromium, settled

pytestmark = needs_chromium


def choose(page: Any) -> None:
    settled(page)
    page.set_input_files("#image-file", {"name": "a.png", "mimeType": "image/png", "buffer": png(picture())})
    settled(page)


def test_masks_are_found_and_refined(browser: Any, tmp_path: Path) -> None:
    with (
        serving(segmenter=Segmenter(write_segmenter(tmp_path))) as running,
        Watched(browser, running.url, 1200, 900) as page,
    ):
        choose(page)
        assert page.is_disabled("#go")
        page.click("#find")
        settled(page)
        assert "1 mask" in page.inner_text("#chosen")
        page.click("#go")
        page.wait_for_selector("#downloads:visible")
        assert "bright thing" in page.inner_text("#changes")


def test_nothing_is_offered_without_a_segmenter(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1200, 900) as page:
        choose(page)
        assert not page.is_visible("#find")
