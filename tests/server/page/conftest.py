"""A browser, and a server for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpr_service.runtime.dummy import DummyModels
from tests.server.helpers import Running, serving
from tests.server.page.browsing import CHROMIUM, FLAGS


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving(None, DummyModels(("balanced", "fast"))) as running:
        yield running
