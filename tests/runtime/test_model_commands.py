from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from bpr_service.runtime.model_commands import app
from tests.runtime.test_model_store import export


def bpr_models(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_the_life_of_two_versions(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    first = bpr_models("import", export(tmp_path / "e1", 1), "--name", "mine", "--activate", *store).split()[0]
    second = bpr_models("import", export(tmp_path / "e2", 2), "--name", "mine", "--parent", first, *store).split()[0]
    assert json.loads(bpr_models("show", second, *store))["provenance"]["parent"] == first
    assert "active" in bpr_models("activate", second, *store)
    assert bpr_models("rollback", "mine", *store).startswith(first)
    listed = json.loads(bpr_models("list", "--json", *store))
    assert {v["version"]: v["aliases"] for v in listed}[first.partition("@")[2]] == ["active"]
    assert len(bpr_models("list", "mine", *store).splitlines()) == 2
    assert bpr_models("verify", *store).count("as it was written") == 2


def test_verify_names_a_changed_file(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    bpr_models("import", export(tmp_path / "e1", 1), "--name", "mine", *store)
    (card,) = (tmp_path / "store").rglob("card.json")
    card.write_text(card.read_text() + " ")
    assert "card.json was changed" in bpr_models("verify", *store, code=1)
