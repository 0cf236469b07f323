"""What the service costs and what it survives: a real server over loopback, every figure a ratio within one run.

    nice -n 10 python benchmarks/serve.py [--out FILE.json] [--cores 2] [--only throughput,overload,...]

Library and server run on the same cores with as many threads. Pictures and masks are drawn. Overhead, batching and
throughput use the bundled model; the parts about load use a network that sleeps for 100 ms a call and 100 ms a patch
(``BPR_DUMMY``), so that they measure the service and not the machine. Beside the wall clock each comparison counts the
processes' own CPU time, which neighbours on the machine do not change.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bpr_service.masks.mask import Mask

ROOT = Path(__file__).resolve().parent.parent
SERVE = "import typer; from bpr_service.server.server_commands import serve; typer.run(serve)"


# ---------------------------------------------------------------- scenes


def scene(height: int, width: int, n_masks: int, radius: tuple[int, int], seed: int) -> tuple[bytes, list[Mask]]:
    """A JPEG of blobs on a gradient, and coarse masks of them (28 x 28 and back, as a mask head gives)."""
    r = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.float32)
    image[:] = np.linspace(40, 150, width)[None, :, None]
    image += r.normal(0, 9, image.shape)
    masks = []
    for _ in range(n_masks):
        size = int(r.integers(*radius))
        cy, cx = int(r.integers(size, height - size)), int(r.integers(size, width - size))
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = size * (0.75 + 0.2 * np.sin(3 * angles + r.uniform(0, 6)) * r.uniform(0.3, 1))
        points = np.stack([cx + wobble * np.cos(angles), cy + wobble * np.sin(angles)], 1).astype(np.int32)
        colour = tuple(float(v) for v in r.integers(60, 255, 3))
        cv2.fillPoly(image, [points], colour)
        x, y, w, h = cv2.boundingRect(points)
        exact = np.zeros((h, w), np.float32)
        cv2.fillPoly(exact, [points - (x, y)], 1.0)
        small = cv2.resize(exact, (28, 28), interpolation=cv2.INTER_AREA)
        coarse = (cv2.resize(small, (w, h)) > 0.5).astype(np.uint8)
        frame = np.zeros((height, width), np.uint8)
        x1, y1 = min(x + w, width), min(y + h, height)
        frame[max(y, 0) : y1, max(x, 0) : x1] = coarse[max(-y, 0) : y1 - y, max(-x, 0) : x1 - x]
        masks.append(Mask.from_array(frame))
    jpeg = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8))[1].tobytes()
    return jpeg, masks


def request_of(jpeg: bytes, masks: list[Mask], **options: Any) -> bytes:
    entries = [{"id": i, "segmentation": mask.to_rle()} for i, mask in enumerate(masks)]
    data = {"image": {"data": base64.b64encode(jpeg).decode()}, "masks": entries, "options": options}
    return json.dumps(data).encode()


# ---------------------------------------------------------------- server and load


THREADS = 0


def threads_of(cores: str) -> int:
    """Threads of the network on ``cores``."""
    return THREADS or len(cores.split(","))


class Server:
    """A server process on some cores."""

    def __init__(self, cores: str, **env: Any) -> None:
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            self.port = int(door.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.NamedTemporaryFile(suffix=".jsonl", delete=False)  # noqa: SIM115
        threads = str(threads_of(cores))
        variables = {
            **os.environ,
            "BPR_PORT": str(self.port),
            "BPR_PRESETS": '["balanced"]',
            "BPR_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "BPR_DEVICE": "cpu",
            **{f"BPR_{name.upper()}": str(value) for name, value in env.items()},
        }
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, sys.executable, "-c", SERVE], env=variables, stderr=self.log, cwd=ROOT
        )
        until = time.monotonic() + 300
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while time.monotonic() < until:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        return
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(Path(self.log.name).read_text()[-2000:])

    def rss_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmRSS"))

    def cpu_s(self) -> float:
        """CPU seconds of the process so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -9


@contextlib.contextmanager
def serving(cores: str, **env: Any) -> Iterator[Server]:
    server = Server(cores, **env)
    try:
        yield server
    finally:
        server.stop()


SLEEPING = {"dummy": 1, "dummy_call_ms": 100, "dummy_patch_ms": 100}
HEADERS = {"content-type": "application/json"}


@contextlib.asynccontextmanager
async def http(server: Server, timeout_s: float = 120.0) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    async with httpx.AsyncClient(base_url=server.url, timeout=timeout_s, limits=limits) as client:
        yield client


async def closed_loop(server: Server, requests: list[bytes], clients: int) -> tuple[float, list[dict[str, Any]]]:
    """Each of ``clients`` sends the next request when its last is answered. Seconds in all, and the answers."""
    left = list(enumerate(requests))[::-1]
    answers: list[Any] = [None] * len(requests)
    async with http(server) as client:

        async def one() -> None:
            while left:
                index, content = left.pop()
                while True:
                    response = await client.post("/v1/refine/instance", content=content, headers=HEADERS)
                    if response.status_code != 429:
                        break
                    await asyncio.sleep(0.05)
                response.raise_for_status()
                answers[index] = response.json()

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return time.perf_counter() - start, answers


# ---------------------------------------------------------------- the parts

LIBRARY = """
import sys, time, json, pickle
import torch
torch.set_num_threads(int(sys.argv[1]))
from bpr_service.refine.refiner import Refiner
refiner = Refiner.load("balanced", device="cpu")
work = pickle.load(open(sys.argv[2], "rb"))
refiner.refine(*work[0])
print("ready", flush=True)
for _ in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    patches = 0
    for image, masks in work:
        result = refiner.refine(image, masks)
        rles = [m.to_rle() for m in result.masks]
        patches += sum(r.patches for r in result.reports)
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, patches]), flush=True)
"""


def throughput(cores: str, rounds: int = 2) -> dict[str, Any]:
    """16 clients against the library in a loop, on the same cores and images, in turns."""
    import pickle

    scenes = [scene(384, 640, 3, (35, 90), seed) for seed in range(16)]
    requests = [request_of(*s) for s in scenes] * 3
    with (
        tempfile.NamedTemporaryFile(suffix=".pickle") as file,
        serving(cores, timeout_s=300, max_queue_wait_s=300) as server,
    ):
        pickle.dump(scenes * 3, file)
        file.flush()
        command = ["taskset", "-c", cores, sys.executable, "-c", LIBRARY, str(threads_of(cores)), file.name]
        library = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert library.stdin
        assert library.stdout
        library.stdout.readline()
        pairs, cpu_pairs, patches = [], [], 0
        asyncio.run(closed_loop(server, requests[:4], 4))
        for _ in range(rounds):
            library.stdin.write("go\n")
            library.stdin.flush()
            library_s, library_cpu_s, patches = json.loads(library.stdout.readline())
            before = server.cpu_s()
            server_s, _ = asyncio.run(closed_loop(server, requests, 16))
            pairs.append((library_s, server_s))
            cpu_pairs.append((library_cpu_s, server.cpu_s() - before))
        library.stdin.close()
        library.wait(20)
    ratios = [a / b for a, b in pairs]
    return {
        "images": len(requests),
        "patches": patches,
        "library_images_per_s": [len(requests) / a for a, _ in pairs],
        "server_images_per_s": [len(requests) / b for _, b in pairs],
        "server_by_library": float(np.median(ratios)),
        "rounds": ratios,
        "library_cpu_s_per_image": [a / len(requests) for a, _ in cpu_pairs],
        "server_cpu_s_per_image": [b / len(requests) for _, b in cpu_pairs],
        "server_by_library_in_cpu_time": float(np.median([a / b for a, b in cpu_pairs])),
        "goal": ">= 0.9",
    }


def overhead(cores: str, rounds: int = 3) -> dict[str, Any]:
    """HTTP, decode and encode of one 1024 x 2048 image with 20 masks, as a share of the request."""
    content = request_of(*scene(1024, 2048, 20, (30, 120), 5))
    shares, last = [], {}
    with serving(cores, timeout_s=300) as server:
        for number in range(rounds + 1):
            seconds, (answer,) = asyncio.run(closed_loop(server, [content], 1))
            steps = answer["timings_ms"]
            if number:
                outside_ms = 1e3 * seconds - steps["total"]  # both ways through HTTP, the body's arrival included
                shares.append((outside_ms + steps["decode"] + steps["encode"]) / (1e3 * seconds))
                last = {"seen_ms": 1e3 * seconds, **steps, "patches": sum(m["patches"] for m in answer["masks"])}
    return {"share": float(np.median(shares)), "rounds": shares, "last_ms": last, "goal": "< 0.15"}


def batching(cores: str, rounds: int = 3) -> dict[str, Any]:
    """64 clients with one small mask each: batches of up to 64 patches against one patch at a time."""
    requests = [request_of(*scene(128, 128, 1, (10, 18), seed)) for seed in range(64)]
    on, off, on_cpu, off_cpu, fill = [], [], [], [], 0.0
    with (
        serving(cores, max_requests=128, timeout_s=300, max_queue_wait_s=300, max_batch_wait_ms=50) as batched,
        serving(cores, max_requests=128, max_batch_patches=1, timeout_s=300, max_queue_wait_s=300) as single,
    ):
        for server in (batched, single):
            asyncio.run(closed_loop(server, requests[:4], 4))
        for _ in range(rounds):
            for server, seconds, cpu in ((batched, on, on_cpu), (single, off, off_cpu)):
                before = server.cpu_s()
                seconds.append(asyncio.run(closed_loop(server, requests, 64))[0])
                cpu.append(server.cpu_s() - before)
        fill = _metric(batched, "bpr_batch_fill_sum") / _metric(batched, "bpr_batch_fill_count")
        patches = _metric(batched, "bpr_patches_total") / _metric(batched, 'bpr_step_seconds_count{step="network"}')
    ratios = [b / a for a, b in zip(on, off, strict=True)]
    return {
        "requests_per_s_on": [len(requests) / s for s in on],
        "requests_per_s_off": [len(requests) / s for s in off],
        "on_by_off": float(np.median(ratios)),
        "rounds": ratios,
        "on_by_off_in_cpu_time": float(np.median([b / a for a, b in zip(on_cpu, off_cpu, strict=True)])),
        "batch_fill": fill,
        "patches_per_request": patches,
        "goal": ">= 3",
    }


def _metric(server: Server, name: str) -> float:
    text = httpx.get(server.url + "/metrics", timeout=20).text
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " ")), 0.0)


def differs(answer: dict[str, Any], truth: dict[str, Any]) -> int:
    """Pixels in which two answers differ; floats of a network depend on the batch's shape in the last digit."""
    total = 0
    for a, b in zip(answer["masks"], truth["masks"], strict=True):
        if a["segmentation"] != b["segmentation"]:
            x, y = (Mask.from_rle(m["segmentation"]).to_array() for m in (a, b))
            total += int((x != y).sum())
    return total


def overload(cores: str, seconds: float = 60.0, times: float = 10.0) -> dict[str, Any]:
    """An open loop at ``times`` the measured capacity."""
    deadline_s = 60.0
    requests = [request_of(*scene(160, 160, 1, (20, 40), seed), timeout_s=deadline_s) for seed in range(16)]
    with serving(cores, max_requests=32, timeout_s=deadline_s, max_queue_wait_s=20, **SLEEPING) as server:
        truth = asyncio.run(closed_loop(server, requests, 1))[1]
        spent, _ = asyncio.run(closed_loop(server, requests * 2, 16))
        capacity = len(requests) * 2 / spent
        accepted, refused, other, wrong, memory = asyncio.run(
            _flood(server, requests, truth, capacity * times, seconds)
        )
        alive = asyncio.run(closed_loop(server, requests, 4))
        after = [differs(a, t) for a, t in zip(alive[1], truth, strict=True)]
        exit_code = server.stop()
    warm = [(t, m) for t, m in memory if t > seconds / 4]
    t, m = np.array(warm).T
    slope = float(np.polyfit(t, m, 1)[0] * 60 / m.mean())
    late = np.array(sorted(accepted))
    return {
        "capacity_per_s": capacity,
        "offered_per_s": (len(accepted) + len(refused) + len(other)) / seconds,
        "accepted": len(accepted),
        "accepted_per_s_by_capacity": len(accepted) / seconds / capacity,
        "refused_429": len(refused),
        "refused_without_retry_after": sum(not ok for ok in refused),
        "other": sorted(set(map(str, other))),
        "other_count": len(other),
        "wrong_pixels_over_0.1_percent": sum(w > 0.001 * 160 * 160 for w in wrong),
        "answers_that_differ_in_any_pixel": sum(w > 0 for w in wrong),
        "p50_s": float(np.quantile(late, 0.5)),
        "p99_s": float(np.quantile(late, 0.99)),
        "deadline_s": deadline_s,
        "rss_mb": [float(m.min()) / 2**20, float(m.max()) / 2**20],
        "memory_slope_per_minute": slope,
        "right_afterwards": max(after) <= 0.001 * 160 * 160,
        "exit_code": exit_code,
        "goal": "accepted right, others 429 with Retry-After, p99 < deadline, slope < 0.01",
    }


async def _flood(
    server: Server, requests: list[bytes], truth: list[dict[str, Any]], rate: float, seconds: float
) -> tuple[list[float], list[bool], list[Any], list[int], list[tuple[float, float]]]:
    accepted: list[float] = []
    refused: list[bool] = []
    other: list[Any] = []
    wrong: list[int] = []
    memory: list[tuple[float, float]] = []
    async with http(server) as client:

        async def one(index: int) -> None:
            start = time.perf_counter()
            try:
                response = await client.post("/v1/refine/instance", content=requests[index], headers=HEADERS)
            except httpx.HTTPError as error:
                other.append(type(error).__name__)
                return
            if response.status_code == 200:
                accepted.append(time.perf_counter() - start)
                wrong.append(differs(response.json(), truth[index]))
            elif response.status_code == 429:
                refused.append("retry-after" in response.headers)
            else:
                other.append(response.status_code)

        begin = time.perf_counter()
        tasks = []
        due = 0.0
        while (now := time.perf_counter() - begin) < seconds:
            if not memory or now - memory[-1][0] > 0.5:
                memory.append((now, float(server.rss_bytes())))
            while due <= now:
                tasks.append(asyncio.create_task(one(random.randrange(len(requests)))))
                due += 1 / rate
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    return accepted, refused, other, wrong, memory


def drain(cores: str) -> dict[str, Any]:
    """SIGTERM under load: what was accepted is answered, and the exit code is 0."""
    requests = [request_of(*scene(160, 160, 1, (20, 40), seed)) for seed in range(8)]
    server = Server(cores, timeout_s=60, max_queue_wait_s=60, **{**SLEEPING, "dummy_patch_ms": 5})
    counts: dict[str, int] = {}

    async def load() -> tuple[int, float]:
        async with http(server) as client:

            async def one(number: int) -> None:
                while True:
                    try:
                        response = await client.post(
                            "/v1/refine/instance", content=requests[number % 8], headers=HEADERS
                        )
                        name = str(response.status_code)
                    except httpx.ConnectError:
                        return
                    except httpx.HTTPError as error:
                        name = f"lost: {type(error).__name__}"
                    counts[name] = counts.get(name, 0) + 1
                    if name != "200":
                        return

            tasks = [asyncio.create_task(one(n)) for n in range(16)]
            while counts.get("200", 0) < 20:
                await asyncio.sleep(0.02)
            start = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(server.process.wait, 60)
            took = time.perf_counter() - start
            await asyncio.gather(*tasks)
            return code, took

    code, took = asyncio.run(load())
    lost = sum(n for name, n in counts.items() if name.startswith("lost"))
    return {"answers": counts, "lost": lost, "exit_code": code, "drain_s": took, "goal": "lost 0, exit 0, < 30 s"}


def swap(cores: str) -> dict[str, Any]:
    """Activate another version again and again under load."""
    requests = [request_of(*scene(160, 160, 1, (20, 40), seed)) for seed in range(8)]
    with serving(cores, timeout_s=60, max_queue_wait_s=60, **{**SLEEPING, "dummy_patch_ms": 5}) as server:
        return asyncio.run(_swap(server, requests, "v2"))


async def _swap(server: Server, requests: list[bytes], other: str) -> dict[str, Any]:
    answers: list[str] = []
    waits: list[float] = []
    async with http(server) as client:
        first = (await client.get("/v1/models")).json()["models"][0]["active"]
        stop = False

        async def one(number: int) -> None:
            while not stop:
                response = await client.post("/v1/refine/instance", content=requests[number % 8], headers=HEADERS)
                version = response.json()["model"]["version"] if response.status_code == 200 else ""
                answers.append(f"{response.status_code} {version}")

        tasks = [asyncio.create_task(one(n)) for n in range(8)]
        for version in (other, first, other, first):
            target = len(answers) + 16
            while len(answers) < target:
                await asyncio.sleep(0.02)
            start = time.perf_counter()
            response = await client.post("/v1/models/dummy/activate", json={"version": version})
            response.raise_for_status()
            waits.append(time.perf_counter() - start)
        stop = True
        await asyncio.gather(*tasks)
    kinds = {answer: answers.count(answer) for answer in sorted(set(answers))}
    lost = sum(n for answer, n in kinds.items() if not answer.startswith("200 "))
    named = {answer.split()[1] for answer in kinds if answer.startswith("200 ")}
    return {
        "answers": kinds,
        "lost": lost,
        "both_versions_named": named == {first, other},
        "activation_s": waits,
        "goal": "lost 0",
    }


def malformed(cores: str, count: int = 3000) -> dict[str, Any]:
    """Seeded malformed bodies: no 5xx, no hang, no growth."""
    from tests.server.malformed import malformed as make

    counts: dict[str, int] = {}
    slowest = 0.0
    memory = []
    with serving(cores, max_pixels=1 << 20, dummy=1) as server:

        async def send() -> None:
            nonlocal slowest
            async with http(server, 120) as client:
                seeds = iter(range(count))

                async def one() -> None:
                    nonlocal slowest
                    for seed in seeds:
                        task, content, kind = make(seed)
                        start = time.perf_counter()
                        headers = {"content-type": kind} if kind else {}
                        response = await client.post(f"/v1/refine/{task}", content=content, headers=headers)
                        slowest = max(slowest, time.perf_counter() - start)
                        key = str(response.status_code)
                        counts[key] = counts.get(key, 0) + 1
                        if seed % 100 == 0:
                            memory.append((seed, server.rss_bytes()))

                await asyncio.gather(*(one() for _ in range(8)))

        asyncio.run(send())
    third = [m for s, m in memory if s > count / 3]
    return {
        "count": sum(counts.values()),
        "statuses": counts,
        "server_errors": sum(n for status, n in counts.items() if status >= "5"),
        "slowest_s": slowest,
        "growth_mb_after_first_third": (third[-1] - third[0]) / 2**20,
        "goal": "no 5xx, no hang, no growth",
    }


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "overload": overload,
    "drain": drain,
    "swap": swap,
    "malformed": malformed,
    "overhead": overhead,
    "throughput": throughput,
    "batching": batching,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--cores", type=int, default=2, help="cores of the server and the library; 0 is all of them")
    parser.add_argument("--threads", type=int, default=0, help="threads of the network; 0 is one a core")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    arguments = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    cores = ",".join(map(str, available[: arguments.cores] if arguments.cores else available))
    global THREADS
    THREADS = arguments.threads
    results: dict[str, Any] = {
        "command": "python benchmarks/serve.py " + " ".join(sys.argv[1:]),
        "cores": cores,
        "load_before": os.getloadavg()[0],
    }
    for name in arguments.only.split(","):
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = PARTS[name](cores)
        print(json.dumps({name: results[name]}, indent=1), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
