"""Model versions by name, on disk or on object storage: written once, checked when used, switched by alias.

::

    STORE/NAME/versions/ID/model.safetensors, card.json    as exported, and int8.xml, int8.bin where it was quantised
    STORE/NAME/versions/ID/version.json                    written last: SHA-256 of the files, provenance
    STORE/NAME/aliases.json                                {"active": ID, "candidate": ID, "history": [ID, ...]}

``ID`` is the first 12 digits of the weights' SHA-256, so that the same weights are the same version however often
they are registered; where there is a quantised network, of a SHA-256 over all three files, for its answers differ.
``history`` holds what was active before, the last first; a rollback goes back to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bpr_service import storage
from bpr_service.errors import ConfigError, ConflictError, ModelError, NotFoundError

log = logging.getLogger(__name__)
WEIGHTS, CARD, VERSION = "model.safetensors", "card.json", "version.json"
FILES = (WEIGHTS, CARD)
ALIASES = ("active", "candidate")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{4,12}")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One immutable version. ``provenance``: data hashes, recipe, code version, parent, job."""

    name: str
    id: str
    created: str
    files: Mapping[str, str]
    provenance: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.id}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.id,
            "created": self.created,
            "aliases": list(self.aliases),
            "files": dict(self.files),
            "provenance": dict(self.provenance),
        }


def default_store() -> str:
    """``BPR_MODEL_STORE``, or a folder of the user's data directory."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return os.environ.get("BPR_MODEL_STORE") or str(Path(home) / "bpr" / "models")


class ModelStore:
    """The store at ``root``, a folder or an fsspec address.

    On disk a file lock keeps two processes from changing aliases at once; on object storage the last writer wins,
    and every write is whole.
    """

    def __init__(self, root: str | None = None, *, cache: str | None = None) -> None:
        self.root = root or default_store()
        caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self.cache = cache or str(Path(caches) / "bpr" / "models")

    # --- reading -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names that have a version."""
        return sorted({version.name for version in self.list()})

    def list(self, name: str | None = None) -> list[ModelVersion]:
        """Versions of one name, or all, by name and time. A damaged one is left out, and said in the log."""
        if not storage.exists(self.root):
            return []
        folder = self.root if name is None else storage.join(self.root, _checked(name))
        if not storage.exists(folder):
            return []
        found = []
        for path in storage.list_files(folder, (VERSION,)):
            parts = ([name] if name else []) + path.split("/")
            if len(parts) == 4 and parts[1] == "versions":
                self.aliases(parts[0])  # damaged ones are nothing to go on with
                try:
                    found.append(self._read(parts[0], parts[2]))
                except ModelError as error:  # what is not used stops nobody; `get` names it to who asks for it
                    log.warning("left out: %s", error)
        return sorted(found, key=lambda version: (version.name, version.created, version.id))

    def get(self, ref: str) -> ModelVersion:
        """The version of ``name``, ``name@active``, ``name@candidate`` or ``name@ID`` (four digits or more of it).

        Raises:
            NotFoundError: no such name, alias or version.
            ConfigError: it cannot be a reference.
        """
        name, _, label = ref.partition("@")
        _checked(name)
        label = label or "active"
        if label in ALIASES:
            version_id = self.aliases(name).get(label)
            if version_id is None:
                fix = f"bpr models activate {name}@ID" if label == "active" else "train or import one first"
                raise NotFoundError(f"model {name}", expected=f"an {label} version", got="none", fix=fix)
            return self._read(name, str(version_id))
        if not _ID.fullmatch(label):
            raise ConfigError(
                f"model {ref!r}",
                expected=f"name@{'|'.join(ALIASES)} or name@ID",
                got=repr(label),
                fix="see bpr models list",
            )
        if storage.exists(storage.join(self._folder(name, label), VERSION)):
            return self._read(name, label)
        found = [version for version in self.list(name) if version.id.startswith(label)]
        if len(found) != 1:
            raise NotFoundError(
                f"model {ref}",
                expected="one version",
                got=f"{len(found)}; known: {', '.join(v.id for v in self.list(name)) or 'none'}",
                fix="see bpr models list",
            )
        return found[0]

    def _folder(self, name: str, version_id: str) -> str:
        return storage.join(self.root, name, "versions", version_id)

    def _read(self, name: str, version_id: str) -> ModelVersion:
        path = storage.join(self._folder(name, version_id), VERSION)
        try:
            data = json.loads(storage.read_bytes(path))
            aliases = self.aliases(name)
            held = tuple(alias for alias in ALIASES if aliases.get(alias) == version_id)
            return ModelVersion(name, version_id, data["created"], data["files"], data["provenance"], held)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path}: damaged", expected="what bpr models import wrote", got=repr(error), fix="import it again"
            ) from None

    def card(self, ref: str) -> dict[str, Any]:
        """The card of a version. Raises ``NotFoundError``, ``ModelError``."""
        version = self.get(ref)
        path = storage.join(self._folder(version.name, version.id), CARD)
        self._check(version, CARD)
        card: dict[str, Any] = json.loads(storage.read_bytes(path))
        return card

    def aliases(self, name: str) -> dict[str, Any]:
        """``active``, ``candidate`` and ``history`` of a name."""
        path = storage.join(self.root, _checked(name), "aliases.json")
        if not storage.exists(path):
            return {"active": None, "candidate": None, "history": []}
        try:
            aliases: dict[str, Any] = json.loads(storage.read_bytes(path))
        except ValueError as error:
            raise ModelError(f"{path}: damaged", got=str(error), fix="activate a version again") from None
        return aliases

    def verify(self, ref: str) -> ModelVersion:
        """Read every byte of a version again. Raises ``ModelError`` with the file that changed."""
        version = self.get(ref)
        for name in version.files:
            self._check(version, name)
        return version

    def _check(self, version: ModelVersion, name: str, path: str | None = None) -> None:
        path = path or storage.join(self._folder(version.name, version.id), name)
        try:
            got = storage.sha256(path)
        except NotFoundError as error:
            raise ModelError(f"{version.ref}: {name} is missing", fix="import the version again") from error
        if got != version.files[name]:
            raise ModelError(
                f"{version.ref}: {path} was changed",
                expected=f"SHA-256 {version.files[name]}",
                got=got,
                fix="import the version again, or roll back",
            )

    def fetch(self, ref: str) -> str:
        """A local folder with the files of a version, each checked against its SHA-256.

        Versions on object storage are downloaded once. Raises ``NotFoundError``, ``ModelError``.
        """
        version = self.get(ref)
        folder = self._folder(version.name, version.id)
        if not storage.is_remote(folder):
            self.verify(version.ref)
            return folder
        target = Path(self.cache, version.name, version.id)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
                for name in version.files:
                    storage.copy(storage.join(folder, name), str(Path(temporary, name)))
                    self._check(version, name, str(Path(temporary, name)))
                if not target.exists():
                    shutil.copytree(temporary, f"{temporary}.new")
                    _rename(f"{temporary}.new", str(target))
        for name in version.files:
            self._check(version, name, str(target / name))
        return str(target)

    # --- writing -------------------------------------------------------------------------------------------------

    def add(self, folder: str, name: str, provenance: Mapping[str, Any] | None = None) -> ModelVersion:
        """Register an exported folder (``model.safetensors`` and ``card.json``) as a version of ``name``.

        The same networks are the same version: registering them again changes nothing.

        Raises:
            ModelError: the files are missing, or are no model that this release can load.
        """
        from bpr_service.network.weights import INT8_FILES, load_model

        _checked(name)
        for file in FILES:
            if not storage.exists(storage.join(folder, file)):
                raise ModelError(
                    f"{folder}: no {file}", expected=" and ".join(FILES), fix="export with bpr-train export"
                )
        quantised = INT8_FILES if load_model(folder).card.int8 else ()
        files = {file: storage.sha256(storage.join(folder, file)) for file in (*FILES, *quantised)}
        version_id = files[WEIGHTS][:12]
        if quantised:
            digests = "".join(files[file] for file in (WEIGHTS, *quantised))
            version_id = hashlib.sha256(digests.encode()).hexdigest()[:12]
        target = self._folder(name, version_id)
        with self._lock(name):
            if not storage.exists(storage.join(target, VERSION)):
                for file in files:
                    storage.copy(storage.join(folder, file), storage.join(target, file))
                created = datetime.now(UTC).isoformat(timespec="seconds")
                record = {"created": created, "files": files, "provenance": dict(provenance or {})}
                storage.write_bytes(storage.join(target, VERSION), json.dumps(record, indent=1).encode())
        return self._read(name, version_id)

    def propose(self, ref: str) -> ModelVersion:
        """Make a version the candidate of its name."""
        version = self.verify(ref)
        with self._lock(version.name):
            self._write_aliases(version.name, {**self.aliases(version.name), "candidate": version.id})
        return self.get(version.ref)

    def activate(self, ref: str) -> ModelVersion:
        """Make a version the active one of its name; the one before it goes to the history."""
        version = self.verify(ref)
        with self._lock(version.name):
            aliases = self.aliases(version.name)
            if aliases["active"] != version.id:
                if aliases["active"] is not None:
                    aliases["history"] = [aliases["active"], *aliases["history"]]
                aliases["active"] = version.id
            if aliases["candidate"] == version.id:
                aliases["candidate"] = None
            self._write_aliases(version.name, aliases)
        return self.get(version.ref)

    def deactivate(self, name: str) -> None:
        """Let no version of a name be active, so that the bundled one is served; the active one goes to the history."""
        with self._lock(_checked(name)):
            aliases = self.aliases(name)
            if aliases["active"] is not None:
                aliases["history"] = [aliases["active"], *aliases["history"]]
                self._write_aliases(name, {**aliases, "active": None})

    def rollback(self, name: str) -> ModelVersion:
        """Make the version before the active one active again. Raises ``ConflictError`` when there is none."""
        with self._lock(_checked(name)):
            aliases = self.aliases(name)
            if not aliases["history"]:
                raise ConflictError(f"model {name}", expected="a version that was active before", got="none")
            version = self.verify(f"{name}@{aliases['history'][0]}")
            aliases["active"], aliases["history"] = version.id, aliases["history"][1:]
            self._write_aliases(name, aliases)
        return self.get(f"{name}@active")

    def _write_aliases(self, name: str, aliases: Mapping[str, Any]) -> None:
        storage.write_bytes(storage.join(self.root, name, "aliases.json"), json.dumps(aliases, indent=1).encode())

    def _lock(self, name: str) -> Any:
        if storage.is_remote(self.root):
            return nullcontext()
        return storage.lock(Path(self.root, name, ".lock"))


def _rename(source: str, target: str) -> None:
    """Rename a folder; when another process was first, its folder stays."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.rmtree(source)
        if not os.path.isdir(target):
            raise


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "a model's name", expected="lower-case letters, digits, '.', '_' and '-'", got=repr(name), fix="rename it"
        )
    return name
