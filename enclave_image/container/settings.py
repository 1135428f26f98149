# SPDX-License-Identifier: MIT
"""What a container image runs: command, environment, directory and user, out of its configuration and its own files.

Source: OCI image specification, config.md; users and groups as Docker resolves them, from /etc/passwd and /etc/group of
the image, at build time: what runs is decided by measured bytes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attestation.strict_json import Node

from ..errors import UnfitContainer
from .tar_reader import MAX_ID, Kind
from .tree import Leaf, Tree

MAX_ITEMS = 4096  # of a command or an environment
MAX_TEXT = 128 * 1024  # bytes of one; the kernel's MAX_ARG_STRLEN
MAX_FILE = (1 << 20) - 1  # bytes of /cmd or /env: what /init reads
MAX_USERS = 1 << 20  # bytes of /etc/passwd or /etc/group
MAX_GROUPS = 64  # further groups; what /init takes
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's, where the image has none


@dataclass(frozen=True, slots=True)
class Settings:
    """What /init of the enclave image runs, and how."""

    command: tuple[str, ...]
    environment: tuple[str, ...]  # NAME=VALUE
    workdir: str
    uid: int
    gid: int
    groups: tuple[int, ...]  # further ones

    def files(self) -> dict[str, bytes]:
        """Return the files that /init reads, by name."""
        files = {
            "cmd": "".join(f"{item}\n" for item in self.command).encode(),
            "env": "".join(f"{item}\n" for item in self.environment).encode(),
            "user": (" ".join(str(number) for number in (self.uid, self.gid, *self.groups)) + "\n").encode(),
            "workdir": f"{self.workdir}\n".encode(),
        }
        for name, data in files.items():
            if len(data) > MAX_FILE:
                raise UnfitContainer(f"/{name} is too long", expected=f"at most {MAX_FILE} bytes", actual=len(data))
        return files


def read_settings(config: Node, tree: Tree) -> Settings:
    """Return what a container runs; raise UnfitContainer naming what cannot be run here."""
    table = dict(config.members())
    inner = dict(table["config"].members()) if "config" in table and table["config"].value is not None else {}
    command = (*_items(inner, "Entrypoint"), *_items(inner, "Cmd"))
    if not command:
        raise UnfitContainer("the container image has neither Entrypoint nor Cmd: nothing to run")
    if not command[0]:
        raise UnfitContainer("the container image's command has no name")
    environment = _items(inner, "Env")
    for item in environment:
        if item.find("=") < 1:
            raise UnfitContainer("Env", expected="NAME=VALUE", actual=item)
    uid, gid, groups, home = _find_user(_text(inner, "User"), tree)
    names = {item.partition("=")[0] for item in environment}
    added = [item for item in (PATH, f"HOME={home}") if item.partition("=")[0] not in names]
    workdir = _text(inner, "WorkingDir") or "/"
    if not workdir.startswith("/"):
        raise UnfitContainer("WorkingDir", expected="an absolute path", actual=workdir)
    return Settings(command, (*environment, *added), workdir, uid, gid, groups)


def _text(table: dict[str, Node], key: str) -> str:
    if key not in table or table[key].value is None:
        return ""
    return _one_line(table[key].text(most=MAX_TEXT), key)


def _items(table: dict[str, Node], key: str) -> tuple[str, ...]:
    if key not in table or table[key].value is None:
        return ()
    return tuple(_one_line(node.text(most=MAX_TEXT), key) for node in table[key].array(most=MAX_ITEMS))


def _one_line(text: str, key: str) -> str:
    """Return a text that fits the layout's files, one item a line."""
    if "\n" in text or "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UnfitContainer(
            f"{key} holds a line break or what is no text: /cmd and /env have one item a line", actual=text,
            hint="put it into a script or a file of the container image",
        )  # fmt: skip
    return text


def _find_user(user: str, tree: Tree) -> tuple[int, int, tuple[int, ...], str]:
    """Return uid, gid, further groups and home of `user`, `uid`, `user:group` and the like."""
    name, colon, group = user.partition(":")
    row = next((row for row in _rows(tree, "/etc/passwd", 7) if row[0] == name), None) if name else None
    uid = _number(name or "0") if row is None else _number(row[2])
    if uid is None:
        raise UnfitContainer("User", expected="a number, or a name in /etc/passwd of the image", actual=user)
    row = row or next((row for row in _rows(tree, "/etc/passwd", 7) if _number(row[2]) == uid), None)
    home = row[5] if row is not None and row[5].startswith("/") else "/"
    if colon:
        gid = next((_number(row[2]) for row in _rows(tree, "/etc/group", 4) if row[0] == group), _number(group))
        groups: tuple[int, ...] = ()
    else:
        gid = _number(row[3]) if row is not None else 0
        groups = tuple(_groups(tree, row[0])) if row is not None else ()
    if gid is None:
        raise UnfitContainer("User", expected="a group's number, or a name in /etc/group of the image", actual=user)
    if len(groups) > MAX_GROUPS:
        raise UnfitContainer(f"groups of {user}", expected=f"at most {MAX_GROUPS}", actual=len(groups))
    return uid, gid, groups, home


def _groups(tree: Tree, name: str) -> list[int]:
    found = {_number(row[2]) for row in _rows(tree, "/etc/group", 4) if name in row[3].split(",")}
    return sorted(number for number in found if number is not None)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= MAX_ID else None


def _rows(tree: Tree, path: str, fields: int) -> Iterator[list[str]]:
    """Yield the rows of a file of users or groups, nothing where there is none."""
    found = tree.find(path)
    if not isinstance(found, Leaf) or found.kind is not Kind.FILE or found.source is None:
        return
    if found.size > MAX_USERS:
        raise UnfitContainer(f"{path} is too long", expected=f"at most {MAX_USERS} bytes", actual=found.size)
    for line in found.source.read(found.offset, found.size).decode("utf-8", "replace").splitlines():
        row = line.split(":")
        if len(row) == fields:
            yield row
