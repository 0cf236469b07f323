"""A local cluster of Ray whose nodes can be lost, for tests and benchmarks."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.jobs.ray.driver import refine_on_ray
from bpr_service.jobs.refine.batch import settle_model
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import make_plan, open_file
from bpr_service.jobs.requests import RefineRequest
from tests.jobs.fleet import hook_refine_unit

STORE_BYTES = 80 << 20
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}
"""How Ray finds that a node is lost: by default that takes it half a minute."""
ROOT = Path(__file__).parents[2]
WAIT = """
import pathlib
run = pathlib.Path(os.environ['RUN'])
while len((run / 'refined.log').read_text().splitlines()) >= int((run / 'allowed').read_text()):
    time.sleep(0.02)
"""
NOTE = """
with (run / 'refined.log').open('a') as file:
    file.write(unit.image + '\\n')
"""


class RayCluster:
    """Nodes on this machine with room for one actor each; ``root/refined.log`` names every image that was refined."""

    def __init__(self, root: Path, nodes: int = 3) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.root, self.log = root, root / "refined.log"
        self.log.touch()
        site = hook_refine_unit(root, before=WAIT, after=NOTE)
        self.allow(1 << 30)
        self.cluster = Cluster()
        try:
            self.add_node(_system_config=HEALTH)  # the head, which the driver is connected to
            for _ in range(nodes - 1):
                self.add_node()
            environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{site}:{ROOT}", "RUN": str(root)}
            ray.init(self.cluster.address, log_to_driver=False, runtime_env={"env_vars": environment})
        except BaseException:
            self.close()
            raise

    def add_node(self, **values: Any) -> None:
        self.cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES, **values)

    def lose_node(self, rng: random.Random) -> None:
        """Kill all processes of a node that the driver is not connected to."""
        victim = rng.choice(sorted(self.cluster.worker_nodes, key=lambda node: str(node.unique_id)))
        self.cluster.remove_node(victim, allow_graceful=False)

    def refined(self) -> Counter[str]:
        """How often each image was refined, over all actors."""
        return Counter(self.log.read_text().splitlines())

    def refine(self, request: RefineRequest, place: Place, *, kills: int, seed: int, pause_s: float = 0.0) -> list[int]:
        """Plan a run and refine its parts, while nodes are lost and others take their place.

        Before each loss the actors may go on to a certain image only, so that there is work left for all of them.

        Args:
            kills: how many nodes are lost.
            pause_s: a pause of random length, this at most, goes before each.

        Returns:
            How many images were refined at each loss.
        """
        model, sha256 = settle_model(request)
        plan = make_plan(request, open_file(request), place, model=model, model_sha256=sha256)
        marks = [plan.units * i // (kills + 1) for i in range(kills + 2)]
        rng, at = random.Random(seed), list[int]()
        self.allow(marks[1])
        with ThreadPoolExecutor(1) as thread:  # Ray adds nodes in the main thread only
            work = thread.submit(refine_on_ray, request, place, range(plan.parts))
            for i in range(kills):
                moment = rng.randint(marks[i], marks[i + 1] - 1)
                while sum(self.refined().values()) < moment and not work.done():
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, pause_s))
                at.append(sum(self.refined().values()))
                self.lose_node(rng)
                self.add_node()
                self.allow(marks[i + 2])
            self.allow(2 * plan.units)
            work.result()
        return at

    def allow(self, images: int) -> None:
        """From so many refined images on, the next one waits."""
        storage.write_bytes(self.root / "allowed", str(images).encode())

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()
