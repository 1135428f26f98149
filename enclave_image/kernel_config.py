# SPDX-License-Identifier: MIT
"""Kernel configurations: fragments of which every line names its reason.

`default` is `kernel.fragment`; any other NAME is `kernel-NAME.fragment`, which holds what differs from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import BuildFailed, MalformedConfig

DEFAULT = "default"
BASE = "kernel.fragment"
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")

_OPTION = re.compile(r'(CONFIG_[A-Z0-9_]+)=(y|n|-?\d+|0x[0-9a-f]+|"[^"]*")  # (\S.*)')
_GROUP = re.compile(r"# --- (\S.*) ---")


@dataclass(frozen=True, slots=True)
class Option:
    """One line of a fragment."""

    name: str
    value: str  # as in .config; n for what is not set
    reason: str
    group: str


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """A named configuration."""

    name: str
    options: tuple[Option, ...]  # no name twice

    @property
    def fragment(self) -> bytes:
        """What KCONFIG_ALLCONFIG takes: names and values alone, so that a reason's wording changes no kernel."""
        return "".join(f"{option.name}={option.value}\n" for option in self.options).encode()


def parse_fragment(file: str, raw: bytes) -> tuple[Option, ...]:
    """Return a fragment's options in order; raise MalformedConfig naming the line."""
    return tuple(_parse_lines(file, raw))


def _parse_lines(file: str, raw: bytes) -> Iterator[Option]:
    try:
        lines = raw.decode("ascii").splitlines()
    except ValueError as error:
        raise MalformedConfig(f"{file} is no ASCII text", actual=error) from error
    group = ""
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if heading := _GROUP.fullmatch(line):
            group = heading[1]
        elif line and not line.startswith("#"):
            match = _OPTION.fullmatch(line)
            if match is None:
                raise MalformedConfig(
                    f"{file}:{number}", expected="CONFIG_NAME=VALUE  # why, with two spaces before #", actual=line
                )
            name, value, reason = match.groups()
            if name in seen:
                raise MalformedConfig(f"{file}:{number}: {name} is set twice")
            seen.add(name)
            yield Option(name, value, reason, group)


def load_kernel_config(name: str, read: Callable[[str], bytes]) -> KernelConfig:
    """Return a configuration; `read` gives the bytes of a file beside image.toml, and raises where there is none."""
    if not NAME.fullmatch(name):
        raise MalformedConfig("kernel_config", expected="a name such as default or minimal", actual=name)
    options = {option.name: option for option in parse_fragment(BASE, read(BASE))}
    if name != DEFAULT:
        file = f"kernel-{name}.fragment"
        for option in parse_fragment(file, read(file)):
            if option.name in options and options[option.name].value == option.value:
                raise MalformedConfig(f"{file}: {option.name} is the same in {BASE}", actual=option.value)
            options[option.name] = option
    return KernelConfig(name, tuple(options.values()))


def check_config(wanted: KernelConfig, config: str) -> None:
    """Raise BuildFailed unless every option took effect in the finished .config."""
    have = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", config, re.MULTILINE))
    for option in wanted.options:
        actual = have.get(option.name, "n")
        if actual != option.value:
            raise BuildFailed(
                f"kernel configuration {wanted.name}: {option.name} did not take effect",
                expected=option.value, actual=actual, hint="Kconfig drops what its dependencies do not allow",
            )  # fmt: skip
