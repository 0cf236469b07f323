"""The models behind the presets: where lanes come from, what there is, and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from bpr_service.config import get_preset
from bpr_service.errors import ModelError, NotFoundError
from bpr_service.runtime.engine import Engine
from bpr_service.runtime.work import Lane

if TYPE_CHECKING:
    from bpr_service.runtime.model_store import ModelStore


class Catalogue(Protocol):
    """What the model routes need to know."""

    def describe(self, lanes: Sequence[Lane]) -> list[dict[str, Any]]:
        """`schemas.ModelInfo` of every model that is served (in ``lanes``) or could be."""

    def activate(self, engine: Engine, name: str, version: str | None) -> list[Lane]:
        """Serve ``version`` of model ``name`` from now on, after a restart too."""


class StoreModels:
    """Models of the package and of a model store; the store's active version goes before the bundled one.

    A source of lanes for the engine, and the catalogue of the routes.
    """

    def __init__(
        self,
        presets: Sequence[str],
        device: str,
        store: ModelStore | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
    ) -> None:
        self._runs = {"backend": backend, "precision": precision}
        self._presets = [get_preset(name).name for name in presets]
        self._device = device
        self._store = store

    def presets(self) -> list[str]:
        return self._presets

    def open(self, preset: str, model: str | None = None, version: str | None = None) -> Lane:
        """Load the model of ``preset``: ``version`` of it, or the active one. `NotFoundError`, `ModelError`."""
        from bpr_service.refine.refiner import Refiner

        chosen = get_preset(preset)
        name = model or chosen.model
        folder, found = self._find(name, version)
        refiner = Refiner.load(preset, device=self._device, model=folder, **self._runs)
        return Lane(preset, name, found, refiner.config.patch.network_size_px, refiner)

    def _find(self, name: str, version: str | None) -> tuple[str, str]:
        """Folder and id of a version. An id is the first 12 digits of the weights' SHA-256, here as in the store."""
        from bpr_service.network.weights import find_model, read_card

        stored = self._stored(name)
        if self._store is not None and stored:
            label = version or "active"
            if label == "active" and self._store.aliases(name)["active"] is None:
                label = ""
            if label and (label == "active" or any(v.startswith(label) for v in stored)):
                found = self._store.get(f"{name}@{label}")
                return self._store.fetch(found.ref), found.id
        bundled = self._bundled(name)
        if bundled is not None and (version is None or bundled.startswith(version)):
            folder = find_model(name)
            return str(folder), read_card(folder).sha256[:12]
        known = [*stored, *([bundled] if bundled else [])]
        raise NotFoundError(
            f"model {name}", expected=f"one of the versions {', '.join(known) or '(none)'}", got=repr(version)
        )

    def _stored(self, name: str) -> list[str]:
        return [version.id for version in self._store.list(name)] if self._store is not None else []

    def _bundled(self, name: str) -> str | None:
        from bpr_service.network.weights import bundled_models, find_model, read_card

        return read_card(find_model(name)).sha256[:12] if name in bundled_models() else None

    def describe(self, lanes: Sequence[Lane]) -> list[dict[str, Any]]:
        served = {lane.model: lane.version for lane in lanes}
        names = {*served, *(self._store.names() if self._store is not None else ())}
        entries = []
        for name in sorted(names):
            bundled = self._bundled(name)
            versions = list(dict.fromkeys([*([bundled] if bundled else []), *self._stored(name)]))
            active = served.get(name)
            entries.append(
                {
                    "name": name,
                    "active": active,
                    "versions": versions,
                    "presets": [lane.preset for lane in lanes if lane.model == name],
                    "card": self._card(name, active),
                    "details": self._details(name, active, versions),
                }
            )
        return entries

    def _details(self, name: str, active: str | None, versions: Sequence[str]) -> list[dict[str, Any]]:
        """`schemas.VersionInfo` of each version; a damaged card has no figures."""
        bundled = self._bundled(name)
        stored = {version.id: version for version in self._store.list(name)} if self._store is not None else {}
        history = self._store.aliases(name)["history"] if self._store is not None else []
        before = next((version for version in history if version != active), bundled if active != bundled else None)
        details = []
        for version in versions:
            kept = stored.get(version)
            try:
                card = self._card(name, version) or {}
            except ModelError:
                card = {}
            compared = (kept.provenance.get("comparison") or {}) if kept is not None else {}
            measured = compared.get("figures", {}).get("candidate")
            details.append(
                {
                    "version": version,
                    "label": card.get("version", ""),
                    "source": "store" if kept is not None else "bundled",
                    "created": kept.created if kept is not None else None,
                    "figures": measured or card.get("figures", {}),
                    "previous": version == before,
                }
            )
        return details

    def _card(self, name: str, version: str | None) -> dict[str, Any] | None:
        from bpr_service.network.weights import find_model, read_card

        if version is None:
            return None
        if version == self._bundled(name):
            return read_card(find_model(name)).model_dump(mode="json")
        return self._store.card(f"{name}@{version}") if self._store is not None else None

    def chosen(self, name: str) -> str:
        """The version of a model that a start would serve: the store's active one, else the bundled one.

        Raises:
            NotFoundError: there is neither.
        """
        active = self._store.aliases(name)["active"] if self._store is not None else None
        if active is not None:
            return str(active)
        if (bundled := self._bundled(name)) is None:
            raise NotFoundError(f"model {name}", expected="an active version", got="none")
        return bundled

    def activate(self, engine: Engine, name: str, version: str | None) -> list[Lane]:
        served = {lane.model for lane in engine.lanes()}
        if name not in served:
            raise NotFoundError("no such model is served", expected=", ".join(sorted(served)), got=repr(name[:100]))
        stored = self._stored(name)
        target = version or (stored[-1] if stored else None)

        def commit() -> None:
            if self._store is None or target is None:
                return
            if any(version.startswith(target) for version in stored):
                self._store.activate(f"{name}@{target}")
            else:  # the bundled one, which neither a start nor the follower would keep beside an active one
                self._store.deactivate(name)

        return engine.activate(name, target, commit)


class ServedModels:
    """A catalogue of what the engine was given; activation opens it again from the engine's own source."""

    def describe(self, lanes: Sequence[Lane]) -> list[dict[str, Any]]:
        models: dict[str, dict[str, Any]] = {}
        for lane in lanes:
            start = {"name": lane.model, "active": lane.version, "versions": [lane.version], "presets": []}
            models.setdefault(lane.model, start)["presets"].append(lane.preset)
        return list(models.values())

    def activate(self, engine: Engine, name: str, version: str | None) -> list[Lane]:
        served = {lane.model for lane in engine.lanes()}
        if name not in served:
            raise NotFoundError("no such model is served", expected=", ".join(sorted(served)), got=repr(name[:100]))
        return engine.activate(name, version)
