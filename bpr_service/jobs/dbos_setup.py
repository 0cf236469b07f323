"""How DBOS is configured, for workers and for clients alike."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bpr_service.errors import UnknownName
from bpr_service.jobs.settings import JobSettings

if TYPE_CHECKING:
    from dbos import DBOSClient
    from sqlalchemy import Connection

    from bpr_service.jobs.database import Database

NAME = "bpr"
VERSION = "2"
"""Of the workflows' shape. DBOS's default, a hash of the source, would strand running jobs at every release."""
WORK_QUEUES: dict[str, tuple[str, ...]] = {"refine": ("jobs", "parts"), "train": ("train",)}
"""The queues of each kind of job."""
KINDS = tuple(WORK_QUEUES)


def queues_of(kind: str) -> tuple[str, ...]:
    """The queues of a kind of job. Raises ``UnknownName``."""
    if kind not in WORK_QUEUES:
        raise UnknownName("kind of job", kind, WORK_QUEUES)
    return WORK_QUEUES[kind]


def open_client(settings: JobSettings, database: Database) -> DBOSClient:
    """A client; DBOS's own tables are made or brought up to date first, by one process at a time."""
    from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer

    logging.getLogger("dbos").setLevel(logging.WARNING)
    with database.exclusively("migrate"):
        DBOS.migrate(settings.url)
    return DBOSClient(system_database_url=settings.url, serializer=DBOSPortableJSONSerializer(), application_name=NAME)


def enqueue(
    client: DBOSClient,
    connection: Connection,
    queue: str,
    workflow: str,
    workflow_id: str,
    arguments: tuple[str, ...],
) -> None:
    """Put a workflow into its queue, in the transaction of the connection; one of this id that is there stays."""
    client.enqueue_in_transaction(
        connection,
        {"queue_name": queue, "workflow_name": workflow, "workflow_id": workflow_id, "app_version": VERSION},
        *arguments,
    )


def worker_config(settings: JobSettings, executor_id: str) -> Any:
    """The configuration of a worker's DBOS. Only strings go through its serializer, as JSON."""
    from dbos import DBOSConfig, DBOSPortableJSONSerializer

    return DBOSConfig(
        name=NAME,
        system_database_url=settings.url,
        application_version=VERSION,
        executor_id=executor_id,
        serializer=DBOSPortableJSONSerializer(),
        log_level="WARNING",
        enable_otlp=False,
        notification_listener_polling_interval_sec=settings.poll_s,
    )
