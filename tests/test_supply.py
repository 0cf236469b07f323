"""The supply chain: GitHub's files name what exists and may do little; SBOM and audit tell the truth."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from docs import published
from tests.deploy import checks, deployment

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
LOCK = (ROOT / "requirements.lock").read_text()
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
WRITES = {("publish.yml", "publish-package"): {"id-token"}, ("publish.yml", "publish-image"): {"packages"}}
"""Jobs that may write, and what."""


def problems(name: str, workflow: dict[Any, Any]) -> list[str]:
    """What is wrong with a workflow."""
    wrong = []
    if workflow.get("permissions") != {"contents": "read"}:
        wrong.append("permissions of the workflow: contents: read and nothing else")
    triggers = workflow.get(True, workflow.get("on", {}))  # YAML 1.1 reads the key `on` as true
    if "pull_request_target" in triggers:
        wrong.append("pull_request_target runs strangers' code with rights")
    for job_name, job in workflow["jobs"].items():
        written = {right for right, value in job.get("permissions", {}).items() if value == "write"}
        if written != WRITES.get((name, job_name), set()):
            wrong.append(f"{job_name}: may write {sorted(written)}")
        if "timeout-minutes" not in job:
            wrong.append(f"{job_name}: has no timeout")
        needs = job.get("needs", [])
        wrong += [
            f"{job_name}: needs {n}"
            for n in ([needs] if isinstance(needs, str) else needs)
            if n not in workflow["jobs"]
        ]
        for step in job["steps"]:
            wrong += [f"{job_name}: {text}" for text in step_problems(step)]
    return wrong


def step_problems(step: dict[str, Any]) -> list[str]:
    wrong = []
    uses, script, given = step.get("uses"), step.get("run", ""), step.get("with", {})
    if uses and not re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40}", uses):
        wrong.append(f"{uses} is not pinned by a commit")
    if re.search(r"\$\{\{[^}]*(github\.event|github\.head_ref|github\.ref_name)", script):
        wrong.append("what others write goes into a script; hand it over in env")
    for words in re.findall(r"^\s*make ([^\n;&|]+)", script, re.M):
        called = [word for word in words.split() if "=" not in word]
        wrong += [f"no target {word}" for word in called if word not in TARGETS]
    named = [w for w in re.findall(r"[\w./-]+", script) if re.match(r"(\.ci|docs|docker|tests|k8s|benchmarks)/", w)]
    named += re.findall(r"[\w-]+\.(?:lock|toml)", script)
    named += [given[key] for key in ("file", "context") if key in given]
    wrong += [f"no file {path}" for path in named if not (ROOT / path).exists()]
    target = given.get("target", "")
    if given.get("file") and "${{" not in target:
        wrong += [] if stage(target) else [f"the Dockerfile has no target {target}"]
    return wrong


def stage(name: str) -> bool:
    return bool(re.search(rf"^FROM .* AS {re.escape(name)}$", (ROOT / "Dockerfile").read_text(), re.M | re.I))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_names_what_exists_and_may_do_little(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert problems(path.name, workflow) == []
    for job in workflow["jobs"].values():
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            assert stage(target), target


def test_together_they_check_test_build_and_publish() -> None:
    said = {path.name: path.read_text() for path in WORKFLOWS}
    assert {"ci.yml", "audit.yml", "publish.yml"} <= said.keys()
    assert all(f"make {target}" in said["ci.yml"] for target in ("check", "test", "docs", "wheel"))
    assert "make audit" in said["audit.yml"]
    assert "make sbom" in said["publish.yml"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_commit_passes_what_make_check_asks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    tools = {line.split()[0].removeprefix("$(BIN)/") for line in recipe.splitlines()[1:]}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == tools


def test_the_version_is_written_where_images_are_named(tmp_path: Path) -> None:
    deployment.copy(tmp_path)
    (tmp_path / "bpr_service").unlink()
    (tmp_path / "bpr_service").mkdir()
    (tmp_path / "bpr_service/__init__.py").write_text('__version__ = "9.8.7"\n')
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/deploy.md", tmp_path / "docs")
    done = subprocess.run(["make", "-f", ROOT / "Makefile", "version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(checks.images(tmp_path)) == []
    assert "bpr-service:9.8.7-cpu" in (tmp_path / "docs/deploy.md").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("make check", "make chek"),
        ("make docs", "make site"),
        ("actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683", "actions/checkout@v4"),
        ("contents: read", "contents: write"),
        ("contents: read", "contents: read\n  packages: write"),
        ("    timeout-minutes: 20\n", ""),
        ("file: Dockerfile", "file: docker/Dockerfile"),
        ("target: cpu", "target: gpu"),
        ("  pull_request:", "  pull_request_target:"),
        ("run: make test", "run: echo ${{ github.event.pull_request.title }}"),
        ("run: make docs", "run: sh docs/none.sh"),
    ],
)
def test_the_check_sees_what_is_broken(old: str, new: str) -> None:
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    assert old in text
    assert problems("ci.yml", yaml.safe_load(text.replace(old, new)))


def test_dependabot_watches_what_there_is() -> None:
    config = yaml.safe_load((GITHUB / "dependabot.yml").read_text())
    where = {"pip": "pyproject.toml", "docker": "Dockerfile", "github-actions": ".github/workflows"}
    assert config["version"] == 2
    assert {update["package-ecosystem"] for update in config["updates"]} == set(where)
    for update in config["updates"]:
        assert (ROOT / update["directory"].lstrip("/") / where[update["package-ecosystem"]]).exists()
        assert update["schedule"]["interval"] in ("daily", "weekly", "monthly")


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    call = ["make", *words, f"BIN={Path(sys.executable).parent}", "-o", ".venv/.installed"]
    variables = {**os.environ, **environment}
    return subprocess.run(call, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=200)


def test_an_audit_that_asked_nobody_fails_and_says_so() -> None:
    closed = "http://127.0.0.1:9"
    done = make("audit", HTTPS_PROXY=closed, https_proxy=closed, NO_PROXY="", no_proxy="")
    assert done.returncode != 0
    assert "nothing was checked" in done.stderr, done.stderr[-2000:]


def test_the_sbom_lists_what_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    done = make("sbom", f"SBOM={out}", f"SBOM_PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr[-2000:]
    sbom = json.loads(out.read_text())
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "bpr-service")
    listed = {component["name"].lower(): component for component in sbom["components"]}
    import fastapi

    assert listed["fastapi"]["version"] == fastapi.__version__
    assert listed["torch"]["purl"].startswith("pkg:pypi/torch@")


def test_the_lock_names_versions_and_hashes_and_no_address() -> None:
    pinned = re.compile(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[\w.!+]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert re.sub(pinned, "", LOCK).strip() == ""


def test_an_image_checks_all_hashes_but_those_of_torch_s_own_index(tmp_path: Path) -> None:
    (script,) = [text for _, text in deployment.dockerfile(ROOT) if text.startswith("awk")]
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    subprocess.run(script.replace("/constraints.txt", "constraints.txt"), shell=True, cwd=tmp_path, check=True)
    made, of_torch = (tmp_path / "constraints.txt").read_text(), r"(torch|torchvision|triton|nvidia-[a-z0-9-]+)==\S+"
    assert re.fullmatch("torch==[0-9.]+", next(line for line in made.splitlines() if line.startswith("torch=")))
    hashes = r"( \\\n    --hash=\S+)+"
    assert made == re.sub(f"(?m)^({of_torch}){hashes}", r"\1", LOCK)


def test_what_the_index_shows_links_to_where_the_repository_lies(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    before = published.LINK.findall((tmp_path / "README.md").read_text())
    published.main(tmp_path, "https://git.example/team/bpr/", "v1.2.3")
    text = (tmp_path / "README.md").read_text()
    assert len(before) > 20
    assert published.LINK.findall(text) == []
    assert "(https://git.example/team/bpr/raw/v1.2.3/docs/images/before_after.jpg)" in text
    assert "(https://git.example/team/bpr/blob/v1.2.3/docs/api.md)" in text
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Repository"] == "https://git.example/team/bpr"
    assert project["scripts"]["bpr"]


def test_every_extra_of_dev_is_locked() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked = {line.partition("==")[0] for line in LOCK.splitlines()}
    names = re.search(r"\[(.*)\]", extras["dev"][0])
    assert names
    assert {"docs", "supply"} <= set(names[1].split(","))
    for extra in names[1].split(","):
        for requirement in extras[extra]:
            name = re.match(r"[\w.-]+", requirement)
            assert name
            if name[0] == "bpr-service":  # another extra, of which the same is asked
                continue
            assert name[0].lower().replace("_", "-").replace(".", "-") in locked, requirement


def test_the_lock_holds_what_the_images_install() -> None:
    """uv is told to keep to the lock: a package that is not in it would come in any version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", LOCK))
    names = project["dependencies"] + [
        n for e in set(" ".join(checks.EXTRAS.values()).split()) for n in project["optional-dependencies"][e]
    ]
    wanted = {re.split(r"[\[<>=!]", name)[0].lower() for name in names} - {project["name"]}  # extras of its own
    assert wanted - lock.keys() == set()
    marked = [needed for line in metadata.requires("ray") or [] if (needed := Requirement(line)).marker]
    dashboard = {
        n.name.lower().replace("_", "-") for n in marked if n.marker and n.marker.evaluate({"extra": "default"})
    }
    own = {line.split("==")[0] for line in (ROOT / "docker/ray.lock").read_text().splitlines()}
    assert dashboard - lock.keys() - own == set(), "of the image of Ray's nodes"
    # Another build of torch than the one that the lock was made with would not accept its CUDA libraries.
    major, minor = lock["nvidia-cuda-runtime"].split(".")[:2]
    assert f"--torch-backend cu{major}{minor} " in " ".join(text for _, text in deployment.dockerfile(ROOT))
