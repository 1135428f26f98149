# SPDX-License-Identifier: MIT
"""Kernel configurations: fragments of which every line names its reason.

`default` is `kernel.fragment`; any other NAME is `kernel-NAME.fragment`, which holds what differs from it. A reason
that begins with an architecture in brackets is of an option that only that architecture's kernel has, or has so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .architecture import BUILDER, Architecture
from .errors import BuildFailed, MalformedConfig

DEFAULT = "default"
BASE = "kernel.fragment"
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")

_OPTION = re.compile(r'(CONFIG_[A-Z0-9_]+)=(y|n|-?\d+|0x[0-9a-f]+|"[^"]*")  # (?:\[([a-z0-9_]+)\] )?(\S.*)')
_GROUP = re.compile(r"# --- (\S.*) ---")


@dataclass(frozen=True, slots=True)
class Option:
    """One line of a fragment."""

    name: str
    value: str  # as in .config; n for what is not set
    reason: str
    group: str
    architecture: Architecture | None = None  # the only one that has it; None: all have


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """A named configuration."""

    name: str
    options: tuple[Option, ...]  # no name twice
    architecture: Architecture = BUILDER

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
    seen: set[tuple[str, Architecture | None]] = set()
    for number, line in enumerate(lines, 1):
        if heading := _GROUP.fullmatch(line):
            group = heading[1]
        elif line and not line.startswith("#"):
            match = _OPTION.fullmatch(line)
            if match is None:
                raise MalformedConfig(
                    f"{file}:{number}", expected="CONFIG_NAME=VALUE  # why, with two spaces before #", actual=line
                )
            name, value, only, reason = match.groups()
            if only is not None and only not in tuple(Architecture):
                raise MalformedConfig(f"{file}:{number}: [{only}]", expected=" or ".join(Architecture), actual=only)
            architecture = Architecture(only) if only else None
            if seen & ({(name, None), (name, architecture)} if only else {(name, a) for a in (None, *Architecture)}):
                raise MalformedConfig(f"{file}:{number}: {name} is set twice")
            seen.add((name, architecture))
            yield Option(name, value, reason, group, architecture)


def load_kernel_config(name: str, architecture: Architecture, read: Callable[[str], bytes]) -> KernelConfig:
    """Return a configuration; `read` gives the bytes of a file beside image.toml, and raises where there is none."""

    def parse(file: str) -> list[Option]:
        found = parse_fragment(file, read(file))
        return [option for option in found if option.architecture in (None, architecture)]

    if not NAME.fullmatch(name):
        raise MalformedConfig("kernel_config", expected="a name such as default or minimal", actual=name)
    options = {option.name: option for option in parse(BASE)}
    if name != DEFAULT:
        file = f"kernel-{name}.fragment"
        for option in parse(file):
            if option.name in options and options[option.name].value == option.value:
                raise MalformedConfig(f"{file}: {option.name} is the same in {BASE}", actual=option.value)
            options[option.name] = option
    return KernelConfig(name, tuple(options.values()), architecture)


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
