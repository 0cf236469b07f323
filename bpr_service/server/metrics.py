"""Prometheus metrics of the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bpr_service.runtime.device import device_memory_bytes
from bpr_service.runtime.engine import Engine, EngineEvents

if TYPE_CHECKING:
    from bpr_service.jobs.engine import JobEngine, Load

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics(EngineEvents):
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("bpr_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.latency = Histogram(
            "bpr_request_seconds", "Time to answer", ["route"], buckets=LATENCY_S, registry=self.registry
        )
        self.steps = Histogram(
            "bpr_step_seconds",
            "Time of each step of a refinement",
            ["step"],
            buckets=(0.001, *LATENCY_S),
            registry=self.registry,
        )
        self.rejected = Counter("bpr_rejected", "Requests refused, by reason", ["reason"], registry=self.registry)
        self.patches = Counter("bpr_patches", "Patches through the network", registry=self.registry)
        self.masks = Counter("bpr_masks", "Masks answered, by status", ["status"], registry=self.registry)
        self.batch_fill = Histogram(
            "bpr_batch_fill",
            "Patches of a batch by the patches it has room for",
            buckets=(0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
            registry=self.registry,
        )
        self.batch_requests = Histogram(
            "bpr_batch_requests",
            "Requests that share a batch",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.device_seconds = Counter("bpr_device_seconds", "Time the device worked", registry=self.registry)
        self.halved = Counter(
            "bpr_device_out_of_memory", "Batches that were halved for lack of device memory", registry=self.registry
        )
        self.activations = Counter(
            "bpr_model_activations", "Model versions activated", ["model", "ok"], registry=self.registry
        )
        self.in_flight = Gauge("bpr_http_in_flight", "HTTP requests being answered", registry=self.registry)

    def watch(self, engine: Engine) -> None:
        """Also export what ``engine`` holds at the moment of a scrape."""
        self.registry.register(_EngineCollector(engine))

    def watch_jobs(self, jobs: JobEngine) -> JobFigures:
        """Also export how busy the installation of jobs is, as the figures say that are returned."""
        figures = JobFigures(jobs)
        self.registry.register(_JobsCollector(figures))
        return figures

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self.registry)

    def batch(self, patches: int, requests: int, room: int, seconds: float) -> None:
        self.patches.inc(patches)
        self.batch_fill.observe(patches / room)
        self.batch_requests.observe(requests)
        self.device_seconds.inc(seconds)

    def out_of_memory(self, patches: int) -> None:
        self.halved.inc()

    def activated(self, model: str, version: str, ok: bool) -> None:
        self.activations.labels(model, str(ok).lower()).inc()


class _EngineCollector(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> list[Metric]:
        engine = self._engine
        return [
            GaugeMetricFamily("bpr_ready", "1 while requests are admitted", float(engine.state == "ready")),
            GaugeMetricFamily("bpr_requests_admitted", "Slots taken", float(engine.requests)),
            GaugeMetricFamily("bpr_queue_patches", "Patches that wait for the device", float(engine.queue_patches)),
            GaugeMetricFamily("bpr_queue_wait_seconds", "Expected wait of a new request", engine.expected_wait_s()),
            GaugeMetricFamily("bpr_reserved_bytes", "Memory reserved by requests", float(engine.memory.used_bytes)),
            GaugeMetricFamily(
                "bpr_device_memory_bytes", "Memory held on the device", float(device_memory_bytes(engine.device))
            ),
        ]


class JobFigures:
    """How busy the installation of jobs is, asked every ``every_s`` by a thread of its own.

    A scrape reads what was found last and never waits for the database; what is older than three looks counts as none.
    """

    def __init__(self, jobs: JobEngine, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs, self._every_s, self._clock = jobs, every_s, clock
        self._found: tuple[float, Load] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-figures", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A look that is under way is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every_s)

    def look(self) -> None:
        """Ask the database once."""
        try:
            self._found = (self._clock(), self._jobs.load())
        except Exception:  # whatever is wrong with it: there are no figures
            self._found = None

    def latest(self) -> Load | None:
        """What was found last, None where that is nothing or too old."""
        if self._found is None or self._clock() - self._found[0] > 3 * self._every_s:
            return None
        return self._found[1]


class _JobsCollector(Collector):
    def __init__(self, figures: JobFigures) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        load = self._figures.latest()
        up = GaugeMetricFamily("bpr_jobs_database_up", "1 while the jobs database answers", float(load is not None))
        if load is None:
            return [up]
        queued = GaugeMetricFamily("bpr_jobs_queued", "Work that waits for a worker, by queue", labels=["queue"])
        running = GaugeMetricFamily("bpr_jobs_running", "Work under way, by queue", labels=["queue"])
        for family, counts in ((queued, load.queued), (running, load.running)):
            for name, count in counts.items():
                family.add_metric([name], float(count))
        return [up, queued, running, GaugeMetricFamily("bpr_jobs_workers", "Workers alive", float(load.workers))]
