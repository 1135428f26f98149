# SPDX-License-Identifier: MIT
"""What the runtime hands to the zygote for one worker, and what comes back: values that pass as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_TASK = 4 * 1024 * 1024  # bytes; arguments and environment come from a policy of at most 1 MiB
MAX_REPORT = 4096  # bytes


class Ending(StrEnum):
    """Why a run has no exit code of its own making."""

    FUEL = "out-of-fuel"
    WALL = "wall-time"
    MEMORY = "out-of-memory"
    CANCELLED = "cancelled"
    MODULE = "invalid-module"  # not a module, or not one of this engine's features
    LINK = "link"  # it imports what is not there, or exports no _start
    OUTPUTS = "outputs-refused"  # rights, pins, `once` or quotas: nothing was taken back
    KILLED = "killed"  # the worker died of something else
    ENGINE = "engine"  # the engine failed


@dataclass(frozen=True, slots=True)
class Jail:
    """The walls around one worker; `strict` halts the job where one of them cannot be built."""

    root: str  # becomes the worker's /
    uid: int | None  # None: the runtime's own, where it is not root
    strict: bool
    cgroup: str | None
    memory_bytes: int
    file_bytes: int
    cpu_s: int


@dataclass(frozen=True, slots=True)
class Preopen:
    """A directory that the guest finds: under `guest` it sees what stands at `host` in the worker's root."""

    guest: str
    host: str
    mutable: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a compiled module."""

    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    preopens: tuple[Preopen, ...]
    stdout: str
    stderr: str
    memory_bytes: int
    fuel: int
    clock: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One worker: with `run` it runs a compiled module, without it compiles one."""

    jail: Jail
    wall_s: float
    run: Run | None

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Task:
        """Parse what `encode` wrote, in the zygote, which trusts the runtime."""
        value: dict[str, Any] = json.loads(raw)
        jail = Jail(**value["jail"])
        run = value["run"]
        if run is not None:
            preopens = tuple(Preopen(**preopen) for preopen in run.pop("preopens"))
            args = tuple(run.pop("args"))
            env = tuple((name, text) for name, text in run.pop("env"))
            run = Run(args=args, env=env, preopens=preopens, **run)
        return cls(jail, value["wall_s"], run)


@dataclass(frozen=True, slots=True)
class Report:
    """How a worker ended. The first three are the worker's own word, and a worker may be in the guest's hands."""

    exit_code: int | None
    trap: str | None
    fuel: int
    wall_ms: int = 0
    memory_bytes: int = 0

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Report:
        """Parse a report that nobody vouches for; raise ValueError."""
        try:
            value = json.loads(raw) if len(raw) <= MAX_REPORT else None
        except RecursionError as error:
            raise ValueError("too deep") from error
        if not isinstance(value, dict) or set(value) != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError("no report")
        for name in ("fuel", "wall_ms", "memory_bytes"):
            if type(value[name]) is not int or not 0 <= value[name] < 1 << 63:
                raise ValueError(name)
        code, trap = value["exit_code"], value["trap"]
        if not (code is None or (type(code) is int and -(1 << 31) <= code < 1 << 32)):
            raise ValueError("exit_code")
        if not (trap is None or (type(trap) is str and len(trap) <= 64 and trap.isascii() and trap.isprintable())):
            raise ValueError("trap")
        if (code is None) == (trap is None):
            raise ValueError("neither or both of exit code and trap")
        return cls(**value)
