"""``/v1/jobs``: submit, list, watch, cancel, resume. A route is parse, call, print; the work is the worker's."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Header, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from bpr_service import storage
from bpr_service.errors import BusyError, ConflictError, NotFoundError, NotReadyError
from bpr_service.jobs.engine import Job, JobEngine
from bpr_service.jobs.requests import AuditRequest, RefineRequest, TrainRequest
from bpr_service.server.http.auth import ANYBODY, Caller
from bpr_service.server.http.openapi import problems

WATCH_S, KEEP_ALIVE_S = 1.0, 15.0
THREADS, WAITING, ANSWER_S = 4, 64, 10.0
"""Threads for the jobs database, calls that may wait for one, and how long a call may take."""
STREAMS, STREAMS_EACH = 64, 8
"""Event streams at a time: in all, and of one key."""
T = TypeVar("T")
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The job's id; the same id is done once.")]


class JobThreads:
    """Threads of the jobs database alone: one that hangs keeps nobody but its own callers waiting, and them not long.

    Args:
        answer_s: how long a call may take, in seconds.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "jobs")
        self._answer_s = answer_s
        self._waiting = 0

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread. Raises `BusyError`, or `NotReadyError` where it takes too long."""
        if self._waiting >= WAITING:
            raise BusyError("too many calls wait for the jobs database", fix="try again later", retry_after_s=5.0)
        self._waiting += 1
        future = self._pool.submit(function, *args)
        future.add_done_callback(lambda _: self._done())
        try:
            async with asyncio.timeout(self._answer_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise NotReadyError(
                "the jobs database does not answer", fix="try again later", retry_after_s=self._answer_s
            ) from None

    def _done(self) -> None:
        self._waiting -= 1


class Looks:
    """Jobs as event streams see them: all streams of a job share one look at it."""

    def __init__(self, jobs: JobEngine, threads: JobThreads) -> None:
        self._jobs, self._threads = jobs, threads
        self._latest: dict[str, tuple[float, asyncio.Future[Job]]] = {}

    async def get(self, job_id: str) -> Job:
        """The job as it is, or was less than half of `WATCH_S` ago. Raises as `JobThreads.call`."""
        now = time.monotonic()
        known = {k: (at, look) for k, (at, look) in self._latest.items() if now - at < WATCH_S / 2 or not look.done()}
        if job_id not in known:
            known[job_id] = (now, asyncio.ensure_future(self._threads.call(self._jobs.get, job_id)))
        self._latest = known
        return await asyncio.shield(known[job_id][1])


class Streams:
    """Event streams that are open, by the caller's name."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def begin(self, caller: str) -> None:
        """Raises `BusyError` where the caller, or all together, have too many."""
        if self._open[caller] >= STREAMS_EACH or self._open.total() >= STREAMS:
            raise BusyError(
                "too many event streams",
                expected=f"at most {STREAMS_EACH} of a key and {STREAMS} in all",
                fix="close some, or ask for the job itself now and then",
                retry_after_s=10.0,
            )
        self._open[caller] += 1

    def end(self, caller: str) -> None:
        self._open[caller] -= 1


def create_router() -> APIRouter:
    """The routes over the jobs engine that the environment (``BPR_JOBS_*``) describes."""
    return job_router(JobEngine())


def job_router(jobs: JobEngine, answer_s: float = ANSWER_S) -> APIRouter:
    """The routes over a jobs engine, whose answer is waited for so long."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    threads = JobThreads(answer_s)
    _add_submit(router, jobs, threads)
    _add_reading(router, jobs, threads)
    _add_steering(router, jobs, threads)
    return router


def _add_submit(router: APIRouter, jobs: JobEngine, threads: JobThreads) -> None:
    refusals = problems(400, 401, 403, 404, 409, 422, 429, 503)

    async def submit(request: Request, kind: str, values: dict[str, Any], key: str | None) -> JSONResponse:
        caller: Caller = request.state.caller
        may_promote = "admin" in caller.scopes  # it would change what every server serves, as an activation does
        do = partial(jobs.submit, {**values, "kind": kind}, key, owner=_owner(caller), may_promote=may_promote)
        job = await threads.call(do)
        return JSONResponse(job.to_json(), status_code=202, headers={"Location": f"/v1/jobs/{job.id}"})

    @router.post("/refine", status_code=202, responses=refusals, openapi_extra=_body(RefineRequest))
    async def submit_refine(
        request: Request, values: Annotated[dict[str, Any], Body()], key: Key = None
    ) -> JSONResponse:
        """Refine a prediction file. Paths are ``ROOT:relative/path``, or addresses inside a root."""
        return await submit(request, "refine", values, key)

    @router.post("/audit", status_code=202, responses=refusals, openapi_extra=_body(AuditRequest))
    async def submit_audit(
        request: Request, values: Annotated[dict[str, Any], Body()], key: Key = None
    ) -> JSONResponse:
        """Find the wrong masks of an annotation file, which ``predictions`` names; ``out`` is the report."""
        return await submit(request, "audit", values, key)

    @router.post("/train", status_code=202, responses=refusals, openapi_extra=_body(TrainRequest))
    async def submit_train(
        request: Request, values: Annotated[dict[str, Any], Body()], key: Key = None
    ) -> JSONResponse:
        """Retrain a refinement model on data of one's own. To have it promoted needs the scope ``admin``."""
        return await submit(request, "train", values, key)


def _add_reading(router: APIRouter, jobs: JobEngine, threads: JobThreads) -> None:
    streams, looks = Streams(), Looks(jobs, threads)
    refusals = problems(401, 403, 404, 429, 503)

    @router.get("", responses=refusals)
    async def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        kind: str | None = None,
        state: str | None = None,
    ) -> JSONResponse:
        """The newest jobs first: the caller's own, of all with the scope ``admin``."""
        caller: Caller = request.state.caller
        owner = None if "admin" in caller.scopes else _owner(caller)
        found = await threads.call(lambda: jobs.list(limit=limit, kind=kind, state=state, owner=owner))
        return JSONResponse({"jobs": [job.to_json() for job in found]})

    @router.get("/{job_id}", responses=refusals)
    async def get_job(job_id: str, request: Request) -> JSONResponse:
        """State, progress, message and result."""
        return JSONResponse((await threads.call(_own, jobs.get, jobs, request.state.caller, job_id)).to_json())

    @router.get("/{job_id}/log", response_class=PlainTextResponse, responses=refusals)
    async def get_log(job_id: str, request: Request) -> PlainTextResponse:
        """The end of the job's log."""
        return PlainTextResponse(await threads.call(_own, jobs.log, jobs, request.state.caller, job_id))

    @router.get("/{job_id}/events", responses=refusals)
    async def get_events(job_id: str, request: Request) -> StreamingResponse:
        """Server-sent events: ``progress`` whenever something is new, then ``end``."""
        first = await threads.call(_own, jobs.get, jobs, request.state.caller, job_id)
        streams.begin(request.state.caller.name)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(
            _events(looks, first, request, streams), media_type="text/event-stream", headers=headers
        )

    @router.get("/{job_id}/result", responses=problems(401, 403, 404, 409, 429, 503))
    async def get_result(job_id: str, request: Request, file: str | None = None) -> Response:
        """The summary of what the job did.

        ``?file=report`` gives the report, ``?file=predictions`` a refined JSON file, ``?file=page`` the page of an
        audit.
        """
        return await threads.call(_own, lambda _: _result(jobs, job_id, file), jobs, request.state.caller, job_id)


def _add_steering(router: APIRouter, jobs: JobEngine, threads: JobThreads) -> None:
    refusals = problems(401, 403, 404, 409, 429, 503)

    @router.post("/{job_id}/cancel", responses=refusals)
    async def cancel(job_id: str, request: Request) -> JSONResponse:
        """Stop a job; what is done stays for a resume."""
        return JSONResponse((await threads.call(_own, jobs.cancel, jobs, request.state.caller, job_id)).to_json())

    @router.post("/{job_id}/resume", responses=refusals)
    async def resume(job_id: str, request: Request) -> JSONResponse:
        """Go on with a job that was cancelled or has failed."""
        return JSONResponse((await threads.call(_own, jobs.resume, jobs, request.state.caller, job_id)).to_json())


def _owner(caller: Caller) -> str | None:
    """Whose a job is; nobody's on a server without keys."""
    return None if caller is ANYBODY else caller.name


def _own(do: Callable[[str], T], jobs: JobEngine, caller: Caller, job_id: str) -> T:
    """``do(job_id)`` for a job of the caller; for others' with the scope ``admin``, else it does not exist."""
    if "admin" not in caller.scopes and jobs.get(job_id).owner != _owner(caller):
        raise NotFoundError(f"job {job_id!r}", expected="the id of a job", got="none of that id", fix="see /v1/jobs")
    return do(job_id)


def _body(model: type[RefineRequest] | type[TrainRequest]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema["properties"].pop("kind")
    schema.pop("$defs", None)
    if "held_out" in schema["properties"]:
        schema["properties"]["held_out"] = {"type": ["object", "null"]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _events(looks: Looks, job: Job, request: Request, streams: Streams) -> AsyncIterator[str]:
    try:
        async for text in _changes(looks, job, request):
            yield text
    finally:
        streams.end(request.state.caller.name)


async def _changes(looks: Looks, job: Job, request: Request) -> AsyncIterator[str]:
    last, sent = "", 0.0
    while True:
        text = json.dumps(job.to_json(), ensure_ascii=False)
        if text != last:
            yield f"event: progress\ndata: {text}\n\n"
            last, sent = text, time.monotonic()
        if job.ended_for_good:
            yield f"event: end\ndata: {json.dumps({'state': job.state})}\n\n"
            return
        if time.monotonic() - sent > KEEP_ALIVE_S:
            yield ": still here\n\n"
            sent = time.monotonic()
        await asyncio.sleep(WATCH_S)
        if await request.is_disconnected():
            return
        job = await looks.get(job.id)


def _result(jobs: JobEngine, job_id: str, file: str | None) -> Response:
    job = jobs.get(job_id)
    if job.state != "done" or job.result is None:
        raise ConflictError(f"job {job_id} has no result", expected="a job that is done", got=job.state)
    if file is None:
        return JSONResponse(job.result)
    kind = "application/json"
    if file == "report" and job.kind == "refine":
        stream = storage.open_read(str(jobs.folder(job_id) / "report.json"))
    elif (file, job.kind) == ("report", "audit"):
        stream = jobs.open_out(job)
    elif (file, job.kind) == ("page", "audit"):
        stream, kind = jobs.open_page(job), "text/plain; charset=utf-8"  # a file of the caller's: it runs nowhere here
    elif file == "predictions" and job.kind == "refine" and str(job.result["out"]).endswith(".json"):
        stream = jobs.open_out(job)
    else:
        raise NotFoundError(
            f"result file {file!r}", expected="report; of an audit, page; predictions where that is one file"
        )
    return StreamingResponse(iter(lambda: stream.read(storage.COPY_BYTES), b""), media_type=kind)
