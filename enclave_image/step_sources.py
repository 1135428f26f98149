# SPDX-License-Identifier: MIT
"""Which of our own source files decide a step's product: a module and all modules of this package that it imports."""

from __future__ import annotations

import functools
from pathlib import Path

from .application import SOURCE, imported_modules

PACKAGE = "enclave_image"
WORDS = frozenset({f"{PACKAGE}.errors"})  # say what went wrong; no byte of a product


@functools.cache
def find_sources(start: str) -> tuple[Path, ...]:
    """Return the files of a module and of those that it imports, of this package, sorted."""
    seen: set[str] = set()
    todo = {start}
    while todo:
        name = todo.pop()
        seen.add(name)
        ours = {found for found in imported_modules(name) if found.startswith(f"{PACKAGE}.")}
        todo |= ours - seen - WORDS
    return tuple(SOURCE / (name.replace(".", "/") + ".py") for name in sorted(seen))
