"""What ended jobs left is removed by age and size: rows, parts, logs, the engine's own records. Results stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bpr_service.jobs.database import Database
from bpr_service.jobs.settings import JobSettings

if TYPE_CHECKING:
    from dbos import DBOSClient

BATCH = 500
"""Workflows that are deleted in one call."""


def prune(
    database: Database,
    client: DBOSClient,
    settings: JobSettings,
    *,
    older_than_s: float,
    keep_bytes: float | None = None,
) -> list[str]:
    """Remove jobs that ended long ago, and the oldest of the others while they hold too much.

    Files go first and the job's row last: a prune that is killed is done again.

    Args:
        database: of the jobs.
        client: of the engine that runs them.
        settings: where their files lie.
        older_than_s: since the end of a job.
        keep_bytes: what ended jobs may hold in the folder together; None: any amount.

    Returns:
        The ids of the jobs that were removed.
    """
    ended = database.ended_jobs()
    old = [job_id for job_id, ago_s in ended if ago_s > older_than_s]
    if keep_bytes is not None:
        rest = [job_id for job_id, _ in ended if job_id not in set(old)]
        held = {job_id: _bytes(settings.job_folder(job_id)) for job_id in rest}
        for job_id in rest:  # the oldest first
            if sum(held.values()) <= keep_bytes:
                break
            old.append(job_id)
            del held[job_id]
    for job_id in old:
        for ids in _batches(database.workflows_of(f"{job_id}:")):
            client.delete_workflows(ids)
        shutil.rmtree(settings.job_folder(job_id), ignore_errors=True)
        database.remove_job(job_id)
    database.remove_workers(older_than_s)
    return old


def _batches(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
