"""The page as a tool: going to a mask, taking it or not, kinds of masks, swapped and turned pictures, cancelling."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.masks.label_maps import encode_png, read_label_map
from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.models import StoreModels
from tests.server.helpers import HEIGHT, WIDTH, Running, coarse, disc, picture, png, serving
from tests.server.page.browsing import Watched, needs_chromium, refine_files, settled

pytestmark = needs_chromium


def give(page: Any, **files: tuple[str, str, bytes]) -> None:
    """Choose files by the ids of their inputs, and wait."""
    settled(page)
    for name, (file, kind, data) in files.items():
        page.set_input_files(f"#{name}-file", {"name": file, "mimeType": kind, "buffer": data})
        settled(page)


def refined(page: Any) -> None:
    page.click("#go")
    page.wait_for_selector("#downloads:visible")
    settled(page)


def saved(page: Any, name: str) -> bytes:
    with page.expect_download() as download:
        page.click(f"#{name}")
    return Path(download.value.path()).read_bytes()


def test_only_what_was_taken_is_written(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1360, 860) as page:
        refine_files(page)
        refined(page)
        shown = page.evaluate("document.querySelector('#after').toDataURL()")
        page.get_by_label("Take disc").uncheck()
        assert page.evaluate("document.querySelector('#after').toDataURL()") != shown, "as it came"
        assert "2 of 3 taken; the others stay as they came" in page.inner_text("#taken")
        first, second, _ = json.loads(saved(page, "save-json"))["masks"]
        assert first["segmentation"] == coarse().to_rle()
        assert second["segmentation"] != coarse(cx=30, cy=30, r=20).to_rle(compressed=False)
        page.click("#accept-all")
        assert page.get_by_label("Take disc").is_checked()
        page.click("#accept-all")
        assert "0 of 3 taken" in page.inner_text("#taken")


def test_places_that_the_model_is_unsure_of_are_marked(browser: Any) -> None:
    pytest.importorskip("skimage")
    source = StoreModels(("balanced",), "cpu")
    with serving(None, source, catalogue=source) as server, Watched(browser, server.url, 1360, 860) as page:
        settled(page)
        page.get_by_role("button", name="astronaut").click()
        settled(page)
        answer = server.client.post("/v1/refine/instance", json=server.client.get("/v1/examples/astronaut").json())
        x, _, width, _ = answer.json()["masks"][0]["uncertain"][0]
        assert page.is_visible("#unsure")
        assert "look here" in page.locator("#changes tr", has_text="person").inner_text()
        page.get_by_role("button", name="person").click()
        left, size = page.evaluate(
            "[parseFloat(document.querySelector('#lens').style.left), document.querySelector('#stage').clientWidth]"
        )
        assert abs(left * 512 / size + 22.5 - (x + width / 2)) < 2, "the row leads there"


def test_a_row_goes_to_its_mask_and_wheel_and_keys_enlarge(browser: Any, service: Running) -> None:
    with Watched(browser, service.url, 1360, 860) as page:
        refine_files(page)
        refined(page)

        def lens() -> tuple[float, float]:
            left, top = page.evaluate("(({left, top}) => [left, top])(document.querySelector('#lens').style)")
            return float(left[:-2]), float(top[:-2])

        size = page.evaluate("document.querySelector('#stage').clientWidth") / WIDTH
        page.get_by_role("button", name="small", exact=True).click()
        x, y = lens()
        assert (x / size + 22.5 - 30) ** 2 + (y / size + 22.5 - 30) ** 2 < 40**2, "at the mask around (30, 30)"
        assert page.get_by_role("button", name="small", exact=True).get_attribute("aria-pressed") == "true"
        page.locator("#changes tr", has_text="disc").locator("td").last.click()
        assert page.get_by_role("button", name="disc", exact=True).get_attribute("aria-pressed") == "true"
        page.hover("#stage", position={"x": 200, "y": 150})
        page.mouse.wheel(0, -400)
        page.wait_for_function("document.querySelector('#plane').style.transform.match(/scale\\((.*)\\)/)[1] > 1.5")
        assert page.is_enabled("#fit")
        page.focus("#stage")
        page.keyboard.press("0")
        assert page.evaluate("document.querySelector('#plane').style.transform").endswith("scale(1)")
        page.click("#closer")
        assert page.evaluate("document.querySelector('#plane').style.transform").endswith("scale(1.5)")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["ids", "classes"])
def test_maps_of_ids_and_classes(browser: Any, service: Running, kind: str, dtype: Any) -> None:
    first, second = (5, 9) if dtype is np.uint8 else (5, 900)
    ids = np.zeros((HEIGHT, WIDTH), dtype)
    ids[disc(cx=50, r=30)], ids[disc(cx=150, r=30)] = first, second
    with Watched(browser, service.url, 1360, 860) as page:
        settled(page)
        page.select_option("#kind", kind)
        give(page, image=("a.png", "image/png", png(picture())))
        page.set_input_files("#mask-files", {"name": "map.png", "mimeType": "image/png", "buffer": encode_png(ids)})
        settled(page)
        refined(page)
        whole = read_label_map(saved(page, "save-map"))
        assert whole.dtype == dtype
        assert (whole != ids).any()
        word = "id" if kind == "ids" else "class"
        page.get_by_label(f"Take {word} {second}").uncheck()
        part = read_label_map(saved(page, "save-map"))
    assert np.array_equal(part == second, ids == second), "as it came"
    assert np.array_equal(part == first, whole == first)


def test_soft_masks_are_sent_as_probabilities(browser: Any, service: Running) -> None:
    soft = (disc() * 200 + disc(r=60) * 40).astype(np.uint8)
    with Watched(browser, service.url, 1360, 860) as page:
        give(page, image=("a.png", "image/png", png(picture())))
        page.set_input_files("#mask-files", {"name": "soft.png", "mimeType": "image/png", "buffer": png(soft)})
        page.wait_for_selector("#message:has-text('more than two values')")
        page.select_option("#kind", "soft")
        give(page, image=("a.png", "image/png", png(picture())))
        page.set_input_files("#mask-files", {"name": "soft.png", "mimeType": "image/png", "buffer": png(soft)})
        settled(page)
        refined(page)
        values = np.asarray(Image.open(io.BytesIO(saved(page, "save-png"))))
    assert len(np.unique(values)) > 2


def test_panoptic_segments_with_their_json(browser: Any, service: Running) -> None:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[disc(cx=50, r=30)], rgb[disc(cx=150, r=30)] = (44, 1, 0), (3, 0, 0)
    infos = {"segments_info": [{"id": 300, "category_id": 1, "note": "x"}, {"id": 3, "category_id": 2}]}
    with Watched(browser, service.url, 1360, 860) as page:
        settled(page)
        page.select_option("#kind", "panoptic")
        give(page, image=("a.png", "image/png", png(picture())))
        page.set_input_files(
            "#mask-files",
            [
                {"name": "pan.png", "mimeType": "image/png", "buffer": encode_png(rgb)},
                {"name": "pan.json", "mimeType": "application/json", "buffer": json.dumps(infos).encode()},
            ],
        )
        settled(page)
        refined(page)
        page.get_by_label("Take segment 300").uncheck()
        with page.expect_event("download", lambda download: download.suggested_filename == "a.json") as as_json:
            with page.expect_event("download", lambda download: download.suggested_filename == "a.png") as as_png:
                page.click("#save-map")
        found = [Path(download.value.path()).read_bytes() for download in (as_png, as_json)]
    after = np.asarray(Image.open(io.BytesIO(found[0]))).astype(int)
    listed = json.loads(found[1])["segments_info"]
    assert np.array_equal((after == [44, 1, 0]).all(2), disc(cx=50, r=30))
    assert {s["id"]: s["area"] for s in listed} == {300: disc(cx=50, r=30).sum(), 3: (after == [3, 0, 0]).all(2).sum()}
    assert listed[0]["note"] == "x"


def test_the_picture_and_its_mask_are_swapped_back(browser: Any, service: Running) -> None:
    mask = png(disc().astype(np.uint8) * 255)
    with Watched(browser, service.url, 1360, 860) as page:
        give(page, image=("mask.png", "image/png", mask))
        page.set_input_files("#mask-files", {"name": "photo.png", "mimeType": "image/png", "buffer": png(picture())})
        page.wait_for_selector("#message:has-text('more than two values')")
        page.click("#swap")
        settled(page)
        assert page.is_hidden("#message")
        assert page.inner_text("#chosen").startswith("photo: 200")
        refined(page)


@pytest.mark.parametrize(("shape", "asked"), [((WIDTH, HEIGHT), "apply"), ((HEIGHT, WIDTH), "ignore")])
def test_a_turned_photograph_is_shown_as_its_masks_are(
    browser: Any, service: Running, shape: tuple[int, int], asked: str
) -> None:
    exif, data, (height, width) = Image.Exif(), io.BytesIO(), shape
    exif[0x0112] = 6
    Image.fromarray(picture()).save(data, "JPEG", exif=exif, quality=95)
    mask = np.zeros(shape, np.uint8)
    mask[40:90, 40:100] = 1
    content = json.dumps([{"segmentation": {"size": [height, width], "counts": runs(mask)}}]).encode()
    with Watched(browser, service.url, 1360, 860) as page:
        give(page, image=("a.jpg", "image/jpeg", data.getvalue()))
        page.set_input_files("#mask-files", {"name": "m.json", "mimeType": "application/json", "buffer": content})
        settled(page)
        assert page.is_visible("#turned")
        assert page.input_value("#turned-as") == asked
        assert f"{width} \u00d7 {height} px" in page.inner_text("#chosen")
        refined(page)
        assert page.is_hidden("#message")


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts."""
    flat = np.concatenate([[0], mask.T.reshape(-1), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def test_a_request_under_way_is_cancelled(browser: Any) -> None:
    with serving(None, DummyModels(call_ms=1500)) as server, Watched(browser, server.url, 1360, 860) as page:
        page.wait_for_selector("#working:visible")  # of the example
        page.click("#cancel")
        settled(page)
        assert page.is_hidden("#working")
        assert page.is_hidden("#downloads")
        assert page.is_hidden("#message")
        assert page.is_enabled("#go")
