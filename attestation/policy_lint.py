# SPDX-License-Identifier: MIT
"""Advice on a policy that is well formed: what is likely not meant, each finding with a stable slug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from .paths import covers
from .policy import Policy
from .policy_flow import find_flows, meets, who_may, write_keys
from .rights import Right


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reader should look at before they agree."""

    slug: str
    message: str


def lint_policy(policy: Policy, *, at: datetime) -> tuple[Finding, ...]:
    """Return what is likely not meant in a policy that is read at a time."""
    return tuple(finding for check in _CHECKS for finding in check(policy)) + tuple(_times(policy, at))


def _outputs(policy: Policy) -> Iterator[Finding]:
    for program in policy.programs:
        keys = write_keys(program.rights)
        if not keys:
            yield Finding("no-output", f"{program.path} may write nowhere: a run leaves nothing but its outcome")
        for key in keys:
            if not who_may(policy, Right.READ, key) and not any(
                meets(other.rights.keys(Right.READ), key) for other in policy.programs
            ):
                yield Finding("output-unread", f"nobody can read what {program.path} writes under {key}")


def _inputs(policy: Policy) -> Iterator[Finding]:
    sources = [key for _, rights in policy.holders() for key in write_keys(rights)]
    for program in policy.programs:
        for key in program.rights.keys(Right.READ):
            if not meets(sources, key):
                yield Finding("input-unwritten", f"{program.path} reads {key}, where nobody can put anything")
    for party in policy.participants:
        for key in party.rights.keys(Right.READ):
            if not meets(sources, key):
                yield Finding("read-nothing", f"{party.name} may read {key}, where nobody can put anything")


def _programs(policy: Policy) -> Iterator[Finding]:
    if not policy.programs:
        yield Finding("no-program", "there is no program: parties can exchange files and compute nothing")
    for program in policy.programs:
        if not who_may(policy, Right.WRITE, program.path):
            yield Finding("program-unsent", f"nobody may send {program.path}")
        callers = who_may(policy, Right.EXECUTE, program.path)
        if not callers:
            yield Finding("program-unused", f"nobody may run {program.path}")
        elif not who_may(policy, Right.OBSERVE, program.path):
            yield Finding("unobserved", f"nobody learns whether a run of {program.path} ended well")
        if callers and program.path not in policy.lifecycle.runs:
            yield Finding(
                "runs-unlimited",
                f"{', '.join(callers)} may run {program.path} as often as they like: whoever varies an input and reads "
                "the results can learn of the others' inputs (lifecycle.runs limits it)",
            )


def _privacy(policy: Policy) -> Iterator[Finding]:
    for flow in find_flows(policy):
        if flow.readers:
            yield Finding(
                "read-by-others",
                f"what {flow.writer} puts under {flow.key}, {', '.join(flow.readers)} can read as it is",
            )
        writers = [
            party.name
            for party in policy.participants
            if party.name != flow.writer and meets(party.rights.keys(Right.WRITE), flow.key)
        ]
        if writers and flow.programs:
            yield Finding(
                "written-by-others", f"{', '.join(writers)} can replace what {flow.writer} puts under {flow.key}"
            )
        frozen = any(covers(key, flow.key) for key in policy.once) or flow.key in policy.pins
        if flow.programs and len(policy.participants) > 1 and not frozen:
            yield Finding(
                "input-replaceable",
                f"{flow.writer} can replace what is under {flow.key} between two runs (`once` freezes it)",
            )


def _rights(policy: Policy) -> Iterator[Finding]:
    for holder, rights in policy.holders():
        if "/" in dict(rights.entries):
            yield Finding("wide-right", f"{holder} has rights on /, which is everything")
        for key in rights.keys(Right.LIST):
            if not key.endswith("/"):
                yield Finding("list-without-directory", f"{holder} may list {key}, which is one file: no effect")
        for right in (Right.EXECUTE, Right.OBSERVE):
            for key in rights.keys(right):
                if not meets((program.path for program in policy.programs), key):
                    yield Finding("no-such-program", f"{holder} may {right} {key}, where there is no program")


def _parties(policy: Policy) -> Iterator[Finding]:
    for flow in find_flows(policy):
        if flow.programs and flow.writer not in policy.join:
            yield Finding("not-in-join", f"{flow.writer} gives input, and jobs may run before they have come (join)")
    if len(policy.lifecycle.shutdown) == 1 and len(policy.participants) > 1:
        yield Finding(
            "lone-shutdown", f"{policy.lifecycle.shutdown[0]} alone can end the isolate, and all data with it"
        )
    if policy.clock:
        yield Finding("clock", "programs see a clock, and can tell time in their results and by how long they take")


def _times(policy: Policy, at: datetime) -> Iterator[Finding]:
    end = policy.lifecycle.not_after
    if end is None:
        yield Finding("no-end", "the isolate serves without end (lifecycle.not_after)")
    elif end <= at:
        yield Finding("expired", f"the policy has ended: {end.isoformat()}")
    for party in policy.participants:
        certificate = x509.load_der_x509_certificate(party.certificate)
        if certificate.not_valid_after_utc <= at:
            yield Finding("certificate-expired", f"{party.name}'s certificate ended: {certificate.not_valid_after_utc}")
        elif certificate.not_valid_before_utc > at:
            yield Finding("certificate-early", f"{party.name}'s certificate begins: {certificate.not_valid_before_utc}")
        elif end is not None and certificate.not_valid_after_utc < end:
            yield Finding("certificate-short", f"{party.name}'s certificate ends before the policy does")


_CHECKS: tuple[Callable[[Policy], Iterator[Finding]], ...] = (_outputs, _inputs, _programs, _privacy, _rights, _parties)
