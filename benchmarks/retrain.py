"""Retraining on real photographs, end to end: jobs, comparison, promotion, and a server that takes what is promoted.

    python -m benchmarks.retrain [--data ../shared/data] [--images 16] [--held-out 8] [--steps 120] [--json OUT]

A piece of the corpus (ccp, train split, coarse masks simulated from its ground truth) trains; a piece of its val split
with the fixed coarse masks is held out. A worker and a server run as processes while requests keep coming:

1. ``scratch``, over HTTP: three steps from nothing. It must stay a candidate, for it is worse than the bundled one.
2. A person activates it; the server must take it.
3. ``retrain``, by the command line: fine-tunes the bundled model; cancelled and resumed after a third, its worker
   killed (-9) after two thirds. It must register one version, be promoted by the rule, for it is better than the
   active one, and be taken by the server. How it does against the bundled model is for the figures to say.
4. A rollback; the server must go back.

Exit code 1 where something that must hold does not, one failed request included.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bpr_service.jobs.engine import Job, JobEngine
from bpr_service.jobs.settings import JobSettings
from bpr_service.masks.mask import Mask, as_mask
from bpr_service.network.weights import find_model
from bpr_service.runtime.model_store import ModelStore
from refiner_training.data.simulate import coarse_mask

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL, PRESET, MARGIN_PX = "fast", "fast", 24
QUICK = {"batch_size": 16, "workers": 0, "threads": 1, "precision": "32", "checkpoint_every": 10}


def coco_piece(truth: Path, every: int, count: int) -> dict[str, Any]:
    """Every ``every``-th image of a COCO file, ``count`` of them, with their annotations."""
    values: dict[str, Any] = json.loads(truth.read_text())
    values["images"] = values["images"][::every][:count]
    kept = {image["id"] for image in values["images"]}
    values["annotations"] = [entry for entry in values["annotations"] if entry["image_id"] in kept]
    return values


def simulated(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """COCO results: one coarse mask for each annotation."""
    rng = np.random.default_rng(seed)
    results = []
    for entry in truth["annotations"]:
        mask = as_mask(entry["segmentation"], *entry["segmentation"]["size"])
        x0, y0, x1, y1 = mask.box
        x0, y0 = max(x0 - MARGIN_PX, 0), max(y0 - MARGIN_PX, 0)
        x1, y1 = min(x1 + MARGIN_PX, mask.width), min(y1 + MARGIN_PX, mask.height)
        soft, _ = coarse_mask(mask.window(x0, y0, x1, y1), rng)
        coarse = Mask.from_window((soft > 0.5).astype(np.uint8), x0, y0, mask.height, mask.width)
        keys = {key: entry[key] for key in ("image_id", "category_id")}
        results.append({**keys, "segmentation": coarse.to_rle(), "score": 0.9})
    return results


def write_data(root: Path, data: Path, images: int, held_out: int) -> None:
    """``train.json``, ``train_coarse.json``, ``val.json`` and ``val_coarse.json``."""
    train = coco_piece(data / "ccp/instances_train.json", 11, images)
    val = coco_piece(data / "ccp/instances_val.json", 5, held_out)
    kept = {image["id"] for image in val["images"]}
    coarse = [r for r in json.loads((data / "coarse/ccp_val.json").read_text()) if r["image_id"] in kept]
    files = {"train": train, "train_coarse": simulated(train), "val": val, "val_coarse": coarse}
    for name, value in files.items():
        (root / f"{name}.json").write_text(json.dumps(value))


class Service:
    """A worker and a server over one installation in a folder, and requests that keep coming."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data, self.processes = root, data, list[subprocess.Popen[bytes]]()
        roots = {"corpus": {"path": str(data), "write": False}, "work": {"path": str(root)}}
        own = {"BPR_JOBS_FOLDER": str(root / "jobs"), "BPR_JOBS_MODELS": str(root / "models")}
        own |= {"BPR_MODEL_STORE": str(root / "models"), "BPR_JOBS_ROOTS": json.dumps(roots)}
        self.environment = {**os.environ, **own, "BPR_JOBS_POLL_S": "0.5", "OMP_NUM_THREADS": "1"}
        settings = JobSettings(folder=str(root / "jobs"), models=str(root / "models"), roots=roots, poll_s=0.5)
        self.engine = JobEngine(settings)
        self.store = ModelStore(str(root / "models"))
        self.answers: list[tuple[float, int, str]] = []
        """(time, HTTP status, version that answered) of each request."""
        self._asking = threading.Event()
        self.worker = self.start("worker")

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.root / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bpr_service.cli", *command], env=self.environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "bpr_service.cli", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def serve(self, port: int) -> None:
        """Start the server, wait until it is ready, then ask one request after the other."""
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0)
        self.start("serve", "--port", str(port), "--presets", PRESET, "--device", "cpu", "--threads", "1", "--jobs")
        until("a server that is ready", self._ready)
        self._asking.set()
        threading.Thread(target=self._ask, daemon=True).start()

    def _ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _ask(self) -> None:
        val = json.loads((self.root / "val.json").read_text())
        coarse = json.loads((self.root / "val_coarse.json").read_text())
        image = val["images"][0]
        masks = [{"segmentation": r["segmentation"]} for r in coarse if r["image_id"] == image["id"]][:3]
        encoded = base64.b64encode((self.data / "ccp/images" / image["file_name"]).read_bytes()).decode()
        while self._asking.is_set():
            answer = self.http.post("/v1/refine/instance", json={"image": {"data": encoded}, "masks": masks})
            version = answer.json()["model"]["version"] if answer.status_code == 200 else answer.text[:200]
            self.answers.append((time.monotonic(), answer.status_code, version))
            time.sleep(0.3)

    def served(self, version: str) -> float:
        """Wait until the server answers with a version; the seconds that took."""
        begun = time.monotonic()
        until(f"answers of {version}", lambda: bool(self.answers) and self.answers[-1][2] == version)
        return round(time.monotonic() - begun, 1)

    def wait(self, job_id: str, step: int | None = None) -> Job:
        """Until a job ended, or its trainer has come to ``step``."""

        def reached() -> bool:
            job = self.engine.get(job_id)
            return job.ended_for_good or (step is not None and job.progress.get("done", 0) >= step)

        until(f"job {job_id}", reached, s=1800)
        return self.engine.get(job_id)

    def kill_worker(self) -> None:
        self.worker.send_signal(signal.SIGKILL)
        self.worker.wait()
        self.worker = self.start("worker")

    def close(self) -> None:
        self._asking.clear()
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
        self.engine.close()


def until(what: str, condition: Any, s: float = 300) -> None:
    give_up = time.monotonic() + s
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not within {s:g} s")
        time.sleep(0.3)


def request(recipe: dict[str, Any], name: str = MODEL) -> dict[str, Any]:
    """A train job over the piece of the corpus."""
    held_out = {"images": "corpus:ccp/images", "ground_truth": "work:val.json", "predictions": "work:val_coarse.json"}
    return {"kind": "train", "name": name, "preset": PRESET, "images": "corpus:ccp/images",
            "ground_truth": "work:train.json", "predictions": "work:train_coarse.json", "held_out": held_out,
            "recipe": recipe, "promote_if_better": True}  # fmt: skip


def outcome(job: Job, service: Service) -> dict[str, Any]:
    """What a job came to, in a line; an error where it did not end well."""
    if job.state != "done" or job.result is None:
        raise RuntimeError(f"{job.id} {job.state}: {job.message}\n{service.engine.log(job.id)[-3000:]}")
    comparison = job.result["comparison"]
    figures = {name: values.get(comparison["measure"]) for name, values in comparison["figures"].items()}
    out = {"version": job.result["version"], "promoted": job.result["promoted"], "measure": comparison["measure"],
           "figures": figures, "seconds": round((job.ended or 0) - (job.started or 0), 1)}  # fmt: skip
    print(json.dumps({job.id: out}), flush=True)
    return out


def scratch(service: Service) -> dict[str, Any]:
    """A network that has hardly learned, over HTTP: worse than the bundled one, so it stays a candidate."""
    recipe = {"network": {"name": "light_unet_s"}, "optim": {"warmup_steps": 5}, "run": {**QUICK, "steps": 3}}
    values = {key: value for key, value in request(recipe).items() if key != "kind"}
    answer = service.http.post("/v1/jobs/train", json=values, headers={"Idempotency-Key": "scratch"})
    answer.raise_for_status()
    return outcome(service.wait(answer.json()["id"]), service)


def retrain(service: Service, steps: int) -> dict[str, Any]:
    """Fine-tune the bundled model, by the command line; cancelled and resumed, its worker killed."""
    bundled = service.store.add(str(find_model(MODEL)), MODEL)
    recipe = {"optim": {"lr": 0.0002, "warmup_steps": 5, "ema_decay": 0.98}, "run": {**QUICK, "steps": steps}}
    values = {**request(recipe), "parent": bundled.ref}
    service.command("jobs", "submit", json.dumps(values), "--id", "retrain")
    service.wait("retrain", step=steps // 3)
    service.command("jobs", "cancel", "retrain")
    until("the trainer's end", lambda: not trainers(service.root))
    service.command("jobs", "resume", "retrain")
    service.wait("retrain", step=2 * steps // 3)
    service.kill_worker()
    until("the trainer's end", lambda: not trainers(service.root) or service.worker.poll() is not None, s=30)
    job = service.wait("retrain")
    steps_seen = [int(line.split('"step": ')[1].split(",")[0]) for line in service.engine.log(job.id).splitlines()
                  if '"event": "progress"' in line]  # fmt: skip
    starts = service.engine.log(job.id).count(" refiner ")
    versions = [v.ref for v in service.store.list(MODEL) if v.provenance.get("job") == "retrain"]
    return {**outcome(job, service), "attempts": job.attempt, "trainer_starts": starts, "steps_seen": steps_seen,
            "versions": len(versions)}  # fmt: skip


def trainers(root: Path) -> list[int]:
    """Processes that train for this installation."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes()
        except OSError:
            continue
        if b"refiner" in text and str(root / "jobs").encode() in text:
            found.append(int(entry.parent.name))
    return found


def run(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    write_data(root, args.data, args.images, args.held_out)
    service = Service(root, args.data)
    try:
        service.serve(args.port)
        until("an answer", lambda: bool(service.answers))
        bundled = service.answers[-1][2]
        first = scratch(service)
        stays = service.answers[-1][2] == bundled
        weak = first["version"].split("@")[1]
        service.http.post(f"/v1/models/{MODEL}/activate", json={"version": weak}).raise_for_status()
        by_hand_s = service.served(weak)
        second = retrain(service, args.steps)
        taken_s = service.served(second["version"].split("@")[1]) if second["promoted"] else None
        back_s = None
        if second["promoted"]:
            service.command("models", "rollback", MODEL)
            back_s = service.served(weak)
        statuses = Counter(status for _, status, _ in service.answers)
        ok = (not first["promoted"] and stays and second["promoted"] and second["versions"] == 1
              and set(statuses) == {200})  # fmt: skip
        return {"images": args.images, "held_out": args.held_out, "scratch": first, "retrain": second,
                "served_after_s": {"activated": by_hand_s, "promoted": taken_s, "rolled_back": back_s},
                "requests": dict(statuses), "versions_that_answered": dict(Counter(v for *_, v in service.answers)),
                "ok": ok}  # fmt: skip
    finally:
        service.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), args)
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
