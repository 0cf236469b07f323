"""Keys: hashed, compared whole, scoped, and each with its rate."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bpr_service.errors import AuthError, BusyError, ConfigError, ForbiddenError
from bpr_service.server.http import auth
from bpr_service.server.http.auth import ApiKey, Bucket, Keys, hash_key, new_key, read_keys
from bpr_service.server.server_commands import keys as keys_command
from bpr_service.server.server_commands import serve


def test_a_new_key_is_kept_as_a_hash_only() -> None:
    key, kept = new_key("ann", ("refine",))
    assert key.startswith("bpr_")
    assert len(key) > 40
    assert kept.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert key not in kept.model_dump_json()


def test_bearer_and_basic_and_nothing_else() -> None:
    keys = Keys([ApiKey(name="ann", sha256=hash_key("secret"))])
    basic = base64.b64encode(b"anyone:secret").decode()
    assert keys.check("Bearer secret", "refine").name == "ann"
    assert keys.check("bearer  secret ", "refine").name == "ann"
    assert keys.check(f"Basic {basic}", "refine").name == "ann"
    for header in (None, "", "Bearer", "Bearer ", "Bearer Secret", "Basic !!!", "Digest secret", "secret"):
        with pytest.raises(AuthError):
            keys.check(header, "refine")
    with pytest.raises(ForbiddenError, match="scope admin"):
        keys.check("Bearer secret", "admin")


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    compare = hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        seen.append(b)
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    kept = [ApiKey(name=f"k{i}", sha256=hash_key(str(i))) for i in range(4)]
    assert Keys(kept).check("Bearer 0", "refine").name == "k0"
    assert seen == [key.sha256 for key in kept], "the first match must not end the search"


def test_the_rate_is_per_key() -> None:
    keys = Keys([ApiKey(name="a", sha256=hash_key("a"), per_minute=20), ApiKey(name="b", sha256=hash_key("b"))])
    for _ in range(2):
        keys.check("Bearer a", "refine")
    with pytest.raises(BusyError, match="at most 20 requests a minute") as caught:
        keys.check("Bearer a", "refine")
    assert 0 < caught.value.retry_after_s <= 3
    for _ in range(100):
        keys.check("Bearer b", "refine")


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    assert [bucket.take() for _ in range(6)] == [0.0] * 6
    assert bucket.take() == pytest.approx(1.0)
    now[0] = 0.5
    assert bucket.take() == pytest.approx(0.5)
    now[0] = 1.0
    assert bucket.take() == 0.0
    now[0] = 1000.0
    assert [bucket.take() > 0 for _ in range(7)] == [False] * 6 + [True], "no more than its room is saved up"


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '[{"name": "a"}]', '[{"name": "a", "sha256": "short"}]', '[{"name": "a", "key": "plain"}]'],
)
def test_a_key_file_that_is_wrong_stops_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="api_keys_file"):
        read_keys(path)
    with pytest.raises(ConfigError, match="api_keys_file"):
        read_keys(tmp_path / "missing.json")


def test_bpr_keys_shows_a_key_once_and_keeps_its_hash(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(keys_command)
    app.command()(serve)  # two commands, so that each is called by its name
    path = tmp_path / "keys.json"
    first = CliRunner().invoke(app, ["keys", "ann", "--file", str(path), "--scopes", "refine,admin"])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, ["keys", "bob", "--file", str(path), "--per-minute", "60"])
    keys = Keys(read_keys(path))
    assert keys.check(f"Bearer {first.output.strip()}", "admin").name == "ann"
    assert keys.check(f"Bearer {second.output.strip()}", "jobs").name == "bob"
    assert path.stat().st_mode & 0o077 == 0
    assert first.output.strip() not in path.read_text()
    assert len(json.loads(path.read_text())) == 2
    again = CliRunner().invoke(app, ["keys", "ann", "--file", str(path)])
    assert again.exit_code != 0


def write(path: Path, *keys: ApiKey) -> None:
    path.write_text(json.dumps([key.model_dump(mode="json") for key in keys]))


def test_a_key_that_was_taken_out_of_the_file_stops_to_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOOK_S", 60.0)  # however busy the machine is
    path = tmp_path / "keys.json"
    first, second = ApiKey(name="first", sha256=hash_key("1")), ApiKey(name="second", sha256=hash_key("2"))
    write(path, first, second)
    keys = Keys(path=path)
    assert keys.check("Bearer 2", "refine").name == "second"
    write(path, first)
    with pytest.raises(AuthError):
        keys.check("Bearer 2", "refine")
    path.write_text("damaged")
    assert keys.check("Bearer 1", "refine").name == "first", "a damaged file leaves the keys as they were"
    path.unlink()
    assert keys.check("Bearer 1", "refine").name == "first"
    write(path, second)
    assert keys.check("Bearer 2", "refine").name == "second"


def test_processes_share_a_rate() -> None:
    key = ApiKey(name="a", sha256=hash_key("a"), per_minute=120)
    alone, shared = Keys([key]), Keys([key], processes=3)

    def allowed(keys: Keys) -> int:
        for n in range(100):
            try:
                keys.check("Bearer a", "refine")
            except BusyError:
                return n
        return 100

    assert (allowed(alone), allowed(shared)) == (12, 4)
