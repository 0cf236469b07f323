"""Checks of the deployment files in a tree: each function gives what is wrong, and nothing where all is well.

They take the tree's root, so that the tests can hold them against changed copies.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy import dockerfile, known, kustomize, others
from tests.deploy.kustomize import containers, pod

Object = dict[str, Any]
PINNED = re.compile(r"[a-z0-9./-]+:[A-Za-z0-9][\w.-]*@sha256:[0-9a-f]{64}")
TARGETS = {"cpu", "cuda", "trainer"}
EXTRAS = {"server", "jobs", "s3", "otel"}
KUBERNETES = "1.32"
OVERLAYS = ("cpu", "gpu", "scaled")


def version(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


# ---------------------------------------------------------------- Dockerfile


def docker_problems(root: Path) -> Iterator[str]:
    _, stages = dockerfile.read((root / "Dockerfile").read_text())
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    yield from (f"Dockerfile: no target {name}" for name in TARGETS - stages.keys())
    for stage in stages.values():
        if stage.parent not in stages and not PINNED.fullmatch(stage.parent):
            yield f"Dockerfile: {stage.parent} is not pinned by tag and digest"
        for step in stage.all("COPY"):
            yield from _copy_problems(root, stages, step)
        yield from (f"Dockerfile, {stage.name}: {problem}" for problem in _stage_problems(stages, stage))
        for step in stage.all("RUN"):
            for extra in re.findall(r"--extra (\S+)", step.text):
                if extra not in extras:
                    yield f"Dockerfile: no extra {extra}"
    for target in sorted(TARGETS & stages.keys()):
        yield from (f"Dockerfile, {target}: {problem}" for problem in _image_problems(root, stages, target))


def _stage_problems(stages: dict[str, dockerfile.Stage], stage: dockerfile.Stage) -> Iterator[str]:
    """Files that a stage reads and has not, folders that it copies elsewhere than they are looked for."""
    copies = stage.all("COPY")
    here = {path for step in copies if "from" not in step.flags for path in step.words()[:-1]}
    for step in copies:
        source, target = step.words()[0], step.words()[-1]
        if target not in (source, "./"):
            yield f"{source} becomes {target}"
        if "from" in step.flags and not any(source in run.text for run in _runs_above(stages, step.flags["from"])):
            yield f"no command of {step.flags['from']} makes {source}"
    for step in stage.all("RUN"):
        for file in re.findall(r"--(?:constraints|requirements) (\S+)", step.text):
            if file not in here:
                yield f"it reads {file}, which it does not copy"
    virtual = dockerfile.environment(stages, stage.name).get("VIRTUAL_ENV")
    for step in (step for above in dockerfile.chain(stages, stage.name) for step in above.all("RUN")):
        if (made := re.search(r"uv venv .* (/\S+)$", step.text)) and made[1] != virtual:
            yield f"VIRTUAL_ENV {virtual} is not {made[1]}"


def _runs_above(stages: dict[str, dockerfile.Stage], name: str) -> list[dockerfile.Step]:
    return [step for stage in dockerfile.chain(stages, name) for step in stage.all("RUN")] if name in stages else []


def _copy_problems(root: Path, stages: dict[str, dockerfile.Stage], step: dockerfile.Step) -> Iterator[str]:
    if "from" in step.flags:
        if step.flags["from"] not in stages:
            yield f"Dockerfile: COPY --from={step.flags['from']}: no such stage"
        return
    sent = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in step.words()[:-1]:
        if not (root / path).exists():
            yield f"Dockerfile: COPY {path}: no such file"
        elif path not in sent:
            yield f".dockerignore keeps {path} from the Dockerfile"


def _image_problems(root: Path, stages: dict[str, dockerfile.Stage], target: str) -> Iterator[str]:
    values = dockerfile.environment(stages, target)
    yield from known.settings_problems(values)
    found = {
        name: dockerfile.last(stages, target, name) for name in ("USER", "EXPOSE", "VOLUME", "WORKDIR", "STOPSIGNAL")
    }
    user, port, volumes, folder, stop = (step.text if step else "" for step in found.values())
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"USER {user}: expected numbers, not 0"
    if port != values.get("BPR_PORT"):
        yield f"EXPOSE {port} is not BPR_PORT {values.get('BPR_PORT')}"
    if stop != "SIGTERM":
        yield f"STOPSIGNAL {stop}: bpr drains on SIGTERM"
    written = json.loads(volumes or "[]")
    names = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH", "BPR_MODEL_STORE", "BPR_JOBS_FOLDER")
    for name, path in [("WORKDIR", folder), *((name, values.get(name, "")) for name in names)]:
        if not any(_inside(path, volume) for volume in written):
            yield f"{name} {path} is in no volume: the root is read-only"
    yield from _entry_problems(stages, target)
    texts = [step.text for stage in dockerfile.chain(stages, target) for step in stage.all("RUN")]
    made = [word for text in texts for word in text.split()]
    folders = next(
        (re.split(r"\s", run.partition("install --directory ")[2]) for run in texts if "install --dir" in run), []
    )
    yield from (f"the volume {path} is not made" for path in written if path not in folders)
    copied = [s.words()[-1] for stage in dockerfile.chain(stages, target) for s in stage.all("COPY")]
    yield from (
        f"{path}/bin is not the first on PATH" for path in copied if not values["PATH"].startswith(f"{path}/bin:")
    )
    if any(word in made for word in ("apt-get", "gcc", "build-essential")):
        yield "tools are installed in the last stages"
    label = dockerfile.last(stages, target, "ARG")
    if f"VERSION={version(root)}" not in [s.text for stage in stages.values() for s in stage.all("ARG")] or not label:
        yield f"ARG VERSION is not {version(root)}"
    steps = [s.text for name in dockerfile.needed(stages, target) for s in stages[name].all("RUN")]
    wanted = EXTRAS | ({"train"} if target == "trainer" else set())
    got = set(re.findall(r"--extra (\S+)", " ".join(steps)))
    if got != wanted:
        yield f"extras {', '.join(sorted(got))}: expected {', '.join(sorted(wanted))}"


def _entry_problems(stages: dict[str, dockerfile.Stage], target: str) -> Iterator[str]:
    entry, command, health = (dockerfile.last(stages, target, n) for n in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    if entry is None or entry.text != '["bpr"]' or command is None or not command.text.startswith("["):
        yield "ENTRYPOINT and CMD: expected the exec form of bpr"
    else:
        yield from known.command_problems(command.words())
    check = health.text.partition("CMD ")[2] if health else ""
    flags = set(re.findall(r"--([a-z-]+)=", health.text if health else ""))
    if flags != {"interval", "timeout", "start-period", "retries"}:
        yield f"HEALTHCHECK has the options {', '.join(sorted(flags))}"
    if not check.startswith('["bpr"'):
        yield "HEALTHCHECK: expected the exec form of bpr"
    else:
        yield from known.command_problems(json.loads(check)[1:])


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


# ---------------------------------------------------------------- compose


def env_example(root: Path) -> dict[str, str]:
    return kustomize._env_file(root / "docker/.env.example")


def compose(root: Path, *names: str) -> Object:
    """A compose file with its variables replaced by their defaults."""
    name = names[0] if names else "compose.yaml"
    text = (root / "docker" / name).read_text()
    text = re.sub(r"\$\{\w+(?::?([-+])([^}]*))?\}", lambda m: m[2] if m[1] == "-" else "", text)
    document: Object = yaml.safe_load(text)
    return document


def compose_schema() -> Object:
    path = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema: Object = json.loads(path.read_text())
    return schema


def compose_problems(root: Path) -> Iterator[str]:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        for used in set(re.findall(r"\$\{(\w+)", (root / "docker" / name).read_text())) - env_example(root).keys():
            yield f"{name}: {used} is not in .env.example"
        for error in jsonschema.Draft7Validator(compose_schema()).iter_errors(compose(root, name)):
            yield f"{name}: {error.json_path}: {error.message[:200]}"
    texts = [(root / "docker" / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml")]
    for name, value in re.findall(r"\$\{(\w+_PORT):-(\d+)\}", texts[0]):
        if env_example(root).get(name) != value:
            yield f"compose.yaml: {name} is {value}, in .env.example {env_example(root).get(name)}"
    yield from (f".env.example: nobody reads {name}" for name in env_example(root) if not any(name in t for t in texts))
    whole = compose(root)
    services = whole["services"]
    for profile in ("cpu", "gpu", "full"):
        if not any("serve" in s.get("command", []) for s in services.values() if s.get("profiles") == [profile]):
            yield f"compose.yaml: the profile {profile} has no server"
    for name, service in services.items():
        yield from (f"compose.yaml, {name}: {problem}" for problem in _service_problems(root, whole, name, service))
    for kind in ("volumes", "secrets"):
        used = {_source(v) for s in services.values() for v in s.get(kind, [])}
        yield from (f"compose.yaml: {kind[:-1]} {name} is not used" for name in whole[kind].keys() - used)
    over = compose(root, "compose.gpu.yaml")["services"]
    for name, change in over.items():
        if name not in services:
            yield f"compose.gpu.yaml: no service {name}"
            continue
        changed = {**services[name], **change}
        yield from (f"compose.gpu.yaml, {name}: {p}" for p in _ours_problems(root, changed))
        yield from (f"compose.gpu.yaml, {name}: {p}" for p in _secret_problems(root, whole, changed))
        if not _gpu(change):
            yield f"compose.gpu.yaml, {name}: no device is reserved"


def _source(entry: Any) -> str:
    return str(entry["source"] if isinstance(entry, dict) else entry.split(":")[0])


def _service_problems(root: Path, whole: Object, name: str, service: Object) -> Iterator[str]:
    services = whole["services"]
    if service["image"].startswith("bpr-service:"):
        yield from _ours_problems(root, service)
    else:
        yield from others.problems(service)
        if not PINNED.fullmatch(service["image"]):
            yield f"{service['image']} is not pinned by tag and digest"
    once = service.get("restart") == "no"
    if service.get("restart") not in ("unless-stopped", "no"):
        yield "no restart policy"
    if not once and "test" not in service.get("healthcheck", {}):
        yield "no health check"
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    yield from (f"no limit of {what}" for what in ("cpus", "memory", "pids") if what not in limits)
    if service.get("logging", {}).get("driver") != "json-file":
        yield "logs are not bounded"
    for other, how in service.get("depends_on", {}).items():
        needed = services.get(other, {})
        if not set(service["profiles"]) <= set(needed.get("profiles", [])):
            yield f"{other} is not in its profile"
        elif how["condition"] == "service_healthy" and "test" not in needed.get("healthcheck", {}):
            yield f"{other} has no health to wait for"
        elif how["condition"] == "service_completed_successfully" and needed.get("restart") != "no":
            yield f"{other} never completes"
    yield from _volume_problems(root, whole, service)
    yield from _port_problems(service)
    yield from _secret_problems(root, whole, service)


def _volume_problems(root: Path, whole: Object, service: Object) -> Iterator[str]:
    for entry in service.get("volumes", []):
        source = _source(entry)
        if source.startswith("."):
            if not (root / "docker" / source).exists():
                yield f"{source} is not there"
        elif source not in whole.get("volumes", {}):
            yield f"no volume {source}"


OPEN = {"grafana": {"3000"}, "minio": {"9000"}, "postgres": {"5432"}, "prometheus": {"9090"}, "bpr-service": {"8000"}}


def listening(service: Object) -> set[str]:
    """The ports a service listens on: its own, and those that its command names."""
    name = service["image"].split(":")[0].rsplit("/", 1)[-1]
    command = " ".join(service.get("command", []))
    named = set(re.findall(r"(?:address|listen-address)[ =]\S*:(\d+)", command))
    return named if "--web.listen-address" in command else OPEN.get(name, set()) | named


def _port_problems(service: Object) -> Iterator[str]:
    for entry in service.get("ports", []):
        inside = entry.rsplit(":", 1)[1]
        if inside not in listening(service):
            yield f"nothing listens on {inside}"
        if not entry.startswith("127.0.0.1:"):
            yield f"{entry} is published to everybody"
    for port in re.findall(r"://127\.0\.0\.1:(\d+)", " ".join(service.get("healthcheck", {}).get("test", []))):
        if port not in listening(service):
            yield f"the health check asks port {port}"


def _secret_problems(root: Path, whole: Object, service: Object) -> Iterator[str]:
    own = service.get("secrets", [])
    texts = [*service.get("command", []), *map(str, service.get("environment", {}).values())]
    for path in (match for text in texts for match in re.findall(r"/run/secrets/(\w+)", text)):
        if path not in own:
            yield f"the secret {path} is not its own"
    for name in own:
        variable = whole["secrets"].get(name, {}).get("environment")
        if name not in whole["secrets"]:
            yield f"no secret {name}"
        elif variable and env_example(root).get(variable) != "":
            yield f"{variable} is not an empty line of .env.example"


def _ours_problems(root: Path, service: Object) -> Iterator[str]:
    """A service of our image."""
    _, stages = dockerfile.read((root / "Dockerfile").read_text())
    target = service["build"]["target"]
    if target not in stages:
        yield f"no target {target}"
        return
    if not service["image"].startswith(f"bpr-service:{version(root)}-{target}"):
        yield f"the image {service['image']} is not of {target} {version(root)}"
    backend = service["build"].get("args", {})
    yield from (
        f"no build argument {name}" for name in backend if f"ARG {name}" not in (root / "Dockerfile").read_text()
    )
    values = {
        **dockerfile.environment(stages, target),
        **{k: str(v) for k, v in service.get("environment", {}).items()},
    }
    yield from known.settings_problems(values)
    command = service.get("command", [])
    if "entrypoint" not in service:
        yield from known.command_problems(command)
    if "cuda:0" in command and target == "cpu":
        yield "a CPU image on a GPU"
    if service.get("build", {}).get("target") == "cuda" and not _gpu(service):
        yield "no GPU is reserved"
    if "train" in command and (target != "trainer" or "shm_size" not in service):
        yield "only the image trainer can train, and its loaders want shared memory"
    test = service.get("healthcheck", {}).get("test", [])
    if test[:2] == ["CMD", "bpr"]:
        yield from known.command_problems(test[2:])
        if command and (command[0] == "worker") != (test[-1] == "worker"):
            yield f"the health check is not of a {command[0]}"
    elif service.get("restart") != "no":
        yield "the health check is not bpr's"
    yield from _confinement_problems(stages, target, service, values)


def _confinement_problems(
    stages: dict[str, dockerfile.Stage], target: str, service: Object, values: dict[str, str]
) -> Iterator[str]:
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        yield "its root can be written, or it keeps capabilities"
    if service.get("restart") == "no":
        return
    user, volumes = dockerfile.last(stages, target, "USER"), dockerfile.last(stages, target, "VOLUME")
    if user is None or service.get("user") != user.text:
        yield f"user {service.get('user')}: the image's folders are another's"
    mounted = [entry.split(":")[1] for entry in service.get("volumes", [])]
    writable = [*mounted, *(entry.split(":")[0] for entry in service.get("tmpfs", []))]
    yield from (f"{path} cannot be written" for path in ["/tmp", *volumes.words()] if volumes and path not in writable)
    kept = [
        path
        for path in (values["BPR_MODEL_STORE"], values["BPR_JOBS_FOLDER"], *known.roots(values))
        if "://" not in path
    ]
    yield from (f"{path} is in no volume" for path in kept if not any(_inside(path, folder) for folder in mounted))
    grace = float(service.get("stop_grace_period", "10s").rstrip("s"))
    if grace < known.drain_s(values) + 5:
        yield f"stop_grace_period {grace:g} s is shorter than the drain of {known.drain_s(values):g} s"


def _gpu(service: Object) -> bool:
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    return any(device["driver"] == "nvidia" and device["capabilities"] == ["gpu"] for device in devices)


def full_problems(root: Path) -> Iterator[str]:
    """Whether the parts of the profile `full` speak of each other by the right names."""
    services = compose(root)["services"]
    environment = services["server"]["environment"]
    postgres = services["postgres"]
    for name in ("worker", "trainer", "bucket"):
        if services[name]["environment"] != {k: environment[k] for k in services[name]["environment"]}:
            yield f"{name} is of another installation than the server"
    url = re.fullmatch(r"postgresql://(\w+):[^@]*@([\w-]+):(\d+)/(\w+)", environment["BPR_JOBS_DATABASE"])
    wanted = (postgres["environment"]["POSTGRES_USER"], "postgres", "5432", postgres["environment"]["POSTGRES_DB"])
    if not url or url.groups() != wanted:
        yield f"BPR_JOBS_DATABASE is {environment['BPR_JOBS_DATABASE']}: expected {wanted}"
    test = " ".join(postgres["healthcheck"]["test"])
    if f"--username {wanted[0]} --dbname {wanted[3]}" not in test:
        yield "the health check of postgres asks for another database"
    if environment["AWS_ENDPOINT_URL"] != "http://minio:9000":
        yield f"AWS_ENDPOINT_URL {environment['AWS_ENDPOINT_URL']} is not MinIO"
    if environment["AWS_ACCESS_KEY_ID"] != services["minio"]["environment"]["MINIO_ROOT_USER"]:
        yield "MinIO has another user"
    buckets = {
        root_.removeprefix("s3://").split("/")[0] for root_ in known.roots(environment) if root_.startswith("s3:")
    }
    if buckets != set(re.findall(r"makedirs\('([\w-]+)'", services["bucket"]["entrypoint"][2])):
        yield f"the service bucket does not make {buckets}"
    yield from others.password_problems(services, compose(root)["secrets"])
    given = {word for word in services["folders"]["entrypoint"] if word.startswith("/")}
    local = {path for path in known.roots(environment) if path.startswith("/")}
    if not given == local == {entry.split(":")[1] for entry in services["folders"]["volumes"]}:
        yield f"the service folders gives {given} to the user: the roots are {local}"
    if "--jobs" not in services["server"]["command"]:
        yield "the server offers no jobs"
    kinds = {word for name in ("worker", "trainer") for word in services[name]["command"]}
    if not {"refine", "train"} <= kinds:
        yield "a kind of job has no worker"


# ---------------------------------------------------------------- Prometheus, Grafana


def monitoring_problems(root: Path) -> Iterator[str]:
    folder = root / "docker"
    services = compose(root)["services"]
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    command = services["prometheus"]["command"]
    mounts = dict(entry.split(":")[:2] for entry in services["prometheus"]["volumes"])
    if f"--config.file={mounts.get('./prometheus.yml')}" not in command:
        yield "prometheus.yml is mounted elsewhere than --config.file"
    for name in config["rule_files"]:
        if mounts.get(f"./{name}") != str(Path(mounts["./prometheus.yml"]).parent / name):
            yield f"{name} is not beside prometheus.yml"
    ours = next((job for job in config["scrape_configs"] if job["job_name"] == "bpr"), {})
    if ours.get("metrics_path") not in known.route_paths():
        yield f"no route {ours.get('metrics_path')}"
    for target in (t for group in ours.get("static_configs", []) for t in group["targets"]):
        host, _, port = target.partition(":")
        if "serve" not in services.get(host, {}).get("command", []) or port not in listening(services[host]):
            yield f"no server at {target}"
    for job in config["scrape_configs"]:
        for target in (t for group in job["static_configs"] for t in group["targets"] if t.startswith("127.0.0.1:")):
            if target.partition(":")[2] not in listening(services["prometheus"]):
                yield f"Prometheus does not listen on {target}"
    for group in yaml.safe_load((folder / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield from (f"{rule['alert']}: {problem}" for problem in known.query_problems(rule["expr"]))
            named = re.findall(r"\bBPR_[A-Z_]+", " ".join(rule["annotations"].values()))
            yield from (f"{rule['alert']}: no setting {name}" for name in named if name not in known.settings())
            if not {"summary", "action"} <= rule["annotations"].keys() or "severity" not in rule["labels"]:
                yield f"{rule['alert']}: expected severity, summary and action"
    yield from _grafana_problems(root, services)


def _grafana_problems(root: Path, services: Object) -> Iterator[str]:
    folder = root / "docker/grafana"
    (source,) = yaml.safe_load((folder / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    if port not in listening(services.get(host, {"image": ""})):
        yield f"Grafana: no Prometheus at {source['url']}"
    (provider,) = yaml.safe_load((folder / "provisioning/dashboards/bpr.yaml").read_text())["providers"]
    mounts = dict(entry.split(":")[:2] for entry in services["grafana"]["volumes"])
    if mounts.get("./grafana/dashboards") != provider["options"]["path"]:
        yield f"Grafana: no dashboards at {provider['options']['path']}"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    if not (folder / "dashboards" / home.removeprefix(provider["options"]["path"] + "/")).exists():
        yield f"Grafana: no dashboard {home}"
    board = json.loads((folder / "dashboards/bpr.json").read_text())
    for variable in board["templating"]["list"]:
        for text in (variable["definition"], variable["query"]["query"]):
            yield from (f"Grafana, {variable['name']}: {problem}" for problem in known.query_problems(text))
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            if target["datasource"]["uid"] != source["uid"]:
                yield f"Grafana, {panel['title']}: no data source {target['datasource']['uid']}"
            yield from (f"Grafana, {panel['title']}: {problem}" for problem in known.query_problems(target["expr"]))


# ---------------------------------------------------------------- Kubernetes


def k8s_problems(root: Path) -> Iterator[str]:
    for overlay in OVERLAYS:
        try:
            objects = kustomize.build(root / "k8s/overlays" / overlay)
        except (OSError, ValueError) as error:
            yield f"k8s/{overlay}: {error}"
            continue
        yield from (f"k8s/{overlay}: {problem}" for problem in object_problems(root, objects))


def object_problems(root: Path, objects: list[Object]) -> Iterator[str]:
    """What is wrong with the objects of an overlay, by themselves and with each other."""
    for o in objects:
        if not o["apiVersion"].endswith("coreos.com/v1"):  # that is no part of Kubernetes itself
            yield from _schema_problems(json.dumps(o, sort_keys=True))
    workloads = [o for o in objects if pod(o)]
    for o in workloads:
        yield from (f"{o['metadata']['name']}: {p}" for p in _workload_problems(root, objects, o))
    for o in objects:
        yield from (f"{o['kind']} {o['metadata']['name']}: {p}" for p in _reference_problems(root, objects, o))


@cache
def _schema_problems(text: str) -> list[str]:
    """What Kubernetes itself says of an object (JSON), unknown keys included."""
    o = json.loads(text)
    try:
        kubernetes_validate.validate(o, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        return [f"{o['kind']} {o['metadata']['name']}: {error.message[:200]}"]
    return []


def _labels(o: Object) -> Object:
    labels: Object = o["spec"]["template"]["metadata"]["labels"]
    return labels


def _matches(selector: Object, labels: Object) -> bool:
    return selector.items() <= labels.items()


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """The variables of a container, from the objects that it names. Raises ``KeyError`` for one that is missing."""
    held = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    values: dict[str, str] = {}
    for entry in container.get("envFrom", []):
        if "configMapRef" in entry:
            values |= held["ConfigMap", entry["configMapRef"]["name"]]["data"]
        else:
            data = held["Secret", entry["secretRef"]["name"]]["data"]
            values |= {key: base64.b64decode(value).decode() for key, value in data.items()}
    return values | {entry["name"]: entry["value"] for entry in container.get("env", [])}


def _workload_problems(root: Path, objects: list[Object], o: Object) -> Iterator[str]:
    spec = pod(o)
    if not _matches(o["spec"]["selector"]["matchLabels"], _labels(o)):
        yield "its selector is not of its pods"
    for spread in spec.get("topologySpreadConstraints", []):
        if not _matches(spread["labelSelector"]["matchLabels"], _labels(o)):
            yield "a topology spread of other pods"
    if spec.get("restartPolicy") != "Always":
        yield f"restartPolicy {spec.get('restartPolicy')}"
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "its pod may run as root, or without seccomp"
    if spec.get("automountServiceAccountToken") is not False:
        yield "it holds a token that it does not need"
    for container in containers(o):
        try:
            values = environment(objects, container)
        except KeyError as missing:
            yield f"no {' '.join(missing.args[0])}"
            continue
        yield from _container_problems(root, objects, o, container, values)


def _container_problems(
    root: Path, objects: list[Object], o: Object, container: Object, values: dict[str, str]
) -> Iterator[str]:
    _, stages = dockerfile.read((root / "Dockerfile").read_text())
    target = container["image"].rpartition("-")[2]
    if container["image"] != f"bpr-service:{version(root)}-{target}" or target not in stages:
        yield f"the image {container['image']} is none of ours"
        return
    image = dockerfile.environment(stages, target)
    yield from known.settings_problems({**image, **values})
    yield from known.command_problems(container["args"])
    resources = container.get("resources", {})
    gpus = resources.get("limits", {}).get("nvidia.com/gpu", "0")
    if ("cuda" in container["args"]) != (gpus == "1"):
        yield f"{' '.join(container['args'])} with {gpus} GPUs"
    if target == "cpu" and gpus != "0":
        yield "a CPU image with a GPU"
    if ("train" in container["args"]) != (target == "trainer"):
        yield f"{' '.join(container['args'])} in the image {target}"
    for what in ("cpu", "memory", "ephemeral-storage"):
        if what not in resources.get("limits", {}) or what not in resources.get("requests", {}):
            yield f"no request or limit of {what}"
    security = container.get("securityContext", {})
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if security != wanted:
        yield f"security context {security}"
    user, uid = dockerfile.last(stages, target, "USER"), pod(o)["securityContext"].get("runAsUser")
    groups = {str(pod(o)["securityContext"].get(name)) for name in ("runAsGroup", "fsGroup")}
    if user is None or user.text.split(":")[0] != str(uid) or groups != {user.text.split(":")[1]}:
        yield f"runAsUser {uid}, groups {', '.join(sorted(groups))}: the image's folders are another's"
    yield from _mount_problems(stages, target, objects, o, container, {**image, **values})
    yield from _probe_problems(o, container, {**image, **values})


def _mount_problems(
    stages: dict[str, dockerfile.Stage],
    target: str,
    objects: list[Object],
    o: Object,
    container: Object,
    values: dict[str, str],
) -> Iterator[str]:
    mounts = {entry["mountPath"]: entry for entry in container["volumeMounts"]}
    volumes = {entry["name"]: entry for entry in pod(o)["volumes"]}
    yield from (f"no volume {m['name']}" for m in mounts.values() if m["name"] not in volumes)
    yield from (f"the volume {name} is not used" for name in volumes.keys() - {m["name"] for m in mounts.values()})
    declared = dockerfile.last(stages, target, "VOLUME")
    for path in ["/tmp", *(declared.words() if declared else [])]:
        if path not in mounts or mounts[path].get("readOnly"):
            yield f"{path} cannot be written"
    local = [values[key] for key in ("BPR_MODEL_STORE", "BPR_JOBS_FOLDER") if "://" not in values[key]]
    kept = local + [path for path in known.roots(values) if "://" not in path]
    for path in kept:
        if not any(_inside(path, folder) for folder in mounts):
            yield f"{path} is in no volume"
    if "BPR_JOBS_DATABASE" in values:
        shared = [m for path, m in mounts.items() if any(_inside(p, path) for p in kept)]
        for entry in shared:
            if "persistentVolumeClaim" not in volumes.get(entry["name"], {}):
                yield f"{entry['mountPath']} is not shared with the other pods"
    yield from _keys_problems(objects, values.get("BPR_API_KEYS_FILE"), mounts, volumes)
    if "train" in container["args"] and "emptyDir" not in volumes.get(mounts.get("/dev/shm", {}).get("name"), {}):
        yield "a trainer without shared memory: its loaders hand batches over in it"
    yield from _egress_problems(objects, o, values.get("BPR_JOBS_DATABASE"))


def _keys_problems(objects: list[Object], path: str | None, mounts: Object, volumes: Object) -> Iterator[str]:
    """Whether the file of API keys is a key of a Secret, mounted where it is looked for, read by the pod's group."""
    if path is None:
        return
    folder, _, name = path.rpartition("/")
    secret = volumes.get(mounts.get(folder, {}).get("name"), {}).get("secret", {})
    made = [x for x in objects if x["kind"] == "Secret" and x["metadata"]["name"] == secret.get("secretName")]
    if not any(name in x["data"] for x in made):
        yield f"{path} is in no secret"
    elif secret["defaultMode"] != 0o440:
        yield f"the keys have the mode {secret['defaultMode']:o}: expected 440, for the pod's group alone"


def _egress_problems(objects: list[Object], o: Object, database: str | None) -> Iterator[str]:
    """Whether the policies let a pod out to its database."""
    if database is None:
        return
    policies = [x for x in objects if x["kind"] == "NetworkPolicy" and "egress" in x["spec"]]
    policies = [x for x in policies if _matches(x["spec"]["podSelector"].get("matchLabels", {}), _labels(o))]
    rules = [rule for policy in policies for rule in policy["spec"]["egress"] if "to" not in rule]
    port = urlsplit(database).port or 5432
    if port not in {entry["port"] for rule in rules for entry in rule["ports"]}:
        yield f"no policy lets it out to port {port} of the database"


def _probe_problems(o: Object, container: Object, values: dict[str, str]) -> Iterator[str]:
    ports = {entry["name"]: entry["containerPort"] for entry in container.get("ports", [])}
    serves = container["args"][0] == "serve"
    wanted = {"startupProbe", "livenessProbe", "readinessProbe"} if serves else {"readinessProbe"}
    yield from (f"no {name}" for name in wanted - container.keys())
    if serves and str(ports.get("http")) != values["BPR_PORT"]:
        yield f"port {ports.get('http')} is not BPR_PORT {values['BPR_PORT']}"
    for name in wanted & container.keys():
        probe = container[name]
        if "httpGet" in probe:
            if probe["httpGet"]["port"] not in ports:
                yield f"{name}: no port {probe['httpGet']['port']}"
            right = "/readyz" if name == "readinessProbe" else "/livez"
            if probe["httpGet"]["path"] not in known.route_paths() or probe["httpGet"]["path"] != right:
                yield f"{name}: {probe['httpGet']['path']}, expected {right}"
        else:
            command = probe["exec"]["command"]
            yield from known.command_problems(command[1:])
            if command[-1] != container["args"][0]:
                yield f"{name}: {' '.join(command)} in a {container['args'][0]}"
    pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    grace = pod(o)["terminationGracePeriodSeconds"]
    if grace < int(pause[1]) + known.drain_s(values) + 5:
        yield f"terminationGracePeriodSeconds {grace} is shorter than the drain"


def _reference_problems(root: Path, objects: list[Object], o: Object) -> Iterator[str]:
    """What an object says of others: pods it selects, ports, workloads, claims, metrics."""
    workloads = [w for w in objects if pod(w)]
    if o["kind"] not in kustomize.CLUSTER_WIDE and o["metadata"].get("namespace") != "bpr":
        yield "it is in no namespace"
    if o["kind"] == "Service":
        chosen = [w for w in workloads if _matches(o["spec"]["selector"], _labels(w))]
        named = {p["name"] for w in chosen for c in containers(w) for p in c.get("ports", [])}
        yield from (f"no port {p['targetPort']}" for p in o["spec"]["ports"] if p["targetPort"] not in named)
    elif o["kind"] == "PodDisruptionBudget":
        if len([w for w in workloads if _matches(o["spec"]["selector"]["matchLabels"], _labels(w))]) != 1:
            yield "it is not of one workload"
    elif o["kind"] == "NetworkPolicy":
        labels = o["spec"]["podSelector"].get("matchLabels", {})
        chosen = [w for w in workloads if _matches(labels, _labels(w))]
        named = {p["name"] for w in chosen for c in containers(w) for p in c.get("ports", [])}
        asked = {p["port"] for rule in o["spec"].get("ingress", []) for p in rule["ports"]}
        yield from (f"no port {port}" for port in asked - named)
        yield from ("it selects no pod" for _ in [0] if not chosen)
    elif o["kind"] == "ServiceMonitor":
        found = [s for s in objects if s["kind"] == "Service"]
        found = [s for s in found if _matches(o["spec"]["selector"]["matchLabels"], s["metadata"]["labels"])]
        named = {p["name"] for s in found for p in s["spec"]["ports"]}
        for endpoint in o["spec"]["endpoints"]:
            if endpoint["port"] not in named or endpoint["path"] not in known.route_paths():
                yield f"no endpoint {endpoint['port']} {endpoint['path']}"
    elif o["kind"] == "HorizontalPodAutoscaler":
        yield from _scaling_problems(root, workloads, o)
    for volume in pod(o).get("volumes", []):
        wanted = ("PersistentVolumeClaim", volume.get("persistentVolumeClaim", {}).get("claimName"))
        secret = ("Secret", volume.get("secret", {}).get("secretName"))
        there = {(x["kind"], x["metadata"]["name"]) for x in objects}
        yield from (f"no {kind} {name}" for kind, name in (wanted, secret) if name and (kind, name) not in there)


def _scaling_problems(root: Path, workloads: list[Object], o: Object) -> Iterator[str]:
    target = o["spec"]["scaleTargetRef"]
    found = [w for w in workloads if (w["kind"], w["metadata"]["name"]) == (target["kind"], target["name"])]
    if not found:
        yield f"no {target['kind']} {target['name']}"
    elif "replicas" in found[0]["spec"]:
        yield "the workload sets replicas too: they would fight"
    rules = yaml.safe_load((root / "k8s/prometheus-adapter.yaml").read_text())["rules"]
    for metric in o["spec"]["metrics"]:
        kind, names = ("pods", "custom") if metric["type"] == "Pods" else ("external", "external")
        name = metric[kind]["metric"]["name"]
        made = [rule for rule in rules[names] if rule["name"]["as"] == name]
        if not made:
            yield f"prometheus-adapter makes no metric {name}"
        for rule in made:
            yield from known.query_problems(rule["seriesQuery"])
            series = rule["seriesQuery"].partition("{")[0]
            if not re.fullmatch(rule["name"]["matches"], series):
                yield f"prometheus-adapter: {rule['name']['matches']} is not {series}"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "Dockerfile": docker_problems,
    "compose": compose_problems,
    "full": full_problems,
    "monitoring": monitoring_problems,
    "k8s": k8s_problems,
}


def problems(root: Path) -> list[str]:
    """All that is wrong in a tree."""
    return [problem for check in CHECKS.values() for problem in check(root)]
