"""OpenTelemetry traces, where the extra ``otel`` is installed. The exporter is configured by ``OTEL_*`` variables."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from bpr_service import __version__
from bpr_service.errors import ConfigError

UNTRACED = "livez,readyz,metrics,v2/health/.*"


def instrument(app: FastAPI, exporter: Any = None) -> None:
    """Trace every request of ``app``; `ConfigError` where the extra is missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "otel", expected="the extra otel", got=str(error), fix="pip install 'bpr-service[otel]', or unset BPR_OTEL"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "bpr-service", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    app.state.tracer = provider.get_tracer("bpr_service")
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls=UNTRACED)
    app.state.tracer_provider = provider


def record_steps(app: FastAPI, timings_ms: dict[str, float]) -> None:
    """Put the steps of a refinement on the current span."""
    if getattr(app.state, "tracer", None) is None:
        return
    from opentelemetry import trace

    span = trace.get_current_span()
    for step, ms in timings_ms.items():
        span.set_attribute(f"bpr.{step}_ms", ms)
