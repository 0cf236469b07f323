"""Real components for tests: moto's S3 server in-process, and PostgreSQL as an ordinary user on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Forked

Process = subprocess.Popen[bytes] | Forked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(
    what: str,
    until: Callable[[], Any],
    patience_s: float = 200.0,
    about: Callable[[], str] = str,
    pause_s: float = 0.05,
) -> Any:
    """What ``until`` gives once it is true of another process; fails with ``what`` and ``about()`` if it never is."""
    give_up = time.monotonic() + patience_s
    while not (found := until()):
        assert time.monotonic() < give_up, f"{what}: not within {patience_s:g} s\n{about()}"
        time.sleep(pause_s)
    return found


class Processes:
    """Child processes whose output goes to ``folder/NAME.log``; they end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, list[Process]()

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder))
        return self.running[-1]

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))

    def wait(self, what: str, until: Callable[[], Any]) -> Any:
        return wait_for(what, until, about=self.logs)

    def close(self) -> None:
        for process in reversed(self.running):
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class S3Door:
    """Moto's S3 behind a door that every request passes.

    Args:
        door: takes a request's environment; False refuses it.
    """

    def __init__(self, door: Callable[[dict[str, Any]], bool]) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        moto = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, Any], start_response: Any) -> Any:
            if door(environ):
                return moto(environ, start_response)
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else said]

        self.server = make_server("127.0.0.1", 0, application, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def s3_door(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[dict[str, Any]], bool]], None]]:
    """Puts a door in front of the bucket of ``s3``."""
    from s3fs import S3FileSystem

    doors: list[S3Door] = []

    def put(door: Callable[[dict[str, Any]], bool]) -> None:
        doors.append(S3Door(door))
        monkeypatch.setenv("AWS_ENDPOINT_URL", doors[-1].url)
        S3FileSystem.clear_instance_cache()

    yield put
    for door in doors:
        door.close()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Address of a new bucket; the environment (of child processes too) leads fsspec to moto."""
    import boto3
    from s3fs import S3FileSystem

    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{time.monotonic_ns()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    S3FileSystem.clear_instance_cache()


class Postgres:
    """A PostgreSQL server in a folder, run as an ordinary user, that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[4]))
        found = str(binaries[-1]) if binaries else shutil.which("postgres")
        assert found, "PostgreSQL is missing: apt-get install postgresql"
        self.bin, self.folder, self.port = Path(found).parent, folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            for parent in (folder, *folder.parents):
                if parent in (Path("/"), Path("/tmp")):
                    break
                parent.chmod(parent.stat().st_mode | 0o011)
            shutil.chown(folder, "nobody")
        self._run("initdb", "-D", f"{folder}/data", "-U", "bpr", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
        command = [*as_user, str(self.bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, timeout=200)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off -c max_connections=200"
        data, log = f"{self.folder}/data", f"{self.folder}/log"
        self._run("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "-w", "stop")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://bpr@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    with contextlib.suppress(RuntimeError):  # it may be down already
        server.stop()


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """A new, empty database."""
    return postgres.new_database(f"db{time.monotonic_ns()}")
