"""What a job may ask for: ceilings that the operator set, how many at a time, and who may replace a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bpr_service.config import RefineConfig, build
from bpr_service.errors import ForbiddenError, LimitError
from bpr_service.jobs.requests import AuditRequest, RefineRequest, TrainRequest
from bpr_service.jobs.settings import JobSettings


def check_ceilings(request: RefineRequest | TrainRequest, settings: JobSettings) -> None:
    """Refuse what the settings do not allow.

    Raises:
        LimitError: a value is above its ceiling; the setting is named.
    """
    for name, value, setting in _bounded(request):
        ceiling = getattr(settings, setting)
        if isinstance(value, int | float) and value > ceiling:
            raise LimitError(
                name,
                expected=f"at most {ceiling:g}",
                got=f"{value:g}" if value < 1e300 else "more",  # what came as text has no bound
                fix=f"ask for less, or have BPR_JOBS_{setting.upper()} raised",
            )


def _bounded(request: RefineRequest | TrainRequest) -> Iterator[tuple[str, Any, str]]:
    """(name, value as it will be used, setting that bounds it)."""
    if isinstance(request, RefineRequest):
        if "max_pixels" in request.settings:
            yield "settings.max_pixels", build(RefineConfig, request.settings).max_pixels, "max_pixels"
        if isinstance(request, AuditRequest):
            yield "page_masks", request.page_masks, "max_page_masks"
            yield "sample", request.sample, "max_page_masks"
        return
    yield "time_limit_s", request.time_limit_s, "max_time_limit_s"
    yield "disk_limit_mb", request.disk_limit_mb, "max_disk_limit_mb"
    recipe = request.checked_recipe()
    yield "recipe.run.steps", recipe.run.steps, "max_steps"
    yield "recipe.run.batch_size", recipe.run.batch_size, "max_batch_size"
    for name in ("workers", "threads", "devices", "nodes"):
        yield f"recipe.run.{name}", getattr(recipe.run, name), "max_loaders"
    yield "recipe.network.arguments", max(_numbers(recipe.network.arguments), default=0), "max_width"


def _numbers(value: Any) -> Iterator[float]:
    """Every number in nested lists and mappings."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def check_promotion(request: TrainRequest, settings: JobSettings, *, may_promote: bool) -> TrainRequest:
    """The request, measured on the operator's data where the operator lets its name promote.

    Args:
        request: as the caller sent it.
        settings: the operator's.
        may_promote: the caller may replace models.

    Raises:
        ForbiddenError: neither the caller nor the operator's settings allow it.
    """
    if not request.promote_if_better or may_promote:
        return request
    allowed = settings.promotion
    if allowed is None or request.name not in allowed.names:
        raise ForbiddenError(
            "promote_if_better replaces the model of every server",
            expected="a key with the scope admin, or a name of BPR_JOBS_PROMOTION",
            got=f"name {request.name!r}",
            fix="leave it out and let an operator activate the candidate",
        )
    return request.with_options(held_out=allowed.held_out)


def check_quota(waiting: int, settings: JobSettings) -> None:
    """Raises ``LimitError`` where an owner has ``max_queued`` jobs that have not ended."""
    if waiting >= settings.max_queued:
        raise LimitError(
            "jobs that wait or run",
            expected=f"at most {settings.max_queued} (BPR_JOBS_MAX_QUEUED)",
            got=str(waiting + 1),
            fix="wait for some of them, or cancel them",
        )
