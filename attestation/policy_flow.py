# SPDX-License-Identifier: MIT
"""Who learns what under a policy: rights followed from the hand that writes, through programs, to the eyes that read.

Two keys are taken to meet if any path is under both, so what is told here is the most that can happen, never less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .paths import overlap
from .policy import Participant, Policy, Program
from .rights import Right, Rights


@dataclass(frozen=True, slots=True)
class Flow:
    """What one participant puts under one key, and where it goes."""

    writer: str
    key: str
    readers: tuple[str, ...]  # other participants who read it as it is
    programs: tuple[str, ...]  # that read it, or the output of one that did
    outputs: tuple[str, ...]  # keys to which these programs write
    learners: tuple[str, ...]  # participants who read such an output
    observers: tuple[str, ...]  # participants who learn exit code, trap, usage and streams of such programs


def find_flows(policy: Policy) -> tuple[Flow, ...]:
    """Return a flow for each participant and each key under which they write something that is not a program."""
    return tuple(
        _follow(policy, participant, key)
        for participant in policy.participants
        for key in write_keys(participant.rights)
        if policy.program(key) is None
    )


def write_keys(rights: Rights) -> tuple[str, ...]:
    """Return the keys under which content can be put."""
    return tuple(key for key, words in rights.entries if words & {Right.WRITE, Right.APPEND})


def who_may(policy: Policy, right: Right, key: str) -> tuple[str, ...]:
    """Return the participants who have a right somewhere under a key."""
    return tuple(party.name for party in policy.participants if meets(party.rights.keys(right), key))


def meets(keys: Iterable[str], key: str) -> bool:
    """Return whether a key has a path in common with one of the keys."""
    return any(overlap(other, key) for other in keys)


def _follow(policy: Policy, writer: Participant, key: str) -> Flow:
    places = [key]
    programs: list[Program] = []
    for place in places:  # grows while programs are found
        for program in policy.programs:
            if program not in programs and meets(program.rights.keys(Right.READ), place):
                programs.append(program)
                places.extend(write_keys(program.rights))
    outputs = tuple(dict.fromkeys(places[1:]))
    return Flow(
        writer=writer.name,
        key=key,
        readers=tuple(name for name in who_may(policy, Right.READ, key) if name != writer.name),
        programs=tuple(program.path for program in programs),
        outputs=outputs,
        learners=_union(who_may(policy, Right.READ, output) for output in outputs),
        observers=_union(who_may(policy, Right.OBSERVE, program.path) for program in programs),
    )


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))
