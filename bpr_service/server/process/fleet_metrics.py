"""The metrics of all processes of a fleet in one answer, whichever of them is asked.

Every series gets the label ``process``, so that counters of different processes stay apart. What describes the
installation and not a process (``bpr_jobs_*``) is told once, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bpr_service.server.process.member import Member, client_of

TIMEOUT_S = 2.0
SHARED = "bpr_jobs_"


def fleet_metrics(member: Member, own: Callable[[], bytes]) -> bytes:
    """Prometheus text of every process that answers; ``bpr_process_up`` is 0 for one that does not."""

    def ask(process: int) -> str | None:
        if process == member.process:
            return own().decode()
        try:
            with client_of(member.socket_path(process)) as client:
                return client.get("/metrics?only=this", timeout=TIMEOUT_S).raise_for_status().text
        except httpx.HTTPError:  # starting, or gone and about to be replaced
            return None

    with ThreadPoolExecutor(len(member.devices)) as pool:
        texts = list(pool.map(ask, range(len(member.devices))))
    up = GaugeMetricFamily("bpr_process_up", "1 while the process answers", labels=["process", "device"])
    for process, (device, text) in enumerate(zip(member.devices, texts, strict=True)):
        up.add_metric([str(process), device], float(text is not None))
    registry = CollectorRegistry()
    registry.register(_Families([up, *merge(texts)]))
    return generate_latest(registry)


def merge(texts: Iterable[str | None]) -> list[Metric]:
    """Families of all processes' texts, one each, their samples labelled with the process's number."""
    families: dict[str, Metric] = {}
    for process, text in enumerate(texts):
        for family in text_string_to_metric_families(text or ""):
            shared = family.name.startswith(SHARED)
            if shared and family.name in families:
                continue
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = sample.labels if shared else {**sample.labels, "process": str(process)}
                merged.samples.append(sample._replace(labels=labels))
    return list(families.values())


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
