"""docs/api.md: its shell examples run in order against a server, its Python too, and its tables are complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpr_service.server.http.auth import ApiKey, Keys, hash_key
from bpr_service.server.settings import ServerSettings
from tests.server.helpers import coarse, serving

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
TEXT = DOCS.read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.S | re.M)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    script = "\n".join([block for block in blocks("sh") if not block.startswith("# needs:")])
    keys = Keys([ApiKey(name="docs", sha256=hash_key("secret"), scopes=("refine", "jobs", "admin"))])
    with serving(keys=keys) as server:
        # The model of the examples is called by the preset's name as well.
        environment = {**os.environ, "URL": server.url, "KEY": "secret"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "refined" in done.stdout
        space = {"URL": server.url, "KEY": "secret", "masks": [coarse().to_rle()]}
        os.chdir(tmp_path)
        (code,) = blocks("python")
        with pytest.raises(Exception, match="of another size"):  # the example's image is the photograph's
            exec(code, space)
        space["masks"] = __import__("json").loads((tmp_path / "masks.json").read_text())
        exec(code, space)


def test_every_route_has_an_example() -> None:
    with serving(start=False) as server:
        paths = server.app.openapi()["paths"]
    examples = "\n".join(blocks("sh"))
    for path in paths:
        plain = re.sub(r"\{[^}]+\}", "§", path)
        pattern = re.escape(plain).replace("§", r"[^/\s\"]+")
        if path.endswith(("/versions/{model_version}", "/versions/{model_version}/ready")):
            continue
        if path.startswith("/v1/refine/"):
            pattern = r"/v1/refine/(\$task|instance)"
        assert re.search(pattern + r"[\"\s]", examples), path


def test_every_setting_is_in_the_table() -> None:
    for name in ServerSettings.model_fields.keys() - {"dummy", "dummy_call_ms", "dummy_patch_ms"}:
        assert f"BPR_{name.upper()}`" in TEXT, name


def test_tests_that_the_pages_of_operation_name_exist() -> None:
    named = {
        path
        for page in (DOCS.parent / "operations").glob("*.md")
        for path in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text())
    }
    assert len(named) > 15
    assert sorted(path for path in named if not (DOCS.parents[1] / path).exists()) == []
