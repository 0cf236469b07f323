"""Prometheus metrics of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bpr_service.runtime.device import device_memory_bytes
from bpr_service.runtime.engine import Engine, EngineEvents

if TYPE_CHECKING:
    from bpr_service.jobs.engine import JobEngine

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

    def watch_jobs(self, jobs: JobEngine) -> None:
        """Also export how busy the installation of jobs is at the moment of a scrape."""
        self.registry.register(_JobsCollector(jobs))

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


class _JobsCollector(Collector):
    def __init__(self, jobs: JobEngine) -> None:
        self._jobs = jobs

    def describe(self) -> list[Metric]:
        return []  # so that registering it asks no database

    def collect(self) -> list[Metric]:
        up = GaugeMetricFamily("bpr_jobs_database_up", "1 while the jobs database answers")
        try:
            load = self._jobs.load()
        except Exception:  # whatever is wrong with the database: the server's own metrics still are told
            up.add_metric([], 0.0)
            return [up]
        up.add_metric([], 1.0)
        queued = GaugeMetricFamily("bpr_jobs_queued", "Work that waits for a worker, by queue", labels=["queue"])
        running = GaugeMetricFamily("bpr_jobs_running", "Work under way, by queue", labels=["queue"])
        for family, counts in ((queued, load.queued), (running, load.running)):
            for name, count in counts.items():
                family.add_metric([name], float(count))
        return [up, queued, running, GaugeMetricFamily("bpr_jobs_workers", "Workers alive", float(load.workers))]
