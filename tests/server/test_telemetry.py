"""OpenTelemetry traces: a span a request with the time of each step, none for probes."""

from __future__ import annotations

from typing import Any

import pytest

from bpr_service.server.telemetry import instrument
from tests.server.helpers import body, serving
from tests.services import wait_for


def test_a_span_has_the_steps_and_probes_have_none() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    exporter = memory.InMemorySpanExporter()
    with serving(prepare=lambda app: instrument(app, exporter)) as server:
        assert server.client.get("/livez").status_code == 200
        assert server.client.post("/v1/refine/instance", json=body()).status_code == 200

        def finished() -> list[Any]:
            server.app.state.tracer_provider.force_flush()
            return [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]

        spans = wait_for("a span ends after its answer has gone out", finished)
        server.app.state.tracer_provider.shutdown()
    (span,) = spans
    assert "/v1/refine/instance" in span.name
    assert span.attributes is not None
    assert {"bpr.network_ms", "bpr.decode_ms", "bpr.total_ms"} <= set(span.attributes)
    assert not any("segmentation" in str(value) for value in span.attributes.values())
