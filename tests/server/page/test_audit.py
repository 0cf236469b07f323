"""The page of an audit in a real browser: as one file, and over a job of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpr_service.jobs.engine import JobEngine
from bpr_service.jobs.settings import JobSettings
from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from bpr_service.server.http.jobs import job_router
from tests.audit.samples import audit_set, work
from tests.server.helpers import Running, serving
from tests.server.page.browsing import Watched, needs_chromium, photograph

pytestmark = needs_chromium
KEY = "sessionStorage.setItem('bpr-key', 'ann')"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server with keys whose one job, an audit, is done; the root of its files."""
    root = tmp_path_factory.mktemp("root")
    roots: Any = {"data": {"path": str(root)}}
    engine = JobEngine(JobSettings(folder=str(root / "jobs"), roots=roots, models=str(root / "models")))
    values = audit_set(root / "set")
    named = {key: f"data:set/{name}" for key, name in (("images", "images"), ("predictions", "ann.json"),
                                                       ("out", "report.json"), ("model", "model"))}  # fmt: skip
    work(engine, engine.submit({**values, **named, "page_out": "data:set/page.html"}, "mine", owner="ann"))
    keys = Keys([ApiKey(name="ann", sha256=hash_key("ann"), scopes=("refine", "jobs"))])
    with serving(keys=keys, job_router=job_router(engine)) as running:
        yield running, root / "set"
    engine.close()


def decide(page: Any) -> list[str]:
    """Look at the masks by keyboard alone; the words beside the first ones."""
    page.wait_for_selector("#stage:not([hidden])")
    assert page.locator(".item").count() == 9
    assert "disc" in page.inner_text(".item")
    for key in ("k", "m", "ArrowDown", "+", "h", "0", "ArrowUp"):
        page.keyboard.press(key)
    assert page.inner_text("#progress") == "2 of 9 decided"
    return page.locator(".item em small").all_inner_texts()[:3]


def test_a_finished_audit_is_a_view_of_the_servers_page(browser: Any, audited: tuple[Running, Path]) -> None:
    running, _ = audited
    with Watched(browser, running.url, 1280, 800) as page:
        page.evaluate(KEY)
        page.goto(running.url + "/#jobs")
        page.click("text=Look at the masks")
        assert decide(page) == ["kept", "for a person", ""]
        assert page.evaluate("[...document.images].every((i) => i.naturalWidth > 0)")
        photograph(page, "audit-server")
        page.reload()  # what was decided is kept by the browser
        page.wait_for_selector("#progress:has-text('2 of 9 decided')")
        page.click("a:has-text('Jobs')")
        page.wait_for_selector("#jobs-body .card")


def test_a_job_that_is_not_there_or_not_ones_own_is_told(browser: Any, audited: tuple[Running, Path]) -> None:
    running, _ = audited
    with Watched(browser, running.url + "/page/audit.html#mine", 1280, 800) as page:
        page.wait_for_selector("#message:has-text('This server has keys')")
        page.evaluate(KEY)
        page.goto(running.url + "/page/audit.html#other")  # it loads itself again
        page.wait_for_selector("#message:has-text('other')")


def test_nothing_of_a_jobs_file_runs_in_the_servers_page(browser: Any, audited: tuple[Running, Path]) -> None:
    """Whoever may write to the root may replace the file that the job wrote."""
    running, folder = audited
    right = (folder / "page.html").read_text()
    script = "<script id='pwned'>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
    bad = r'"disc\u003cimg src=x onerror=\"window.ran = 1\">"'
    (folder / "page.html").write_text(right.replace("<body>", f"<body>{script}").replace('"disc"', bad))
    try:
        with Watched(browser, running.url, 1280, 800) as page:
            page.evaluate(KEY)
            page.goto(running.url + "/page/audit.html#mine")
            decide(page)
            assert page.evaluate("window.ran") is None
    finally:
        (folder / "page.html").write_text(right)


def test_the_page_is_one_file_and_saves_what_was_decided(
    browser: Any, audited: tuple[Running, Path], tmp_path: Path
) -> None:
    _, folder = audited
    with Watched(browser, f"file://{folder / 'page.html'}", 1280, 800) as page:
        assert decide(page)[0] == "kept"
        page.evaluate("go(shown.findIndex((m) => m.better && !decisions[m.key]))")
        page.keyboard.press("t")
        taken = page.evaluate("MASKS.filter((m) => decisions[m.key] === 'take')[0]")
        photograph(page, "audit-file")
        page.click("summary")
        saved = {}
        for name in ("decisions", "fiftyone", "cvat", "labelstudio"):
            with page.expect_download() as download:
                page.click(f"[data-save={name}]")
            saved[name] = Path(download.value.path()).read_text()
        with page.expect_download() as download:
            page.set_input_files("#original", str(folder / "ann.json"))
        mended = json.loads(Path(download.value.path()).read_text())
    assert sorted(json.loads(saved["decisions"])["decisions"].values()) == ["keep", "person", "take"]
    before = json.loads((folder / "ann.json").read_text())
    changed = [a["id"] for a, b in zip(before["annotations"], mended["annotations"], strict=True) if a != b]
    assert changed == [taken["id"]]
    (sample,) = json.loads(saved["fiftyone"])["samples"]
    assert len(sample["audit"]["detections"][0]["bounding_box"]) == 4
    assert saved["cvat"].count("<image ") == 1
    (task,) = json.loads(saved["labelstudio"])
    assert task["predictions"][0]["result"][0]["type"] == "polygonlabels"
