# SPDX-License-Identifier: MIT
"""The policy: the one file that everybody reads before they join, parsed once into values (veracruz.policy/1).

This is the public door: `parse_policy(raw)` and the values that it returns. It runs on both sides, in the participant's
hands and inside the isolate, and both demand that a policy's hash is SHA-256 of its exact bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from .binding import HASH_SIZE, policy_hash
from .certificates import key_bytes, parse_certificate, subject_name
from .errors import MalformedInput, MalformedPolicy
from .limits import MAX_CERTIFICATE_PEM, MAX_POLICY, PCR_SIZE
from .measurements import Measurements
from .paths import MAX_PATH, any_covers, covers, is_reserved, normal_key, normal_path, overlap
from .rights import PROGRAM_RIGHTS, Right, Rights
from .strict_json import Node, read_json

__all__ = [
    "Lifecycle", "Participant", "Policy", "Program", "Right", "Rights", "RunLimits", "StoreLimits",
    "any_covers", "covers", "is_reserved", "normal_key", "normal_path", "overlap", "parse_policy",
]  # fmt: skip

SCHEMA = "veracruz.policy/1"
AWS_ROOT = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")  # SHA-256 of G1's DER

MAX_IMAGES = 16
MAX_PARTICIPANTS = 64
MAX_PROGRAMS = 64
MAX_KEYS = 256  # keys in one table of rights, pins or frozen places
MAX_TEXT = 4096  # bytes of one argument or environment value
MAX_ARGUMENTS = 64

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
_MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"


@dataclass(frozen=True, slots=True)
class Participant:
    """One party: its certificate (DER) is its identity, its name is for people."""

    name: str
    certificate: bytes
    rights: Rights


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What one run of a program may use."""

    memory_mib: int = 64  # of linear memory
    wall_s: int = 60
    fuel: int = 10_000_000_000  # about one unit an instruction (wasmtime's)


@dataclass(frozen=True, slots=True)
class Program:
    """A WebAssembly program, pinned by hash, with the rights that its runs have: never its caller's."""

    path: str
    sha256: bytes
    rights: Rights
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    limits: RunLimits


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What the parties' files may use in all, and how many jobs may run at once."""

    storage_mib: int = 64
    file_mib: int = 16
    jobs: int = 1


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Until when the isolate serves, how often a program may run, and who must all ask before it shuts down."""

    not_after: datetime | None
    runs: Mapping[str, int]
    shutdown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy; `hash` is SHA-256 of `raw`, `root` the SHA-256 of the only root's DER that it lets prove it."""

    raw: bytes
    hash: bytes
    name: str
    root: bytes | None
    images: tuple[Measurements, ...]
    participants: tuple[Participant, ...]
    join: tuple[str, ...]
    programs: tuple[Program, ...]
    pins: Mapping[str, bytes]
    once: tuple[str, ...]
    limits: StoreLimits
    clock: bool
    lifecycle: Lifecycle

    def participant_of(self, der: bytes) -> Participant | None:
        """Return the participant whose certificate is exactly these bytes."""
        return next((party for party in self.participants if party.certificate == der), None)

    def program(self, path: str) -> Program | None:
        """Return the program at a path."""
        return next((program for program in self.programs if program.path == path), None)

    def holders(self) -> tuple[tuple[str, Rights], ...]:
        """Return whoever has rights, participants by name and programs by path."""
        return (
            *((party.name, party.rights) for party in self.participants),
            *((program.path, program.rights) for program in self.programs),
        )

    def pin(self, path: str) -> bytes | None:
        """Return the SHA-256 that a file at this path must have: a pinned file's or a program's."""
        program = self.program(path)
        return self.pins.get(path) if program is None else program.sha256

    def freezes(self, path: str) -> bool:
        """Return whether a path takes one complete write only."""
        return any_covers(self.once, path)


def parse_policy(raw: bytes) -> Policy:
    """Parse a policy's exact bytes; raise MalformedPolicy, which names the place."""
    top = read_json(raw, limit=MAX_POLICY, what="the policy", refusal=MalformedPolicy)
    members = top.object(
        "schema", "name", "images", "participants", "join", "programs",
        optional=("root", "pins", "once", "limits", "clock", "lifecycle"),
    )  # fmt: skip
    if members["schema"].value != SCHEMA:
        members["schema"].fail("another schema", expected=SCHEMA, actual=members["schema"].value)
    participants = _participants(members["participants"])
    names = [participant.name for participant in participants]
    programs = _programs(members["programs"])
    join = _names(members["join"], known=names)
    return Policy(
        raw=raw,
        hash=policy_hash(raw),
        name=_title(members["name"]),
        root=_root(members.get("root")),
        images=_images(members["images"]),
        participants=participants,
        join=join,
        programs=programs,
        pins=_pins(members.get("pins"), programs),
        once=_once(members.get("once")),
        limits=_store_limits(members.get("limits")),
        clock="clock" in members and members["clock"].boolean(),
        lifecycle=_lifecycle(members.get("lifecycle"), names=names, programs=programs, join=join),
    )


def _title(node: Node) -> str:
    text = node.text(least=1, most=200)
    if not text.isprintable():  # it is shown to people before they decide
        node.fail("not printable", actual=text)
    return text


def _root(node: Node | None) -> bytes | None:
    if node is None:
        return None
    return AWS_ROOT if node.value == "aws" else node.hexadecimal(HASH_SIZE)


def _images(node: Node) -> tuple[Measurements, ...]:
    images: list[Measurements] = []
    for entry in node.array(least=1, most=MAX_IMAGES):
        members = entry.object("PCR0", "PCR1", "PCR2")
        image = Measurements(*(members[name].hexadecimal(PCR_SIZE) for name in ("PCR0", "PCR1", "PCR2")))
        if image.debug:
            entry.fail("a zero register, which is debug mode and not an image's measurement")
        if image in images:
            entry.fail("the same image twice")
        images.append(image)
    return tuple(images)


def _participants(node: Node) -> tuple[Participant, ...]:
    participants: list[Participant] = []
    names: set[str] = set()
    keys: set[bytes] = set()
    subjects: set[str] = set()
    for entry in node.array(least=1, most=MAX_PARTICIPANTS):
        members = entry.object("name", "certificate", "rights")
        name = members["name"].match(_NAME, form="a name of letters, digits, . _ -")
        if name in names:
            members["name"].fail("the same name twice", actual=name)
        with _at(members["certificate"]):
            der = parse_certificate(members["certificate"].text(most=MAX_CERTIFICATE_PEM))
        key = key_bytes(der)
        if key in keys:  # which makes the certificates distinct too
            members["certificate"].fail("the same key as another participant's", actual=name)
        subject = subject_name(der)
        if subject in subjects:  # OpenSSL looks anchors up by subject and would refuse one of the two (tried, 3.0)
            members["certificate"].fail("the same subject as another participant's", actual=name)
        names.add(name)
        keys.add(key)
        subjects.add(subject)
        participants.append(Participant(name, der, _rights(members["rights"], words=frozenset(Right))))
    return tuple(participants)


def _programs(node: Node) -> tuple[Program, ...]:
    programs: dict[str, Program] = {}
    for entry in node.array(most=MAX_PROGRAMS):
        members = entry.object("path", "sha256", "rights", optional=("args", "env", "limits"))
        path = _path(members["path"])
        if path in programs:
            members["path"].fail("the same path twice", actual=path)
        args = members["args"].array(most=MAX_ARGUMENTS) if "args" in members else []
        programs[path] = Program(
            path=path,
            sha256=members["sha256"].hexadecimal(HASH_SIZE),
            rights=_rights(members["rights"], words=PROGRAM_RIGHTS),
            args=tuple(arg.text(most=MAX_TEXT) for arg in args),
            env=_env(members.get("env")),
            limits=_run_limits(members.get("limits")),
        )
    return tuple(programs.values())


def _rights(node: Node, *, words: frozenset[Right]) -> Rights:
    entries = []
    for key, member in node.members(most=MAX_KEYS):
        with _at(member):
            normal_key(key)
        given: set[Right] = set()
        for word in member.array(least=1, most=len(Right)):
            if not isinstance(word.value, str) or word.value not in words:
                word.fail("no such right here", expected=", ".join(sorted(words)), actual=word.value)
            if word.value in given:
                word.fail("the same right twice", actual=word.value)
            given.add(Right(word.value))
        entries.append((key, frozenset(given)))
    return Rights(tuple(sorted(entries, key=lambda entry: entry[0])))


def _env(node: Node | None) -> tuple[tuple[str, str], ...]:
    if node is None:
        return ()
    pairs = []
    for name, member in node.members(most=MAX_ARGUMENTS):
        if not re.fullmatch(_VARIABLE, name, re.ASCII):
            member.fail("wrong form", expected="a variable's name of letters, digits and _", actual=name)
        pairs.append((name, member.text(most=MAX_TEXT)))
    return tuple(sorted(pairs))


def _run_limits(node: Node | None) -> RunLimits:
    if node is None:
        return RunLimits()
    return RunLimits(**_integers(node, {"memory_mib": 4096, "wall_s": 86_400, "fuel": 2**62}))


def _store_limits(node: Node | None) -> StoreLimits:
    if node is None:
        return StoreLimits()
    limits = StoreLimits(**_integers(node, {"storage_mib": 1 << 20, "file_mib": 1 << 20, "jobs": 64}))
    if limits.file_mib > limits.storage_mib:
        node.fail("one file may be larger than all", expected=f"at most {limits.storage_mib}", actual=limits.file_mib)
    return limits


def _integers(node: Node, most: Mapping[str, int]) -> dict[str, int]:
    members = node.object(optional=tuple(most))
    return {name: member.integer(least=1, most=most[name]) for name, member in members.items()}


def _pins(node: Node | None, programs: tuple[Program, ...]) -> Mapping[str, bytes]:
    pins: dict[str, bytes] = {}
    hashes = {program.path: program.sha256 for program in programs}
    for key, member in node.members(most=MAX_KEYS) if node else ():
        with _at(member):
            normal_path(key)
        pins[key] = member.hexadecimal(HASH_SIZE)
        if hashes.get(key, pins[key]) != pins[key]:
            member.fail("another hash than the program's", expected=hashes[key].hex(), actual=pins[key].hex())
    return MappingProxyType(pins)


def _once(node: Node | None) -> tuple[str, ...]:
    keys: list[str] = []
    for entry in node.array(most=MAX_KEYS) if node else ():
        with _at(entry):
            keys.append(normal_key(entry.text(most=MAX_PATH)))
    if node and len(set(keys)) != len(keys):
        node.fail("the same place twice")
    return tuple(keys)


def _lifecycle(
    node: Node | None, *, names: list[str], programs: tuple[Program, ...], join: tuple[str, ...]
) -> Lifecycle:
    members = node.object(optional=("not_after", "runs", "shutdown")) if node else {}
    runs: dict[str, int] = {}
    paths = [program.path for program in programs]
    for path, member in members["runs"].members(most=MAX_PROGRAMS) if "runs" in members else ():
        if path not in paths:
            member.fail("no such program", expected=", ".join(paths), actual=path)
        runs[path] = member.integer(least=1, most=1 << 31)
    return Lifecycle(
        not_after=_moment(members["not_after"]) if "not_after" in members else None,
        runs=MappingProxyType(runs),
        shutdown=_names(members["shutdown"], known=names) if "shutdown" in members else join,
    )


def _moment(node: Node) -> datetime:
    text = node.match(_MOMENT, form="a UTC time such as 2027-01-01T00:00:00Z")
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        node.fail("no such time", actual=error)


def _names(node: Node, *, known: list[str]) -> tuple[str, ...]:
    """Return a list of distinct participants; an empty one would demand nobody's consent."""
    names: list[str] = []
    for entry in node.array(least=1, most=MAX_PARTICIPANTS):
        if not isinstance(entry.value, str) or entry.value not in known:
            entry.fail("no such participant", expected=", ".join(known), actual=entry.value)
        if entry.value in names:
            entry.fail("the same participant twice", actual=entry.value)
        names.append(entry.value)
    return tuple(names)


def _path(node: Node) -> str:
    with _at(node):
        return normal_path(node.text(most=MAX_PATH))


@contextmanager
def _at(node: Node) -> Iterator[None]:
    """Give what is refused inside the place of `node`."""
    try:
        yield
    except MalformedPolicy:
        raise
    except MalformedInput as error:
        node.fail(error.what, expected=error.expected, actual=error.actual)
