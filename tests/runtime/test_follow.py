from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bpr_service.errors import ModelError
from bpr_service.runtime.follow import AGAIN_S, StoreFollower
from bpr_service.runtime.model_store import ModelStore
from tests.runtime.test_model_store import export


class Engine:
    """The two methods that a follower uses, and a list of what was activated."""

    state = "ready"

    def __init__(self) -> None:
        self.version, self.calls, self.broken = "bundled", list[str](), ""

    def lanes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(model="mine", version=self.version)]

    def activate(self, name: str, version: str, commit: Callable[[], None]) -> None:
        self.calls.append(version)
        if version == self.broken:
            raise ModelError("broken")
        self.meanwhile()
        commit()
        self.version = version

    def meanwhile(self) -> None:
        """What happens while a version is loaded."""


def chosen_in(store: ModelStore) -> Callable[[str], str]:
    return lambda name: store.aliases(name)["active"] or "bundled"


def test_what_is_activated_in_the_store_is_served(tmp_path: Path) -> None:
    store, engine = ModelStore(str(tmp_path / "store")), Engine()
    follower = StoreFollower(engine, chosen_in(store))  # type: ignore[arg-type]
    follower.look()
    assert engine.calls == []
    first = store.activate(store.add(export(tmp_path / "e1", 1), "mine").ref)
    follower.look()
    follower.look()
    assert engine.calls == [first.id]
    second = store.add(export(tmp_path / "e2", 2), "mine")
    engine.broken = second.id
    store.activate(second.ref)
    follower.look()
    follower.look()  # a version that cannot be served is left alone for a while
    assert engine.calls == [first.id, second.id]
    assert engine.version == first.id
    store.rollback("mine")
    follower.look()
    assert engine.version == first.id


def test_what_changes_meanwhile_is_left_to_the_next_look(tmp_path: Path) -> None:
    store, engine = ModelStore(str(tmp_path / "store")), Engine()
    follower = StoreFollower(engine, chosen_in(store))  # type: ignore[arg-type]
    first, second = (store.add(export(tmp_path / f"e{i}", i), "mine") for i in (1, 2))
    store.activate(first.ref)
    engine.meanwhile = lambda: store.activate(second.ref)  # type: ignore
    follower.look()
    assert engine.version == "bundled"
    engine.meanwhile = lambda: None  # type: ignore[method-assign]
    follower.look()
    assert engine.version == second.id
    store.activate(first.ref)
    follower.look()
    assert engine.version == first.id


def test_a_version_that_failed_once_is_tried_again_after_a_pause(tmp_path: Path) -> None:
    now, engine = [0.0], Engine()
    follower = StoreFollower(engine, lambda name: "new", clock=lambda: now[0])  # type: ignore[arg-type]
    engine.broken = "new"
    follower.look()
    now[0] = AGAIN_S - 1
    follower.look()
    assert engine.calls == ["new"]
    now[0] = AGAIN_S
    follower.look()
    now[0] += 2 * AGAIN_S - 1
    follower.look()
    assert engine.calls == ["new", "new"], "the pause is doubled"
    engine.broken = ""
    now[0] += 1
    follower.look()
    assert engine.version == "new"


def test_storage_that_fails_is_looked_at_again() -> None:
    replies: list[Any] = [OSError("the network is down"), "new"]
    engine, answers = Engine(), iter(replies)

    def chosen(name: str) -> str:
        answer = next(answers, "new")
        if isinstance(answer, OSError):
            raise answer
        return answer

    follower = StoreFollower(engine, chosen)  # type: ignore[arg-type]
    follower.look()
    assert engine.version == "bundled"
    follower.look()
    assert engine.version == "new"


def test_without_an_active_version_the_bundled_one_is_served_again(tmp_path: Path) -> None:
    store, engine = ModelStore(str(tmp_path / "store")), Engine()
    follower = StoreFollower(engine, chosen_in(store))  # type: ignore[arg-type]
    first = store.activate(store.add(export(tmp_path / "e1", 1), "mine").ref)
    follower.look()
    assert engine.version == first.id
    store.deactivate("mine")
    follower.look()
    assert engine.version == "bundled"
    assert store.rollback("mine").id == first.id
