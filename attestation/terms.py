# SPDX-License-Identifier: MIT
"""What every term of an Expectations is: a demand's form, what it may look at, and what its own values must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from .chain import Chain
from .document import Document
from .errors import MalformedInput
from .limits import MAX_FIELD

MAX_TEXT = 2048  # characters of an id or ARN; IAM's longest ARN
OWN_FIELDS = 9  # not a point of the trust argument: what else the caller pins


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a demand may look at: a document whose signature holds, and its chain (None: unsigned, and accepted so)."""

    document: Document
    chain: Chain | None
    at: datetime


class Term(ABC):  # noqa: B024 -- a closed sum: Demand, or a Permission of expectations.py
    """One part of an Expectations."""

    __slots__ = ()


class Demand(Term):
    """Something that must hold; `point` is its number in the trust argument (attestation.verifier.verify)."""

    __slots__ = ()
    point: ClassVar[int] = OWN_FIELDS

    @abstractmethod
    def check(self, evidence: Evidence) -> None:
        """Raise an AttestationError unless the demand holds."""

    @abstractmethod
    def __str__(self) -> str:
        """Say in a few words what holds once `check` has passed."""


def require_type(value: object, kind: type, name: str) -> None:
    """Raise MalformedInput for a caller's value of another type."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MalformedInput(f"{name}: wrong type", expected=kind.__name__, actual=type(value).__name__)


def require_field(value: bytes, name: str) -> None:
    """Raise MalformedInput for what no field of a document could be; an empty one binds nothing."""
    require_type(value, bytes, name)
    if not 0 < len(value) <= MAX_FIELD:
        raise MalformedInput(f"{name}: wrong size", expected=f"1..{MAX_FIELD} bytes", actual=len(value))


def require_text(value: str, name: str) -> None:
    """Raise MalformedInput for what is no id or ARN."""
    require_type(value, str, name)
    if not (0 < len(value) <= MAX_TEXT and value.isprintable()):
        raise MalformedInput(f"{name}: wrong form", expected=f"1..{MAX_TEXT} printable characters", actual=value)


def shown(value: bytes | None) -> bytes | str:
    """Return a document's field or register as an error tells it."""
    return "none" if value is None else value or "an empty one"
