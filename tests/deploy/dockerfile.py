"""The Dockerfile read as data, and run without a container engine.

`read` gives the stages and their instructions; the checks are made on them. Run as a script, the stages that a target
needs are built in order, each in a root file system of its own (an overlay over a base made by ``debootstrap``), with
the very commands of the file in a chroot. Then the image's own command runs there as its own user, on a read-only root.

::

    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm /tmp/base
    python -m tests.deploy.dockerfile cpu --base /tmp/base --work /tmp/image

Needs root and a network for the packages; minutes and gigabytes, so no test runs it. ``--no-torch-backend`` leaves that
option of uv out, where torch's own index cannot be reached: torch is then the one with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
"""What the build has besides the file's own environment: the certificates that this machine trusts."""


@dataclass(frozen=True)
class Step:
    """One instruction: its name, its text with continuation lines joined, its ``--flags``."""

    name: str
    text: str
    flags: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The arguments; those of the exec form where the text is JSON."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


@dataclass
class Stage:
    name: str
    parent: str
    steps: list[Step] = field(default_factory=list)

    def all(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.name == name]


def read(text: str) -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first stage, and the stages by name in the order of the file."""
    globals_: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in _lines(text):
        name, _, rest = line.partition(" ")
        rest, flags = rest.strip(), {}
        while name != "HEALTHCHECK" and (match := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", rest)):
            flags[match[1]], rest = match[2] or "", rest[match.end() :]
        if name == "FROM":
            parent, _, own = rest.partition(" AS ")
            stage = stages[own] = Stage(own, parent)
        elif stage is None:
            key, _, value = rest.partition("=")
            globals_[key] = value
        else:
            stage.steps.append(Step(name, rest, flags))
    return globals_, stages


def _lines(text: str) -> Iterator[str]:
    whole = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    yield from (line.strip() for line in re.sub(r"\\\n\s*", "", "\n".join(whole)).splitlines() if line.strip())


def chain(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that ``target`` is made of, the first one first."""
    found = [stages[target]]
    while found[0].parent in stages:
        found.insert(0, stages[found[0].parent])
    return found


def environment(stages: dict[str, Stage], target: str) -> dict[str, str]:
    """What ``ENV`` sets in an image, over the base's ``PATH``."""
    values = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
    for stage in chain(stages, target):
        for step in stage.all("ENV"):
            for word in shlex.split(step.text):
                key, _, value = word.partition("=")
                values[key] = re.sub(r"\$\{?(\w+)\}?", lambda m: values.get(m[1], ""), value)
    return values


def last(stages: dict[str, Stage], target: str, name: str) -> Step | None:
    """The instruction that holds in an image: the last of its name."""
    found = [step for stage in chain(stages, target) for step in stage.all(name)]
    return found[-1] if found else None


def needed(stages: dict[str, Stage], target: str) -> list[str]:
    """Names of the stages that must be built for ``target``, in order."""
    found: list[str] = []
    for stage in chain(stages, target):
        for step in stage.all("COPY"):
            if step.flags.get("from") in stages:
                found += [name for name in needed(stages, step.flags["from"]) if name not in found]
        if stage.name not in found:
            found.append(stage.name)
    return found


def copied(stages: dict[str, Stage], target: str) -> list[str]:
    """Every path of the repository that the stages of ``target`` copy."""
    steps = [step for name in needed(stages, target) for step in stages[name].all("COPY") if "from" not in step.flags]
    return sorted({path for step in steps for path in step.words()[:-1]})


# ---------------------------------------------------------------- building it


class Builder:
    """Builds stages in ``work``: an overlay each over its parent's, the first over ``base``."""

    def __init__(self, base: Path, work: Path, *, torch_backend: bool) -> None:
        self.base, self.work, self.torch_backend = base, work, torch_backend
        self.globals, self.stages = read((ROOT / "Dockerfile").read_text())
        self.mounts: list[Path] = []
        self.layers: dict[str, list[str]] = {}

    def root(self, name: str) -> Path:
        return self.work / name / "root"

    def build(self, target: str) -> None:
        for name in needed(self.stages, target):
            self._stage(self.stages[name])

    def _stage(self, stage: Stage) -> None:
        below = self.layers.get(stage.parent, [str(self.base)])
        upper, temporary, root = (self.work / stage.name / part for part in ("upper", "work", "root"))
        for folder in (upper, temporary, root):
            folder.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={':'.join(below)},upperdir={upper},workdir={temporary}"
        self._mount(root, "-t", "overlay", "overlay", "-o", options)
        self.layers[stage.name] = [str(upper), *below]
        if stage.parent not in self.stages:
            self._stand_in(root)
        for folder in ("proc", "dev"):
            self._mount(root / folder, "--rbind", f"/{folder}")
        values = dict(self.globals)
        where = "/"
        for above in chain(self.stages, stage.parent) if stage.parent in self.stages else []:
            where = next((step.text for step in reversed(above.all("WORKDIR"))), where)
        user = "0"
        for step in stage.steps:
            print(f"[{stage.name}] {step.name} {step.text}", flush=True)
            if step.name == "WORKDIR":
                where = step.text
                (root / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.name == "COPY":
                self._copy(step, root, where)
            elif step.name == "RUN":
                self._run(root, step.text, where, {**values, **environment(self.stages, stage.name)}, user)

    def _stand_in(self, root: Path) -> None:
        """What python:*-slim has and Debian has not: ``python``, and a pip that may install."""
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for marker in (root / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", root / "etc/pip.conf")

    def _copy(self, step: Step, root: Path, where: str) -> None:
        *sources, target = step.words()
        origin = self.root(step.flags["from"]) if "from" in step.flags else ROOT
        into = root / os.path.normpath(os.path.join(where, target)).lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.pyc") if origin == ROOT else None
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                file = into / path.name if target.endswith("/") else into
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, file)

    def _run(self, root: Path, command: str, where: str, values: dict[str, str], user: str) -> None:
        if not self.torch_backend:
            command = re.sub(r"--torch-backend \S+", "", command)
        self.execute(root, ["/bin/sh", "-c", command], where, values, user)

    def execute(self, root: Path, command: list[str], where: str, values: dict[str, str], user: str) -> None:
        inside = ["chroot", f"--userspec={user}", str(root), "/bin/sh", "-c", 'cd "$0" && exec "$@"', where, *command]
        subprocess.run(inside, env={**HOST, **values}, check=True)

    def check(self, target: str, commands: list[list[str]]) -> None:
        """Run commands in the finished image as its user, its root read-only but for the volumes and ``/tmp``."""
        root = self.root(target)
        volumes = last(self.stages, target, "VOLUME")
        assert volumes is not None
        self._mount(root / "tmp", "-t", "tmpfs", "tmpfs")
        for path in volumes.words():
            kept = self.work / "volumes" / path.strip("/").replace("/", "-")
            shutil.copytree(root / path.lstrip("/"), kept, dirs_exist_ok=True)
            shutil.chown(kept, 10001, 10001)
            self._mount(root / path.lstrip("/"), "--bind", str(kept))
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        user, where = last(self.stages, target, "USER"), last(self.stages, target, "WORKDIR")
        assert user is not None
        assert where is not None
        for command in commands:
            print("[run]", *command, flush=True)
            self.execute(root, command, where.text, environment(self.stages, target), user.text)

    def _mount(self, at: Path, *options: str) -> None:
        subprocess.run(["mount", *options, str(at)], check=True)
        self.mounts.append(at)
        if "--rbind" in options:
            subprocess.run(["mount", "--make-rslave", str(at)], check=True)

    def close(self) -> None:
        for at in reversed(self.mounts):
            subprocess.run(["umount", "--recursive", "--lazy", str(at)], check=False)


CHECKS = [
    ["bpr", "doctor"],
    ["/bin/sh", "-c", "! touch /opt/bpr/x 2>/dev/null && ! command -v gcc && test $(id -u) = 10001"],
    ["python", "-c", "import bpr_service.server.app, bpr_service.jobs.worker, bpr_service.server.telemetry, s3fs"],
    [
        "/bin/sh", "-c",
        "BPR_THREADS=1 BPR_PRESETS='[\"fast\"]' bpr serve & n=0;"
        " until bpr healthcheck server; do n=$((n+1)); test $n -lt 90 || exit 1; sleep 2; done;"
        " ls /var/cache/bpr/numba && kill -TERM $! && wait $!",
    ],
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--base", type=Path, required=True, help="a minimal Debian with python3, pip and venv")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for the layers")
    parser.add_argument("--no-torch-backend", action="store_true")
    options = parser.parse_args()
    builder = Builder(options.base.resolve(), options.work.resolve(), torch_backend=not options.no_torch_backend)
    try:
        builder.build(options.target)
        subprocess.run(["du", "-sm", str(builder.root(options.target) / "opt/bpr")], check=True)
        builder.check(options.target, CHECKS)
    finally:
        builder.close()
    print("done", file=sys.stderr)


if __name__ == "__main__":
    main()
