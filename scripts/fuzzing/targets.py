# SPDX-License-Identifier: MIT
"""The table of all targets."""

from __future__ import annotations

from . import evidence, files, machine, rings, wire
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (evidence, files, wire, rings, machine)
    for target in module.TARGETS
}  # fmt: skip
