"""The allow-list: a job names files relative to a root, and nothing outside can be read or written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from bpr_service import storage
from bpr_service.errors import ForbiddenError, UnknownName
from bpr_service.jobs.requests import HeldOut, RefineRequest, TrainRequest
from bpr_service.jobs.settings import JobSettings, Root
from bpr_service.storage.beneath import Folders

_NAMED = re.compile(r"([A-Za-z0-9_-]+):(?!//)(.*)", re.DOTALL)
_PATH = re.compile(r"(?<![\w:/])(/[\w.@+~-]+)(?:/[\w.@+~-]+)+")
WRITES = ("out", "page_out")
READS = ("images", "predictions", "dataset", "panoptic_dir", "soft", "ground_truth")


def folders_of(settings: JobSettings) -> Folders:
    """What a worker may open: the local roots, the folder of jobs, and the store of models with its cache."""
    from bpr_service.runtime.model_store import ModelStore

    store = ModelStore(settings.models)
    own = (str(settings.home), store.root, store.cache)
    local = [root for root in settings.roots.values() if not storage.is_remote(root.path)]
    read, write = (tuple(root.path for root in local if root.write is writes) for writes in (False, True))
    return Folders.of(read, (*write, *(path for path in own if not storage.is_remote(path))))


class Roots:
    """Resolves what requests name: ``ROOT:relative/path``, or an address inside a root."""

    def __init__(self, roots: Mapping[str, Root]) -> None:
        self.roots = dict(roots)

    @property
    def local(self) -> tuple[str, ...]:
        """Real paths of the local roots: what files, links followed, must stay inside of."""
        return tuple(os.path.realpath(root.path) for root in self.roots.values() if not storage.is_remote(root.path))

    def resolve(self, name: str, *, write: bool = False) -> str:
        """The path or address of ``name``.

        Raises:
            ForbiddenError: it leaves its root by ``..`` or a link, is in none, or may not be written.
            UnknownName: there is no such root.
        """
        root, path = self._split(name)
        parts = path.replace("\\", "/").split("/")
        if ".." in parts or "\0" in path or "::" in path or "://" in path:
            raise ForbiddenError(
                f"{name!r} leaves its root",
                expected="a path without '..', '::' and '://'",
                got=name,
                fix="name a file inside a root",
            )
        if write and not root.write:
            raise ForbiddenError(
                f"{name!r}", expected="a root that may be written", got="a read-only one", fix="use another"
            )
        address = storage.join(root.path, *[part for part in parts if part not in ("", ".")])
        if not storage.is_remote(address) and not storage.is_inside(address, (root.path,)):
            raise ForbiddenError(
                f"{name!r} leaves its root through a link",
                expected="a path inside the root",
                got="a link out of it",
                fix="copy the files into the root",
            )
        return address

    def outward(self, text: str) -> str:
        """`text` as a caller may read it.

        What lies in a root is called as requests call it, ``ROOT:relative/path``; of other files of this machine the
        last part is left.
        """
        for name, root in sorted(self.roots.items(), key=lambda each: len(each[1].path), reverse=True):
            for path in {root.path, root.path if storage.is_remote(root.path) else os.path.realpath(root.path)}:
                text = re.sub(rf"{re.escape(path.rstrip('/'))}(/|(?![\w.-]))", f"{name}:", text)
        return _PATH.sub(lambda found: os.path.basename(found[0]) if os.path.isdir(found[1]) else found[0], text)

    def _split(self, name: str) -> tuple[Root, str]:
        named = _NAMED.fullmatch(name)
        if named:
            if named[1] not in self.roots:
                raise UnknownName("root", named[1], self.roots or ["(none is configured: set BPR_JOBS_ROOTS)"])
            return self.roots[named[1]], named[2]
        for root in self.roots.values():
            prefix = root.path.rstrip("/") + "/"
            if name.startswith(prefix) or name == root.path.rstrip("/"):
                return root, name[len(prefix) :]
        known = ", ".join(f"{key}:..." for key in sorted(self.roots)) or "none is configured: set BPR_JOBS_ROOTS"
        raise ForbiddenError(
            f"{name!r} is in no root", expected=f"a path in a root ({known})", got=name, fix="name a root"
        )

    def _model(self, name: str) -> str:
        """A bundled model's name, or a version's folder inside a root."""
        from bpr_service.network.weights import bundled_models

        return name if name in bundled_models() else self.resolve(name)

    def confine(self, request: RefineRequest | TrainRequest) -> RefineRequest | TrainRequest:
        """The request with every path resolved. Raises as `resolve` does."""
        values = request.model_dump()
        if isinstance(request, RefineRequest) and request.model and "@" not in request.model:
            values["model"] = self._model(request.model)
        for field in READS:
            if values.get(field):
                values[field] = self.resolve(values[field])
        if isinstance(request, RefineRequest):
            for field in WRITES:
                if values.get(field):
                    values[field] = self.resolve(values[field], write=True)
            return type(request)(**values)
        if request.held_out is not None:
            held = {key: self.resolve(value) for key, value in values["held_out"].items() if key in READS and value}
            values["held_out"] = HeldOut(**{**values["held_out"], **held})
        return TrainRequest(**values)
