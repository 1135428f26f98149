# SPDX-License-Identifier: MIT
"""Rights: words over path subtrees. What is not allowed is refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .paths import covers, is_reserved


class Right(StrEnum):
    """What one may do with a path. `execute` and `observe` are about programs."""

    READ = "read"
    WRITE = "write"  # put a whole file in place
    APPEND = "append"
    EXECUTE = "execute"  # start a job of the program at this path
    OBSERVE = "observe"  # learn what its runs tell: exit code, trap, usage, streams
    LIST = "list"  # names and sizes in a directory
    DELETE = "delete"


# A program starts nothing and observes nothing.
PROGRAM_RIGHTS = frozenset({Right.READ, Right.WRITE, Right.APPEND, Right.LIST, Right.DELETE})


@dataclass(frozen=True, slots=True)
class Rights:
    """Who-may-what of one participant or program: pairs of a key (a subtree, or one file) and its words, sorted."""

    entries: tuple[tuple[str, frozenset[Right]], ...] = ()

    def allow(self, path: str, right: Right) -> bool:
        """Return whether `right` is given on a path in normal form; the rights of all matching keys add up."""
        if is_reserved(path):
            return False
        return any(right in words and covers(key, path) for key, words in self.entries)

    def keys(self, right: Right) -> tuple[str, ...]:
        """Return the keys on which `right` is given."""
        return tuple(key for key, words in self.entries if right in words)
