"""Jobs, models and the API in a real browser; every view at three widths, light and dark."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpr_service.runtime.dummy import DummyModels
from bpr_service.server.http.jobs import job_router
from tests.jobs.fleet import Fleet
from tests.server.helpers import Running, serving
from tests.server.http.test_jobs import body as job_body
from tests.server.page.browsing import Watched, needs_chromium, photograph, settled
from tests.server.test_models import models  # noqa: F401  a fixture

pytestmark = needs_chromium
FAULTS = Path(__file__).with_name("faults.js").read_text()
"""What assistive technology would stumble over in what is shown: names, roles, references, contrast (WCAG 2.1)."""


def test_models_jobs_and_docs(browser: Any) -> None:
    with serving() as server, Watched(browser, server.url, 1200, 850) as page:
        page.click("#tab-models")
        page.wait_for_selector("#models-body .card")
        assert "serving" in page.inner_text("#models-body")
        page.click("#tab-jobs")
        page.wait_for_selector("#jobs-body:has-text('runs without jobs')")
        page.goto(server.url + "/docs")
        route = page.locator("#routes details:has-text('POST/v1/refine/instance')")
        route.locator("summary").click()
        for language, words in (("Python", "httpx.request"), ("JavaScript", "await fetch"), ("curl", "curl --fail")):
            route.get_by_role("button", name=language, exact=True).click()
            assert words in route.locator("pre").first.inner_text()
        route.get_by_role("button", name="Send POST").click()
        route.locator("pre[aria-label=Answer]:has-text('request_id')").wait_for()
        photograph(page, "docs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with jobs: one done, one failed, one waiting."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), "")
    try:
        values = {"kind": "refine", **job_body(fleet, 3)}
        fleet.engine.submit(values, "done")
        (fleet.root / "broken.json").write_text('[{"image_id": 1')
        fleet.engine.submit({**values, "predictions": "data:broken.json", "out": "data:other.json"}, "failed")
        fleet.start()
        assert fleet.wait("done").state == "done"
        assert fleet.wait("failed").state == "failed"
        fleet.close()  # no worker any more
        fleet.engine.submit({**values, "out": "data:third.json"}, "waiting")
        with serving(None, DummyModels(("balanced", "fast")), job_router=job_router(fleet.engine)) as running:
            yield running
    finally:
        fleet.close()


def test_jobs_say_how_far_they_are_and_why_they_failed(browser: Any, installed: Running) -> None:
    with Watched(browser, installed.url + "/#jobs", 1200, 850) as page:
        failed, done = page.locator("[aria-label='Job failed']"), page.locator("[aria-label='Job done']")
        failed.wait_for()
        assert "broken.json" in failed.locator(".reasons").inner_text()
        assert failed.get_by_role("button", name="Resume").is_visible()
        assert done.locator("progress").get_attribute("aria-label") == "3 of 3"
        bar, row = done.locator("progress").bounding_box(), done.get_by_role("button", name="Log").bounding_box()
        assert bar["y"] + bar["height"] <= row["y"], "it covers no button"
        with page.expect_download() as download:
            done.get_by_role("button", name="Report").click()
        assert json.loads(Path(download.value.path()).read_text())["images"] == 3
        page.locator("[aria-label='Job waiting']").get_by_role("button", name="Cancel").click()
        page.locator("[aria-label='Job waiting']:has-text('cancelled')").wait_for()
        page.click("#job-submit summary")
        assert json.loads(page.input_value("#job-body"))["predictions"] == "data:predictions.json"
        page.select_option("#job-kind", "train")
        assert json.loads(page.input_value("#job-body"))["name"] == "mine"


def test_versions_stand_side_by_side_and_the_one_before_comes_back(
    browser: Any,
    models: Any,  # noqa: F811
) -> None:
    source, store, (bundled, second, _) = models
    with (
        serving(None, source, catalogue=source) as server,
        Watched(browser, server.url + "/#models", 1200, 850) as page,
    ):
        page.get_by_role("button", name=f"Activate {second}").click()
        back = page.get_by_role("button", name=f"Roll back {bundled}")
        back.wait_for()
        assert store.aliases("tiny")["active"] == second
        back.click()
        page.get_by_role("button", name=f"Roll back {second}").wait_for()
        table = page.inner_text("#models-body table")
        assert "with the package" in table
        assert re.search(r"into the store, \w+", table)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1360, 860), (820, 1100), (390, 844)])
@pytest.mark.parametrize("view", ["#refine", "#jobs", "#models", "docs"])
def test_every_view_at_three_widths(
    browser: Any, installed: Running, view: str, width: int, height: int, scheme: str
) -> None:
    """Nothing is wider than the screen, and nothing is wrong for assistive technology."""
    url = f"{installed.url}/{view}"
    with Watched(
        browser, url, width, height, color_scheme=scheme, is_mobile=width < 500, has_touch=width < 500
    ) as page:
        ready = {"#refine": "#downloads", "#jobs": "#jobs-body .card", "#models": "#models-body .card"}
        page.wait_for_selector(ready.get(view, "#routes details"), state="attached")
        if view == "#refine":
            page.wait_for_selector("#downloads:not([hidden])", state="attached")
            settled(page)
            stage, zoom = (page.locator(name).bounding_box() for name in ("#stage", "#zoom"))
            assert stage["y"] + stage["height"] <= height, "before and after are seen without scrolling"
            assert width < 500 or zoom["y"] < height
        if view == "docs":
            page.locator("#routes details summary").first.click()
        photograph(page, f"{view.strip('#')}-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(FAULTS) == []
