from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from bpr_service.errors import ModelError
from bpr_service.runtime.follow import StoreFollower
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


def test_what_is_activated_in_the_store_is_served(tmp_path: Path) -> None:
    store, engine = ModelStore(str(tmp_path / "store")), Engine()
    follower = StoreFollower(engine, store)  # type: ignore[arg-type]
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
    follower.look()  # a version that cannot be served is tried once
    assert engine.calls == [first.id, second.id]
    assert engine.version == first.id
    store.rollback("mine")
    follower.look()
    assert engine.version == first.id


def test_what_changes_meanwhile_is_left_to_the_next_look(tmp_path: Path) -> None:
    store, engine = ModelStore(str(tmp_path / "store")), Engine()
    follower = StoreFollower(engine, store)  # type: ignore[arg-type]
    first, second = (store.add(export(tmp_path / f"e{i}", i), "mine") for i in (1, 2))
    store.activate(first.ref)
    engine.meanwhile = lambda: store.activate(second.ref)  # type: ignore[method-assign]
    follower.look()
    assert engine.version == "bundled"
    engine.meanwhile = lambda: None  # type: ignore[method-assign]
    follower.look()
    assert engine.version == second.id
    store.activate(first.ref)
    follower.look()
    assert engine.version == first.id
