# SPDX-License-Identifier: MIT
"""Every refusal of evidence or of a caller's input says what was expected and what came; held on the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestation
from attestation import errors

FOLDER = Path(attestation.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
REFUSALS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, (errors.AttestationError, errors.MalformedInput))
} | {"oversized", "refusal"}  # classes that a caller chose


def _raised(module: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS:
            yield node


@pytest.mark.parametrize("module", MODULES)
def test_it_says_what_was_expected_and_what_came(module: str) -> None:
    for call in _raised(module):
        told = {keyword.arg for keyword in call.keywords}
        assert {"expected", "actual"} <= told, f"{module}.py:{call.lineno}"


def test_there_are_refusals_to_look_at() -> None:
    assert sum(1 for module in MODULES for _ in _raised(module)) > 60
