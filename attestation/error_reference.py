# SPDX-License-Identifier: MIT
"""The reference of every error: read from the classes themselves, so that no second list can differ from them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import AttestationError, EnvironmentLacks, VeracruzError

BASES = (VeracruzError, AttestationError)  # caught, never raised
MODULE = "errors"  # where a package declares what it raises; a test holds this


@dataclass(frozen=True, slots=True)
class Entry:
    """One error: its slug, where it is declared, its exit code, its cause and its cure."""

    slug: str
    package: str
    exit_code: int
    cause: str
    cure: str
    status: int | None  # of HTTP, where it is an answer of the isolate's API


def make_reference(packages: Iterable[str]) -> tuple[Entry, ...]:
    """Return the errors that these packages can raise, by package and then slug.

    What the isolate's API answers has a class on either side, with one slug: the client's is listed, with the status.
    """
    kinds = list(_kinds(packages))
    statuses: dict[str, int] = {kind.slug: kind.status for kind in kinds if hasattr(kind, "status")}
    entries = [
        _entry(kind, statuses.get(kind.slug) if kind.__module__.startswith(f"{__package__}.") else None)
        for kind in kinds
        if kind not in BASES and not hasattr(kind, "status")
    ]
    return tuple(sorted(entries, key=lambda entry: (entry.package, entry.slug)))


def _kinds(packages: Iterable[str]) -> Iterator[type[VeracruzError]]:
    for name in packages:
        for module_name in _find_modules(name):
            module = importlib.import_module(module_name)
            for kind in vars(module).values():
                if isinstance(kind, type) and issubclass(kind, VeracruzError) and kind.__module__ == module_name:
                    yield kind


def _find_modules(package: str) -> Iterator[str]:
    paths = importlib.import_module(package).__path__
    for found in pkgutil.walk_packages(paths, f"{package}."):
        if found.name.rpartition(".")[2] == MODULE:
            yield found.name


def _entry(kind: type[VeracruzError], status: int | None) -> Entry:
    cause = inspect.cleandoc(kind.__doc__ or "")
    if not cause:
        raise EnvironmentLacks("the texts are missing: Python runs with -OO", hint="run it without")
    package = kind.__module__.rpartition(".")[0]
    return Entry(kind.slug, package, kind.exit_code, " ".join(cause.split()), vars(kind).get("cure", ""), status)
