"""What hostile callers reach against a real server on loopback, with little memory.

    nice -n 10 python benchmarks/attack.py [--only bombs,slow,malformed,overload] [--out FILE.json]

* ``bombs``: every bomb of ``tests/server/bombs.py``, four at a time: answers, the peak of resident memory over that of
  the idle server against ``BPR_MEMORY_MB``, the slowest ``/livez`` and that of an event loop that does nothing beside
  it, how late after its deadline an answer came, and the time from SIGTERM, with bombs in flight, to the end.
* ``slow``: half headers, bodies and answers that stand still, while an honest caller asks.
* ``malformed``: 10,000 seeded bodies.
* ``overload``: four keys, of which one sends ten times what the others do, every second request a bomb: what these get
  of what they got before. Its clients are a process of their own, behind the others' in the use of the cores.

The network is the one of load tests (``BPR_DUMMY``). Memory is the sum of the processes' proportional shares (PSS).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve import Server, request_of, scene

from bpr_service.server.http.auth import hash_key
from tests.server.bombs import BOMBS, Shot
from tests.server.malformed import malformed

MEMORY_MB, SIDE, DRAIN_S, TIMEOUT_S = 512, 2048, 5, 20
BOUNDS = {"dummy": 1, "memory_mb": MEMORY_MB, "drain_s": DRAIN_S, "timeout_s": TIMEOUT_S, "max_connections": 200}


def family(pid: int) -> list[int]:
    """A process and all that come from it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            found += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """What a process and its children hold, shared pages counted once."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def idle_loop(told: Any) -> None:
    """A process whose event loop does nothing but answer: what a probe takes where only the machine is busy."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        told.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def probe(url: str, idle_url: str, ended: Any, told: Any) -> None:
    """Ask `/livez` and the idle loop ten times a second until the end, in a process that makes no bombs.

    Tells when each pair was asked, s, and what both took, ms.
    """
    taken = []
    with httpx.Client(base_url=url, timeout=30) as client, httpx.Client(base_url=idle_url, timeout=30) as idle:
        while not ended.wait(0.1):
            times = [time.perf_counter()]
            for one in (client, idle):
                one.get("/livez")
                times.append(time.perf_counter())
            taken.append((times[0], 1e3 * (times[1] - times[0]), 1e3 * (times[2] - times[1])))
    told.put(taken)


def probed(taken: list[tuple[float, float, float]], around_s: float = 1.0) -> dict[str, float]:
    """Median and slowest of `/livez` and of the idle loop, and how far the slowest `/livez` was over the idle one's.

    That is: over the slowest idle answer within a second of it. It is the server's own part, without that of a machine
    that others use too.
    """
    own = [ms - max(other for then, _, other in taken if abs(then - at) <= around_s) for at, ms, _ in taken]
    found = {"livez_over_idle_slowest_ms": max(own)}
    for column, name in ((1, "livez"), (2, "idle")):
        times = sorted(each[column] for each in taken)
        found |= {f"{name}_median_ms": times[len(times) // 2], f"{name}_slowest_ms": times[-1]}
    return found


@contextlib.contextmanager
def watching(server: Server, every_s: float = 0.05) -> Iterator[dict[str, Any]]:
    """The peak of resident memory, looked at so often, and how `/livez` is answered (`probed`), in the block."""
    idle = resident_bytes(server.process.pid)
    seen: dict[str, Any] = {"idle_mb": idle >> 20, "peak_over_idle_mb": 0}
    stop = threading.Event()

    def memory() -> None:
        while not stop.wait(every_s):
            grown = (resident_bytes(server.process.pid) - idle) >> 20
            seen["peak_over_idle_mb"] = max(seen["peak_over_idle_mb"], grown)

    told: Any = multiprocessing.Queue()
    ended = multiprocessing.Event()
    beside = multiprocessing.Process(target=idle_loop, args=(told,), daemon=True)
    beside.start()
    idle_url = f"http://127.0.0.1:{told.get(timeout=60)}"
    thread = threading.Thread(target=memory)
    prober = multiprocessing.Process(target=probe, args=(server.url, idle_url, ended, told))
    thread.start()
    prober.start()
    try:
        yield seen
    finally:
        stop.set()
        ended.set()
        taken = told.get(timeout=60)
        prober.join()
        beside.kill()
        thread.join()
        seen |= probed(taken)


def fire(client: httpx.Client, shot: Shot) -> tuple[int, float]:
    """Status and seconds; -1 where the connection broke."""
    started = time.perf_counter()
    try:
        status = client.post(shot.path, content=shot.body, headers={"content-type": shot.content_type}).status_code
    except httpx.TransportError:
        status = -1
    return status, time.perf_counter() - started


def bombs() -> dict[str, Any]:
    """Every bomb, four at a time; then a SIGTERM with four in flight."""
    server = Server("0,1", **BOUNDS)
    statuses: dict[str, int] = {}
    slowest = 0.0
    with httpx.Client(base_url=server.url, timeout=120) as client, watching(server) as seen:
        with ThreadPoolExecutor(4) as pool:
            shots = ((name, make(SIDE)) for name, make in BOMBS.items())
            for name, (status, seconds) in pool.map(lambda shot: (shot[0], fire(client, shot[1])), shots):
                statuses[name] = status
                slowest = max(slowest, seconds)
        alive = client.get("/readyz").status_code
    heavy = BOMBS["60 full-frame PNG masks"](SIDE)
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=120) as client:
        last = [pool.submit(fire, client, heavy) for _ in range(4)]
        time.sleep(0.5)
        started = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
        left_s = time.perf_counter() - started
        in_flight = [one.result()[0] for one in last]
    bad = {
        name: status for name, status in statuses.items() if (status >= 500 and status not in (503, 504)) or status < 0
    }
    return {
        **seen,
        "memory_mb": MEMORY_MB,
        "bombs": len(statuses),
        "statuses": dict(Counter(statuses.values())),
        "crashes_and_5xx": bad,
        "slowest_answer_s": slowest,
        "deadline_s": TIMEOUT_S,
        "ready_after": alive,
        "sigterm": {"seconds": left_s, "drain_s": DRAIN_S, "exit_code": code, "in_flight": in_flight},
    }


def slow() -> dict[str, Any]:
    """150 half headers, 64 bodies of one byte, 16 answers that nobody takes, and an honest caller among them."""
    server = Server("0,1", **BOUNDS, grace_s=2, header_s=2)
    honest = request_of(*scene(256, 256, 2, (30, 60), 1))
    image, masks = scene(512, 512, 1, (100, 200), 2)
    long_answer = request_of(image, masks * 400, encoding="uncompressed_rle")
    head = "POST /v1/refine/instance HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"

    def connect(data: bytes) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(data)
        return connection

    half = [head.encode()] * 120
    byte = [f"{head}Content-Length: 100000\r\n\r\n{{".encode()] * 48
    unread = [f"{head}Content-Length: {len(long_answer)}\r\n\r\n".encode() + long_answer] * 16
    results: Counter[int] = Counter()
    with httpx.Client(base_url=server.url, timeout=60) as client, watching(server) as seen:
        held = [connect(data) for data in (*half, *byte, *unread)]
        slowest, until = 0.0, time.monotonic() + 10
        while time.monotonic() < until:
            status, seconds = fire(client, Shot("/v1/refine/instance", "application/json", honest))
            results[status] += 1
            slowest = max(slowest, seconds)
        for connection in held:
            connection.close()
    code = server.stop()
    return {**seen, "honest": dict(results), "honest_slowest_s": slowest, "held": len(held), "exit_code": code}


def many_malformed(count: int = 10_000) -> dict[str, Any]:
    """Seeded malformed bodies; which of them a server answers with a 5xx."""
    server = Server("0,1", **BOUNDS, max_pixels=1 << 20)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
            kinds = (malformed(seed) for seed in range(count))
            shots = (Shot(f"/v1/refine/{task}", kind, body) for task, body, kind in kinds)
            statuses = [status for status, _ in pool.map(lambda shot: fire(client, shot), shots)]
            honest = client.post(
                "/v1/refine/instance", content=request_of(*scene(256, 256, 1, (30, 60), 1)), headers=JSON
            ).status_code
    finally:
        server.stop()
    bad = [seed for seed, status in enumerate(statuses) if status >= 500 or status < 0]
    return {"bodies": count, "statuses": dict(Counter(statuses)), "5xx": bad, "honest_after": honest}


JSON = {"content-type": "application/json"}


def clients(url: str, counts: dict[str, int], seconds: float) -> dict[str, Counter[int]]:
    """Statuses by key of so many clients each, that ask again as soon as they are answered; ``hostile`` sends bombs."""
    honest = request_of(*scene(256, 256, 2, (30, 60), 1))
    bad = [BOMBS[name](SIDE) for name in ("60 full-frame PNG masks", "WEBP RGB", "100,000 polygons", "200 segments")]
    answers: dict[str, Counter[int]] = {name: Counter() for name in counts}

    async def one(client: httpx.AsyncClient, name: str, number: int, until: float) -> None:
        auth = {**JSON, "authorization": f"Bearer {name}"}
        sent = 0
        while time.monotonic() < until:
            sent += 1
            path, body = "/v1/refine/instance", honest
            if name == "hostile" and (sent + number) % 2:
                path, _, body = bad[(sent + number) // 2 % len(bad)]
            try:
                answer = await client.post(path, content=body, headers=auth)
                answers[name][answer.status_code] += 1
                if answer.status_code in (429, 503):
                    await asyncio.sleep(0.05)
            except httpx.TransportError:
                answers[name][-1] += 1

    async def run() -> None:
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            until = time.monotonic() + seconds
            await asyncio.gather(*(one(client, name, i, until) for name, n in counts.items() for i in range(n)))

    asyncio.run(run())
    return answers


def _elsewhere(url: str, seconds: float, told: Any) -> None:
    """The hostile key's clients, in a process that takes no time from the honest ones."""
    os.nice(15)
    told.put(clients(url, {"hostile": 40}, seconds))


def overload(seconds: float = 60.0) -> dict[str, Any]:
    """Three honest keys alone, and then beside a fourth that sends ten times as much, with bombs."""
    names = ["a", "b", "c", "hostile"]
    honest = dict.fromkeys(names[:3], 4)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "keys.json"
    path.write_text(json.dumps([{"name": name, "sha256": hash_key(name), "scopes": ["refine"]} for name in names]))
    server = Server("0,1", **BOUNDS, api_keys_file=path, dummy_call_ms=5, dummy_patch_ms=1)
    told: Any = multiprocessing.Queue()
    try:
        clients(server.url, honest, 3)
        with watching(server, every_s=1.0) as seen:
            alone = clients(server.url, honest, seconds / 3)
            enemy = multiprocessing.Process(target=_elsewhere, args=(server.url, seconds, told))
            enemy.start()
            beside = clients(server.url, honest, seconds)
            beside |= told.get(timeout=300)
            enemy.join()
    finally:
        server.stop()
        folder.cleanup()
    kept = {name: beside[name][200] / seconds / max(1e-9, alone[name][200] / (seconds / 3)) for name in names[:3]}
    return {**seen, "alone": alone, "beside": beside, "kept": kept, "goal": "kept >= 0.7"}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "bombs": bombs,
    "slow": slow,
    "malformed": many_malformed,
    "overload": overload,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name in arguments.only.split(","):
        found[name] = PARTS[name]()
        print(json.dumps({name: found[name]}, indent=1), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
