# SPDX-License-Identifier: MIT
"""A job as a participant sees it: its state, and what its run told, for holders of `observe` alone."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from enum import StrEnum

from .strict_json import Node

JOB_ID = r"[0-9a-f]{32}"
MAX_STREAM = 64 * 1024  # bytes of a program's stdout or stderr


class JobState(StrEnum):
    """Where a job is; `ended` says nothing of how."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run told. Streams are the program's own bytes: escape them before they meet a terminal."""

    exit_code: int | None
    trap: str | None
    usage: dict[str, int]
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)

    @property
    def good(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.exit_code == 0 and self.trap is None


@dataclass(frozen=True, slots=True)
class Job:
    """One job; `outcome` is None before its end, and for whoever may not observe its program."""

    id: str
    state: JobState
    outcome: Outcome | None


def parse_job(node: Node) -> Job:
    """Return the job in an answer's JSON."""
    members = dict(node.members())
    for name in ("id", "state"):
        if name not in members:
            node.fail("a key is missing", expected=name)
    if members["state"].value not in tuple(JobState):
        members["state"].fail("no such state", expected=", ".join(JobState), actual=members["state"].value)
    job_id = members["id"].match(JOB_ID, form="32 hex digits")
    state = JobState(str(members["state"].value))
    outcome = _outcome(members) if state is JobState.ENDED and "exit_code" in members else None
    return Job(job_id, state, outcome)


def _outcome(members: dict[str, Node]) -> Outcome:
    exit_code, trap, usage = members["exit_code"], members.get("trap"), members.get("usage")
    return Outcome(
        exit_code=None if exit_code.value is None else exit_code.integer(least=-(1 << 31), most=1 << 32),
        trap=None if trap is None or trap.value is None else trap.text(most=256),
        usage={} if usage is None else {name: n.integer(least=0, most=1 << 63) for name, n in usage.members()},
        stdout=_stream(members.get("stdout")),
        stderr=_stream(members.get("stderr")),
    )


def _stream(node: Node | None) -> bytes:
    if node is None or node.value is None:
        return b""
    text = node.text(most=2 * MAX_STREAM)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        node.fail("no base64", actual=text)
