# SPDX-License-Identifier: MIT
"""Patches to the kernel's source: pinned by SHA-256, applied exactly as written or not at all.

The form is that of `diff -u`, changes to existing files only. No fuzz, no offset, no option: each hunk's lines must
stand at the very line that it names, so that a patch which no longer fits stops the build instead of landing elsewhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import BuildFailed, InputMismatch, MalformedConfig

MAX_PATCH = 256 * 1024  # bytes
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: .*)?")


@dataclass(frozen=True, slots=True)
class Hunk:
    """One place of a file: the lines that must stand there, and those that take their place."""

    number: int  # in its file, from 1
    start: int  # line of the original, from 1
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """All hunks of one file, in order."""

    path: PurePosixPath  # below the source's top
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch file."""

    name: str
    sha256: str  # hex, of the whole file
    files: tuple[FilePatch, ...]


def load_patch(path: Path, raw: bytes, *, sha256: str) -> Patch:
    """Return the patch that a file's bytes hold; raise InputMismatch for other bytes than those pinned."""
    actual = hashlib.sha256(raw).hexdigest()
    if actual != sha256:
        raise InputMismatch(
            f"SHA-256 of {path}", expected=sha256, actual=actual,
            hint="who changed the patch reviews it and pins it anew in image.toml",
        )  # fmt: skip
    try:
        text = raw.decode()
    except ValueError as error:
        raise MalformedConfig(f"{path} is no text", actual=error) from error
    return Patch(path.name, sha256, tuple(_parse_files(path.name, text)))


def _parse_files(name: str, text: str) -> Iterator[FilePatch]:
    lines = text.split("\n")
    if lines.pop() != "":
        raise MalformedConfig(f"{name}: the last line is cut off")
    at = next((index for index, line in enumerate(lines) if line.startswith("--- ")), len(lines))  # a description first
    seen: set[PurePosixPath] = set()
    if at == len(lines):
        raise MalformedConfig(f"{name}: no patch", expected="the form of diff -u")
    while at < len(lines):
        path = _parse_path(f"{name}:{at + 1}", lines[at : at + 2])
        if path in seen:
            raise MalformedConfig(f"{name}:{at + 1}: {path} is patched twice")
        seen.add(path)
        at += 2
        hunks: list[Hunk] = []
        while at < len(lines) and lines[at].startswith("@@"):
            hunk, at = _parse_hunk(name, lines, at, len(hunks) + 1)
            if hunks and hunk.start < hunks[-1].start + len(hunks[-1].old):
                raise MalformedConfig(f"{name}: hunk {hunk.number} of {path} overlaps the one before it")
            hunks.append(hunk)
        if not hunks:
            raise MalformedConfig(f"{name}:{at + 1}: {path} has no hunk")
        yield FilePatch(path, tuple(hunks))
        if at < len(lines) and not lines[at].startswith("--- "):
            raise MalformedConfig(f"{name}:{at + 1}: neither hunk nor file", actual=lines[at])


def _parse_path(place: str, pair: Sequence[str]) -> PurePosixPath:
    names = [re.fullmatch(mark + r" [ab]/(\S+)", line) for mark, line in zip((r"---", r"\+\+\+"), pair, strict=False)]
    if len(names) != 2 or names[0] is None or names[1] is None or names[0][1] != names[1][1]:
        raise MalformedConfig(f"{place}: no pair of the same file", expected="--- a/FILE and +++ b/FILE", actual=pair)
    path = PurePosixPath(names[0][1])
    if path.is_absolute() or ".." in path.parts:
        raise MalformedConfig(f"{place}: the path leaves the source", actual=path)
    return path


def _parse_hunk(name: str, lines: Sequence[str], at: int, number: int) -> tuple[Hunk, int]:
    place = f"{name}:{at + 1}"
    match = _HUNK.fullmatch(lines[at])
    if match is None:
        raise MalformedConfig(f"{place}: no hunk", expected="@@ -LINE,COUNT +LINE,COUNT @@", actual=lines[at])
    start, olds, news = int(match[1]), int(match[2] or 1), int(match[4] or 1)
    old: list[str] = []
    new: list[str] = []
    at += 1
    while len(old) < olds or len(new) < news:
        line = lines[at] if at < len(lines) else ""
        mark, rest = line[:1], line[1:]
        if mark not in (" ", "-", "+"):
            raise MalformedConfig(f"{place}: hunk {number} is shorter than it says", actual=line)
        if mark != "+":
            old.append(rest)
        if mark != "-":
            new.append(rest)
        at += 1
    if len(old) != olds or len(new) != news or start < 1 or not old:
        raise MalformedConfig(f"{place}: hunk {number} is not as long as it says", expected=f"-{olds} +{news} lines")
    return Hunk(number, start, tuple(old), tuple(new)), at


def apply_patch(patch: Patch, source: Path) -> None:
    """Change the files below `source`; raise BuildFailed naming the hunk that does not fit, with nothing written."""
    changed = {file.path: _apply_file(patch.name, file, source) for file in patch.files}
    for path, text in changed.items():
        (source / path).write_bytes(text)


def _apply_file(name: str, file: FilePatch, source: Path) -> bytes:
    target = source / file.path
    if not target.is_file() or not target.resolve().is_relative_to(source.resolve()):
        raise BuildFailed(f"{name}: the source has no file {file.path}")
    lines = target.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    done: list[str] = []
    position = 0
    for hunk in file.hunks:
        begin, end = hunk.start - 1, hunk.start - 1 + len(hunk.old)
        for offset, wanted in enumerate(hunk.old):
            actual = lines[begin + offset] if begin + offset < len(lines) else None
            if actual != wanted:
                raise BuildFailed(
                    f"{name}: hunk {hunk.number} of {file.path} does not fit at line {hunk.start + offset}",
                    expected=repr(wanted), actual=repr(actual) if actual is not None else "the end of the file",
                    hint="the kernel's source has changed: make the patch anew for it, then pin it in image.toml",
                )  # fmt: skip
        done += lines[position:begin]
        done += hunk.new
        position = end
    return "\n".join([*done, *lines[position:]]).encode("utf-8", "surrogateescape")
