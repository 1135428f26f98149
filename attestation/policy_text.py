# SPDX-License-Identifier: MIT
"""A policy in plain words: who may do what, and who learns what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from .policy import AWS_ROOT, Policy, Program
from .policy_flow import Flow, find_flows, who_may, write_keys
from .rights import Right, Rights


def explain_policy(policy: Policy) -> str:
    """Return what a policy says, for somebody who decides whether to join."""
    sections = [
        [f'Policy "{policy.name}"', f"  SHA-256 {policy.hash.hex()}"],
        ["Where it runs", *_indent(_where(policy))],
        ["Parties", *describe_parties(policy)],
        ["Programs", *(_indent(line for program in policy.programs for line in _program(policy, program)))],
        ["Who learns what", *_indent(line for flow in find_flows(policy) for line in describe_flow(flow))],
        ["From beginning to end", *_indent(_life(policy))],
    ]
    return "\n\n".join("\n".join(section) for section in sections if len(section) > 1)


def describe_parties(policy: Policy) -> Iterator[str]:
    """Yield what each party may do, an indented line a key."""
    for party in policy.participants:
        yield f"  {party.name}  (certificate SHA-256 {hashlib.sha256(party.certificate).hexdigest()})"
        yield from (f"    {line}" for line in _rights(party.rights))


def rights_table(rights: Rights) -> dict[str, list[str]]:
    """Return rights as they stand in the file."""
    return {key: sorted(words) for key, words in rights.entries}


def describe_flow(flow: Flow) -> Iterator[str]:
    """Yield where the things go that one participant puts in one place."""
    yield f"What {flow.writer} puts under {flow.key}:"
    yield f"  is read as it is by {_all(flow.readers, 'no other party')}"
    if not flow.programs:
        yield "  enters no program"
        return
    yield f"  enters {_all(flow.programs)}"
    if flow.outputs:
        yield f"  can show in results under {_all(flow.outputs)}, read by {_all(flow.learners, 'nobody')}"
    yield f"  can show in exit code, usage and streams of runs, seen by {_all(flow.observers, 'nobody')}"


def _where(policy: Policy) -> Iterator[str]:
    if policy.root == AWS_ROOT:
        yield "only on AWS Nitro Enclaves (evidence under AWS's root)"
    elif policy.root is not None:
        yield f"only under the root with SHA-256 {policy.root.hex()}, which is not AWS's"
    else:
        yield "under whichever root each participant chooses to trust"
    yield f"in {_count(len(policy.images), 'image')}; each participant compares with their own measurements:"
    for image in policy.images:
        yield from (f"  PCR{index} {value.hex()}" for index, value in enumerate(image.registers))


def _program(policy: Policy, program: Program) -> Iterator[str]:
    limits = program.limits
    yield f"{program.path}  (SHA-256 {program.sha256.hex()})"
    yield f"  reads {_all(program.rights.keys(Right.READ))}; writes {_all(write_keys(program.rights))}"
    yield f"  is sent by {_all(who_may(policy, Right.WRITE, program.path), 'nobody')}"
    runs = policy.lifecycle.runs.get(program.path)
    often = "as often as they like" if runs is None else f"at most {_count(runs, 'time')} in all"
    yield f"  is run by {_all(who_may(policy, Right.EXECUTE, program.path), 'nobody')}, {often}"
    observers = _all(who_may(policy, Right.OBSERVE, program.path), "nobody")
    yield f"  its outcome is seen by {observers}; others learn that it ended"
    yield f"  one run has {limits.memory_mib} MiB of memory, {limits.wall_s} s and {limits.fuel} units of fuel"
    if program.args:
        yield f"  arguments: {' '.join(map(ascii, program.args))}"
    if program.env:
        yield f"  environment: {' '.join(f'{name}={value!a}' for name, value in program.env)}"


def _life(policy: Policy) -> Iterator[str]:
    life = policy.lifecycle
    yield f"no program runs before {_all(policy.join)} connected to the isolate"
    if policy.once:
        yield f"written once and then frozen: {_all(policy.once)}"
    for path, digest in sorted(policy.pins.items()):
        yield f"{path} is taken only with SHA-256 {digest.hex()}"
    limits = policy.limits
    yield f"files: {limits.file_mib} MiB each, {limits.storage_mib} MiB in all; jobs at once: {limits.jobs}"
    yield "programs see a clock" if policy.clock else "programs see no clock"
    yield f"serves until {life.not_after.isoformat()}" if life.not_after else "serves without end"
    yield f"ends, and all data with it, when {_all(life.shutdown)} asked for it; and whenever its host pulls the plug"


def _rights(rights: Rights) -> Iterator[str]:
    if not rights.entries:
        yield "may do nothing but connect"
    for key, words in rights.entries:
        yield f"{key}  {', '.join(sorted(words))}"


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _all(names: Iterable[str], none: str = "nothing") -> str:
    return ", ".join(names) or none


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
