"""Ray drives plan, parts and merge: actors that own a device each, loaders beside it, on the cluster that a user has.

An actor takes one part after the other. Where its node is lost, its part goes to another actor, which takes over the
journal, and Ray starts a new one when it has room; how many machines there are is Ray's business.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from bpr_service.errors import ConfigError, DeviceError, NotReadyError
from bpr_service.jobs.refine.batch import spec_of
from bpr_service.jobs.refine.parts import Watcher, refine_parts
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import Plan, load_plan, open_file
from bpr_service.jobs.requests import RefineRequest, parse_request

REACH_S = 5.0
"""How long a cluster's address may take to accept a connection."""
MAX_STARTS = 5
"""Actors in a row that may die before they were ready."""


class PartActor:
    """Owns a device: a warm Refiner and ``workers`` loader processes. Runs in an actor process of Ray."""

    def __init__(self, request: dict[str, Any], work: str, device: str, workers: int) -> None:
        parsed = parse_request(request)
        assert isinstance(parsed, RefineRequest)
        self.request, self.place, self.device, self.workers = parsed, Place(work), device, workers

    def ready(self) -> bool:
        """Load the model. Here, not when the actor is made: what that raises Ray takes for the actor's death."""
        from bpr_service.jobs.refine.loaders import RefinerPool
        from bpr_service.network.devices import set_threads

        set_threads(self.workers + 1)  # the processors that it asked Ray for: others of the node are other actors'
        plan = load_plan(self.place)
        if plan is None:
            raise ConfigError(
                f"{self.place.address} is not the same place on all nodes",
                expected="a folder that they share, or object storage",
                got="no plan there",
                fix="pass --work with such a place",
            )
        self.plan: Plan = plan
        self.pool = RefinerPool(spec_of(self.request, plan.model), device=self.device, workers=self.workers)
        return True

    def refine(self, part: int) -> int:
        """Refine what a part lacks; the number of its images that were."""
        file = open_file(self.request)
        return refine_parts(self.pool, self.request, file, self.place, self.plan, [part], Watcher())


def connect(address: str | None) -> Any:
    """The module ``ray``, connected to the cluster of ``address``; None: the one of RAY_ADDRESS, else a local one.

    Raises:
        ConfigError: Ray is not installed.
        NotReadyError: no cluster answers there, or one of another version of Ray or Python.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray", expected="the extra 'ray'", got=str(error), fix="pip install 'bpr-service[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    try:
        if address is not None:
            _reach(address)
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except Exception as error:  # Ray raises whatever it meets: ConnectionError, RuntimeError, ValueError
        raise NotReadyError(
            f"Ray at {address or 'this machine'}",
            expected=f"a cluster of Ray {ray.__version__} and this Python",
            got=" ".join(str(error).split())[:300],
            fix="check --address and the cluster's versions",
        ) from error
    return ray


def _reach(address: str) -> None:
    """Raise OSError where nothing listens at ``HOST:PORT``: Ray itself would try for minutes.

    Names such as ``auto`` are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


def refine_on_ray(
    request: RefineRequest,
    place: Place,
    parts: Iterable[int],
    *,
    address: str | None = None,
    actors: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    on_part: Callable[[int], None] = lambda part: None,
) -> int:
    """Refine parts of a plan on a cluster.

    Args:
        request: what to refine, and how.
        place: where parts are written.
        parts: their numbers.
        address: of the cluster; None: the one that Ray finds, or this machine.
        actors: how many devices to use; None: as many as the cluster has room for now.
        device: of each actor: ``cpu`` or ``cuda``.
        workers: processes that read and write for each actor.
        on_part: called with the number of each part that is done.

    Returns:
        How many images that was.

    Raises:
        ConfigError, NotReadyError: as `connect`.
        BprError: what an actor raised, as it was.
        DeviceError: actors die one after the other.
    """
    ray = connect(address)
    remote = ray.remote(PartActor).options(
        num_cpus=workers + 1, num_gpus=int(device.startswith("cuda")), max_restarts=0, max_task_retries=0
    )
    waiting = deque(parts)
    count = min(actors or _room(ray, workers, device), max(1, len(waiting)))

    under_way: dict[Any, tuple[int | None, Any]] = {}

    def start() -> None:
        actor = remote.remote(request.model_dump(mode="json"), place.address, device, workers)
        under_way[actor.ready.remote()] = (None, actor)

    for _ in range(count):
        start()
    images = stillborn = 0
    try:
        while waiting or any(part is not None for part, _ in under_way.values()):
            (ref,), _ = ray.wait(list(under_way), num_returns=1)
            part, actor = under_way.pop(ref)
            try:
                done = ray.get(ref)
            except ray.exceptions.RayTaskError as error:  # what the actor raised
                raise error.cause from error
            except ray.exceptions.RayError as error:  # it died, or its node did, or nobody knows
                ray.kill(actor)
                stillborn = stillborn + 1 if part is None else 0
                if stillborn >= MAX_STARTS:
                    got = str(error).strip().splitlines()[-1]
                    raise DeviceError("Ray's actors cannot start", got=got, fix="see Ray's log") from None
                if part is not None:
                    waiting.appendleft(part)
                start()
                continue
            stillborn = 0
            if part is not None:
                images += done
                on_part(part)
            if waiting:
                part = waiting.popleft()
                under_way[actor.refine.remote(part)] = (part, actor)
    finally:
        for _, actor in under_way.values():
            ray.kill(actor)
    return images


def _room(ray: Any, workers: int, device: str) -> int:
    """Actors that the cluster has room for."""
    free = ray.cluster_resources()
    need = {"CPU": workers + 1, **({"GPU": 1} if device.startswith("cuda") else {})}
    return max(1, min(int(free.get(name, 0) / amount) for name, amount in need.items()))
