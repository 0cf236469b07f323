"""The view that refines: desktop and phone, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.masks.mask import Mask
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from tests.server.helpers import Running, coarse, picture, png, serving
from tests.server.page.browsing import Watched, needs_chromium, photograph, refine_files, settled

pytestmark = needs_chromium


def test_a_bundled_example_at_a_desktops_width(browser: Any, service: Running) -> None:
    pytest.importorskip("skimage")
    with Watched(browser, service.url, 1400, 950) as page:
        page.wait_for_selector("#examples button")
        page.wait_for_selector("#state.ok")
        page.wait_for_selector("#downloads:visible")  # it is refined already
        assert "600 \u00d7 400 px" in page.inner_text("#chosen")
        page.click("#presets label:has-text('fast')")
        assert page.is_visible("#stale")
        page.click("#go")
        page.wait_for_selector("#stale", state="hidden")
        settled(page)
        photograph(page, "desktop")
        rows = page.locator("#changes tbody tr")
        assert rows.count() == page.evaluate("document.querySelectorAll('#changes .swatch').length") > 0
        assert "refined" in page.inner_text("#changes")
        assert re.search(r"pixels changed, by dummy v1 \(fast\) on cpu in \d+ ms", page.inner_text("#summary"))
        with page.expect_download() as download:
            page.click("#save-json")
        saved = json.loads(Path(download.value.path()).read_text())
        assert len(saved["masks"]) == rows.count()
        with page.expect_download() as download:
            page.click("#save-png")
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_an_open_server_is_told_of(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1200, 900) as page:
        page.wait_for_selector("#state.ok")
        assert not page.is_visible("#notice")
    with serving({"host": "0.0.0.0"}) as running, Watched(browser, running.url, 1200, 900) as page:
        page.wait_for_selector("#notice:visible")
        assert "NO KEYS" in page.inner_text("#notice")


def test_own_files_the_slider_and_the_zoom(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1200, 900) as page:
        refine_files(page)
        assert page.is_disabled("#split")
        coarse_zoom = page.evaluate("document.querySelector('#zoom').toDataURL()")
        page.click("#go")
        page.wait_for_selector("#downloads:visible")
        assert page.evaluate("document.querySelector('#zoom').toDataURL()") != coarse_zoom

        def clip() -> str:
            return str(page.evaluate("getComputedStyle(document.querySelector('#before')).clipPath"))

        half = clip()
        page.locator("#split").fill("80")
        assert clip() != half
        left = page.evaluate("document.querySelector('#lens').style.left")
        page.hover("#stage", position={"x": 200, "y": 150})
        assert page.evaluate("document.querySelector('#lens').style.left") != left
        before = page.evaluate("document.querySelector('#after').toDataURL()")
        page.click("label:has(#fill)")
        assert page.evaluate("document.querySelector('#after').toDataURL()") != before
        assert page.locator("#changes tbody tr").count() == 3
        assert "disc" in page.inner_text("#changes")


def data_set() -> dict[str, Any]:
    """A COCO file of two images; the masks of a.png are those of class disc."""
    marks = [(1, coarse().to_rle()), (2, coarse(cx=30, cy=30, r=20).to_rle()), (1, [[0, 0, 40, 0, 40, 30, 0, 30]])]
    return {
        "info": {"kept": True},
        "images": [{"id": 1, "file_name": "train/a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 7, "segmentation": mark, "area": 1}
            for i, (image, mark) in enumerate(marks)
        ],
        "categories": [{"id": 7, "name": "disc"}],
    }


def choose(page: Any, content: Any, name: str = "a.png") -> None:
    settled(page)
    page.set_input_files("#image-file", {"name": name, "mimeType": "image/png", "buffer": png(picture())})
    text = json.dumps(content).encode()
    page.set_input_files("#mask-files", {"name": "set.json", "mimeType": "application/json", "buffer": text})


def test_a_data_sets_file_comes_back_with_the_masks_of_the_image_alone_replaced(browser: Any, service: Running) -> None:
    given = data_set()
    with Watched(browser, service.url, 1200, 900) as page:
        choose(page, given)
        settled(page)
        assert "2 masks" in page.inner_text("#chosen")
        assert "disc" in page.inner_text("#changes")
        page.click("#go")
        page.wait_for_selector("#downloads:visible")
        assert page.is_hidden("#stale")
        page.click("#presets label:has-text('fast')")
        assert page.is_visible("#stale")
        with page.expect_download() as download:
            page.click("#save-json")
        saved = json.loads(Path(download.value.path()).read_text())
        with page.expect_download() as download:
            page.click("#save-png")
        first = np.asarray(Image.open(download.value.path()).convert("L"))
    assert download.value.suggested_filename == "a-1.png"
    assert set(np.unique(first)) == {0, 255}
    assert saved.keys() == given.keys()
    assert (saved["info"], saved["images"], saved["categories"]) == tuple(
        given[k] for k in ("info", "images", "categories")
    )
    assert saved["annotations"][1] == given["annotations"][1], "of the other image"
    changed = saved["annotations"][0]
    assert changed["segmentation"] != given["annotations"][0]["segmentation"]
    assert changed["area"] == int(Mask.from_rle(changed["segmentation"]).area)
    assert {k: changed[k] for k in ("id", "image_id", "category_id")} == {"id": 0, "image_id": 1, "category_id": 7}


def test_masks_of_other_images_and_pictures_of_ids_are_refused(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1200, 900) as page:
        choose(page, data_set(), name="c.png")
        page.wait_for_selector("#message:visible")
        assert "masks of 2 images, and none of its images is called c.png" in page.inner_text("#message")
        assert page.is_disabled("#go")
        ids = coarse().to_array().copy()
        ids[:20, :20] = 2
        page.set_input_files("#mask-files", {"name": "ids.png", "mimeType": "image/png", "buffer": png(ids * 60)})
        page.wait_for_selector("#message:has-text('more than two values')")


def test_by_keyboard_alone(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1200, 900) as page:
        refine_files(page)

        def tab_to(name: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.id || document.activeElement.value") == name:
                    return
            raise AssertionError(f"Tab never reaches {name}")

        page.focus("body")
        page.keyboard.press("Tab")
        assert page.inner_text(":focus") == "Skip to content"
        tab_to("balanced")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.querySelector('#presets input:checked').value") == "fast"
        tab_to("go")
        page.keyboard.press("Enter")
        page.wait_for_selector("#downloads:visible")
        page.focus("#go")
        tab_to("stage")
        left = page.evaluate("document.querySelector('#lens').style.left")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.querySelector('#lens').style.left") != left
        tab_to("split")
        value = page.input_value("#split")
        page.keyboard.press("ArrowRight")
        assert page.input_value("#split") != value
        tab_to("next")
        left = page.evaluate("document.querySelector('#lens').style.left")
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('#lens').style.left") != left
        tab_to("save-json")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phones_width(browser: Any, service: Running, scheme: str) -> None:
    with Watched(browser, service.url, 375, 740, color_scheme=scheme, has_touch=True, is_mobile=True) as page:
        refine_files(page)
        page.tap("#go")
        page.wait_for_selector("#downloads:visible")
        photograph(page, f"phone-{scheme}")
        small = page.evaluate(
            "[...document.querySelectorAll('button:not([hidden]), .button')]"
            ".filter(b => b.offsetParent && b.getBoundingClientRect().height < 32).map(b => b.id || b.textContent)"
        )
        assert small == [], "large enough to touch"


def test_errors_are_said_and_announced(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1000, 800) as page:
        settled(page)
        page.set_input_files("#image-file", {"name": "a.png", "mimeType": "image/png", "buffer": png(picture()[:90])})
        masks = json.dumps([{"segmentation": coarse().to_rle()}]).encode()
        page.set_input_files("#mask-files", {"name": "m.json", "mimeType": "application/json", "buffer": masks})
        settled(page)
        page.click("#go")
        page.wait_for_selector("#message:visible")
        assert "of another size than the image" in page.inner_text("#message")
        assert page.get_attribute("#message", "role") == "alert"
        page.set_input_files("#mask-files", {"name": "m.json", "mimeType": "application/json", "buffer": b"{"})
        page.wait_for_selector("#message:has-text('not JSON')")


def test_with_a_key(browser: Any) -> None:
    keys = Keys([ApiKey(name="a", sha256=hash_key("k1"))])
    with serving(keys=keys) as server, Watched(browser, server.url, 1200, 850) as page:
        page.wait_for_selector("#message:visible")
        assert "API key" in page.inner_text("#message")
        page.click("#key-button")
        page.fill("#key", "k1")
        page.keyboard.press("Enter")
        refine_files(page)
        page.click("#go")
        page.wait_for_selector("#downloads:visible")
