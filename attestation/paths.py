# SPDX-License-Identifier: MIT
"""Paths of the parties' files: the one normal form, subtrees, and the places that nobody is given."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import MalformedInput

MAX_COMPONENT = 255  # bytes; NAME_MAX of Linux file systems
MAX_PATH = 1024  # bytes
MAX_DEPTH = 32  # components

# What a program finds under these names belongs to its engine, so no right reaches them, a right on "/" included.
RESERVED = ("/dev/", "/etc/", "/proc/", "/sys/", "/tmp/", "/veracruz/")


def normal_path(text: str, *, directory: bool = False) -> str:
    """Return `text` if it is the normal form of a file's path, or of a directory's (it ends in "/").

    Absolute, components of printable ASCII, no empty one, no "." or "..", not reserved. Raises MalformedInput.
    """
    if not text.startswith("/"):
        raise _refused(text, "a path is absolute")
    if len(text) > MAX_PATH:
        raise MalformedInput("a path is too long", expected=f"at most {MAX_PATH} bytes", actual=len(text))
    if text.endswith("/") is not directory:
        raise _refused(text, "a directory's path ends in /" if directory else "a file's path does not end in /")
    if text == "/":
        return text
    components = text[1:-1].split("/") if directory else text[1:].split("/")
    if len(components) > MAX_DEPTH:
        raise MalformedInput("a path is too deep", expected=f"at most {MAX_DEPTH} components", actual=len(components))
    for component in components:
        _check_component(component, text)
    if is_reserved(text):
        raise _refused(text, "a reserved place")
    return text


def normal_key(text: str) -> str:
    """Return `text` if it is the normal form of a subtree (it ends in "/") or of one file's path."""
    return normal_path(text, directory=text.endswith("/"))


def covers(key: str, path: str) -> bool:
    """Return whether a key, a subtree or one file, covers a path; both are in normal form."""
    return path.startswith(key) if key.endswith("/") else path == key


def overlap(first: str, second: str) -> bool:
    """Return whether two keys have a path in common."""
    return covers(first, second) or covers(second, first)


def any_covers(keys: Iterable[str], path: str) -> bool:
    """Return whether one of the keys covers a path."""
    return any(covers(key, path) for key in keys)


def is_reserved(path: str) -> bool:
    """Return whether a path is, or is in, a reserved place."""
    return (path if path.endswith("/") else path + "/").startswith(RESERVED)


def _check_component(component: str, text: str) -> None:
    if component in ("", ".", ".."):
        raise _refused(text, "no empty component, no . and no ..")
    if len(component) > MAX_COMPONENT:
        raise MalformedInput(
            "a component of a path is too long", expected=f"at most {MAX_COMPONENT} bytes", actual=len(component)
        )
    if not (component.isascii() and component.isprintable()):
        raise _refused(text, "printable ASCII")
    if "\\" in component:
        raise _refused(text, "no backslash")


def _refused(text: str, why: str) -> MalformedInput:
    return MalformedInput("a path is not in normal form", expected=why, actual=text)
