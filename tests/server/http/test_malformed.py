"""2,000 seeded malformed bodies, and schemathesis over the OpenAPI: no 5xx, no hang, no growth, still serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bpr_service.runtime.device import device_memory_bytes
from tests.server import mutations
from tests.server.helpers import Running, body, serving
from tests.server.malformed import malformed

LIMITS = {"max_pixels": 1 << 20, "timeout_s": 10.0, "max_requests": 64, "max_body_bytes": 4 << 20}
COUNT = 2000


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with serving(LIMITS) as running:
        yield running


def test_malformed_bodies(guarded: Running) -> None:
    def send(client: httpx.Client, seed: int) -> tuple[int, int]:
        task, content, kind = malformed(seed)
        headers = {"content-type": kind} if kind else {}
        response = client.post(f"/v1/refine/{task}", content=content, headers=headers)
        if response.status_code != 200:
            problem = response.json()
            assert problem["status"] == response.status_code, seed
            assert problem["detail"], seed
        return seed, response.status_code

    with httpx.Client(base_url=guarded.url, timeout=15) as client, ThreadPoolExecutor(4) as pool:
        first = list(pool.map(lambda seed: send(client, seed), range(COUNT // 2)))
        before = device_memory_bytes("cpu")
        second = list(pool.map(lambda seed: send(client, seed), range(COUNT // 2, COUNT)))
        grown = device_memory_bytes("cpu") - before
    answers = [*first, *second]
    assert len(answers) == COUNT
    assert [item for item in answers if item[1] >= 500] == []
    counts = Counter(status for _, status in answers)
    assert counts.keys() <= {200, 400, 413, 415, 422, 429}, counts
    assert counts[200] < 0.3 * COUNT, "most of them must be malformed"
    assert min(counts[400], counts[413], counts[422]) > 20, counts
    assert grown < 64 << 20, f"memory grew by {grown >> 20} MiB"
    assert guarded.engine.wait_idle(5)
    assert guarded.client.post("/v1/refine/instance", json=body()).status_code == 200


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_damaged_pictures_and_masks_of_every_type(guarded: Running, kind: str) -> None:
    counts: Counter[int] = Counter()
    for number in range(mutations.EACH):
        task, content = mutations.mutated(kind, number)
        headers = {"content-type": "application/json"}
        answer = guarded.client.post(f"/v1/refine/{task}", content=content, headers=headers)
        assert answer.status_code < 500, (kind, number, answer.text)
        counts[answer.status_code] += 1
    assert counts.keys() <= {200, 400, 413, 415, 422}
    assert counts[200] < mutations.EACH, "some must be damaged"


def test_what_is_damaged_was_right(guarded: Running) -> None:
    with mock.patch.object(mutations, "damaged", lambda r, data: data):
        for kind in (*mutations.PICTURES, *mutations.MASKS, *mutations.MAPS, "RLE", "base64"):
            task, content = mutations.mutated(kind, 0)
            headers = {"content-type": "application/json"}
            status = guarded.client.post(f"/v1/refine/{task}", content=content, headers=headers).status_code
            assert status == 200 or kind in ("PPM", "GIF", "npy", "npy mask"), (kind, status)


def test_the_malformed_bodies_are_the_same_each_time() -> None:
    assert [malformed(seed) for seed in range(30)] == [malformed(seed) for seed in range(30)]


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_schemathesis_over_the_openapi(guarded: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{guarded.url}/openapi.json")
    seen: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # there is nothing that could be wrong

        @settings(
            max_examples=15 if operation.body else 3,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
        seen.add(operation.label)
    assert "POST /v1/refine/instance" in seen
    assert "POST /predict" in seen
