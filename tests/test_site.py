"""The docs site: it builds strictly, is whole, and fetches nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from bpr_service.config import PRESETS
from tests.server.page.browsing import CHROMIUM, FLAGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds; strict, so that a broken link or a page that the navigation lacks fails here."""
    out = tmp_path_factory.mktemp("site")
    make = ["make", "docs", f"BIN={Path(sys.executable).parent}", f"SITE={out}", "-o", ".venv/.installed"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=200, env={**os.environ, "CI": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.mark.parametrize(
    ("index", "page", "message"),
    [
        ("# Home\n\n[more](more.md#more)\n", "# More\n", None),
        ("# Home\n\n[more](none.md)\n", "# More\n", "target is not found"),
        ("# Home\n\n[more](more.md#less)\n", "# More\n", "does not contain an anchor"),
        ("# Home\n", None, "not found in the documentation files"),
        ("# Home\n", "lone", "not included in the"),
    ],
    ids=["whole", "link", "anchor", "no file", "no place"],
)
def test_what_is_broken_ends_a_strict_build(
    tmp_path: Path, index: str, page: str | None, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    write_site(tmp_path, index, page)
    config = load_config(str(tmp_path / "mkdocs.yml"))
    with nullcontext() if message is None else pytest.raises(Abort):
        build(config)
    assert message is None or message in caplog.text


def test_a_broken_link_fails_make_docs(tmp_path: Path) -> None:
    write_site(tmp_path, "# Home\n\n[more](none.md)\n", "# More\n")
    make = ["make", "-f", str(ROOT / "Makefile"), "docs", f"BIN={Path(sys.executable).parent}", f"SITE={tmp_path}/out"]
    done = subprocess.run([*make, "-o", ".venv/.installed"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "target is not found" in done.stderr


def write_site(folder: Path, index: str, page: str | None) -> None:
    """Two pages, with the validation of `mkdocs.yml`."""
    given = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    config = {key: given[key] for key in ("site_name", "docs_dir", "strict", "validation")}
    config |= {"theme": "mkdocs", "plugins": [], "nav": ["index.md", *([] if page == "lone" else ["more.md"])]}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config))
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(index)
    if page:
        (folder / "docs" / "more.md").write_text(page)


class Fetched(HTMLParser):
    """Addresses that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found |= {given.get("src", ""), *given.get("srcset", "").split(",")}
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.found.add(given.get("href", ""))


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text())
        outside = [url for url in reader.found if re.match(r"(https?:)?//", url.strip())]
        assert outside == [], page
    for sheet in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", sheet.read_text())
        assert outside == [], sheet


def test_the_generated_pages_know_the_code(site: Path) -> None:
    def page(name: str) -> str:
        return (site / name).read_text()

    paths = json.loads(page("reference/openapi.json"))["paths"]
    assert {"/v1/refine/instance", "/v1/jobs/refine", "/metrics"} <= paths.keys()
    for path in paths:
        assert path in page("reference/openapi.html"), path
    for words in ("bpr batch instance", "bpr jobs submit", "bpr models rollback", "--max-batch-wait-ms"):
        assert words in page("reference/bpr.html")
    for words in ("bpr-train evaluate semantic", "--boundary-ratio"):
        assert words in page("reference/bpr-train.html")
    for name in {preset.model for preset in PRESETS.values()}:
        card = json.loads((ROOT / "bpr_service" / "models" / name / "card.json").read_text())
        assert card["sha256"] in page("models.html")
        assert all(data["terms"].split(":")[0] in page("models.html") for data in card["data"])
    metrics = page("operations/metrics.html")
    assert all(name in metrics for name in ("bpr_queue_wait_seconds", "BprNoWorkers", "bpr_jobs_queued"))
    for name in ("refine_panoptic", "from_polygons", "nms_threshold", "AsyncClient", "place_patches"):
        assert name in page("reference/python.html"), name


def test_search_works_from_a_folder(site: Path) -> None:
    """Without a server, and without anything from elsewhere."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        outside: list[str] = []
        page.on("request", lambda request: request.url.startswith("file:") or outside.append(request.url))
        page.goto((site / "index.html").as_uri())
        picture = page.locator("article img").first.bounding_box()
        assert picture["y"] < 500, "the gain is on the first screen"
        page.wait_for_function("window.__index !== undefined")
        page.click("input[name=query]")
        page.keyboard.type("panoptic")  # it listens to keys
        page.locator(".md-search-result__link").first.wait_for(state="attached")
        browser.close()
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


def test_docstrings_are_shown_as_prose(site: Path) -> None:
    for page in (site / "reference").glob("*.html"):
        text = page.read_text()
        assert not re.search(r":(class|func|meth):<code>|<p>::</p>", text), page
