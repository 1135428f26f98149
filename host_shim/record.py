# SPDX-License-Identifier: MIT
"""What is written down of one isolate: its state.json, read back only in the form in which it was written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from types import NoneType
from typing import Any

from enclave_image.runtime.wire import PORT_API

from .children import ProcessId


class Stage(StrEnum):
    """How far an isolate is."""

    BOOTING = "booting"
    SERVING = "serving"
    RESTARTING = "restarting"  # it died; a new one is started soon
    ENDED = "ended"  # as it should: asked to stop, or shut down by its participants
    FAILED = "failed"
    LOST = "lost"  # its supervisor was killed

    @property
    def live(self) -> bool:
        """Whether a supervisor should be there."""
        return self in (Stage.BOOTING, Stage.SERVING, Stage.RESTARTING)


@dataclass(frozen=True, slots=True)
class Outside:
    """An enclave that others keep for us, so that it outlives its supervisor."""

    tool: str  # path of nitro-cli
    name: str  # under which it knows the enclave
    cid: int


@dataclass(frozen=True, slots=True)
class Record:
    """One isolate's state.json; times are RFC 3339 in UTC."""

    name: str
    stage: Stage
    isolate: str
    endpoint: str
    image: str | None
    policy: str | None  # hex64: SHA-256 of the policy
    measurements: dict[str, str]  # nitro-cli's names; what the NSM reports
    root: str | None  # path of the development root's PEM; None where another vouches, or nobody
    started: str  # this isolate, not the first one of its name
    accel: str | None = None
    supervisor: ProcessId | None = None
    children: tuple[ProcessId, ...] = field(default=())
    roles: tuple[str, ...] = field(default=())  # the children's names, in their order
    sockets: str | None = None
    reason: str | None = None
    evidence: str = "development"
    debug: bool = False
    memory_mib: int | None = None
    cpus: int | None = None
    served: str | None = None  # since when participants can connect
    ended: str | None = None
    restart: str = "never"
    restarts: int = 0  # how many isolates died before this one
    died: str | None = None  # how the last of them did
    outside: Outside | None = None
    port: int = PORT_API  # of the isolate's; what the relay leads to

    def dump(self) -> bytes:
        """Return the file's bytes."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def load(cls, raw: bytes) -> Record:
        """Parse the file; raise ValueError, TypeError or KeyError for anything that `dump` does not write."""
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise TypeError("no JSON object")
        known = {one.name for one in fields(cls)}
        if unknown := sorted(value.keys() - known):
            raise ValueError(f"unknown key {unknown[0]}")
        for name, kinds in _KINDS.items():
            if name in value and type(value[name]) not in kinds:
                raise TypeError(f"{name} is of another kind: {type(value[name]).__name__}")
        value["stage"] = Stage(value["stage"])
        value["supervisor"] = _identity(value.get("supervisor"))
        value["children"] = tuple(filter(None, map(_identity, value.get("children", ()))))
        value["roles"] = _strings(value.get("roles", ()))
        _strings(value["measurements"].values())
        if value.get("outside") is not None:
            value["outside"] = _outside(value["outside"])
        return cls(**value)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "stage", "isolate", "endpoint", "started", "evidence", "restart"), (str,)),
    **dict.fromkeys(
        ("image", "policy", "root", "accel", "sockets", "reason", "served", "ended", "died"), (str, NoneType)
    ),
    **dict.fromkeys(("memory_mib", "cpus"), (int, NoneType)),
    **dict.fromkeys(("children", "roles"), (list,)),
    **dict.fromkeys(("supervisor", "outside"), (dict, NoneType)),
    "measurements": (dict,),
    **dict.fromkeys(("restarts", "port"), (int,)),
    "debug": (bool,),
}  # fmt: skip


def _identity(value: Any) -> ProcessId | None:
    if value is None:
        return None
    found = ProcessId(**value)
    if type(found.pid) is not int or type(found.start) is not int or found.pid < 1:
        raise TypeError("a process is of another form")
    return found


def _strings(values: Any) -> tuple[str, ...]:
    found = tuple(values)
    if not all(type(one) is str for one in found):
        raise TypeError("text was expected")
    return found


def _outside(value: Any) -> Outside:
    found = Outside(**value)
    if type(found.cid) is not int or type(found.tool) is not str or type(found.name) is not str:
        raise TypeError("outside is of another form")
    return found
