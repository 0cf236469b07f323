"""Packages that a plain install does not have: whether one is there, and the extra that brings it, in one sentence."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from bpr_service.errors import ConfigError

_DISTRIBUTIONS = {"skimage": "scikit-image", "multipart": "python-multipart"}
"""Names of packages whose modules are called otherwise."""


def installed(module: str) -> bool:
    """Whether `module` can be imported; nothing is."""
    try:
        return find_spec(module) is not None
    except ValueError:  # imported, and made unusable
        return False


def missing(error: ModuleNotFoundError) -> ConfigError | None:
    """The error that says what to install where `error` is of a package of an extra; None where it is of another.

    Where several extras bring the package, the one that is named first in the package's metadata.
    """
    module = (error.name or "").partition(".")[0]
    wanted = _plain(_DISTRIBUTIONS.get(module, module))
    for requirement in _requirements():
        found = re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if found and _plain(found[1]) == wanted:
            return ConfigError(
                f"the package {wanted}",
                expected=f"the extra {found[2]}",
                got="no such package",
                fix=f"install it: pip install 'bpr-service[{found[2]}]'",
            )
    return None


def _requirements() -> list[str]:
    try:
        return requires("bpr-service") or []
    except PackageNotFoundError:  # run from a source tree that was never installed
        return []


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
