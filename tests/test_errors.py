# SPDX-License-Identifier: MIT
"""Every error has one slug, a cause and a cure beside its class, a place on the reference page, and is explained."""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from attestation.console import PLAIN_SLUGS, report, run_verb
from attestation.error_reference import BASES, Entry, make_reference
from attestation.errors import ApiRefusal, Busy, NonceMismatch, UsageError, VeracruzError
from enclave_image.runtime import errors as runtime_errors
from host_shim.cli import PACKAGES, make_parser

TOP = Path(__file__).resolve().parent.parent
ENTRIES = make_reference(PACKAGES)
PARSER = make_parser()
SLUGS = {entry.slug for entry in ENTRIES}
SOURCES = sorted(path for package in PACKAGES for path in (TOP / package).rglob("*.py"))


def _all_kinds(kind: type[VeracruzError] = VeracruzError) -> set[type[VeracruzError]]:
    ours = {kind} if kind.__module__.split(".")[0] in PACKAGES else set()
    return ours.union(*(_all_kinds(child) for child in kind.__subclasses__()))


def _declared() -> dict[str, Path]:
    """Every class in the product that derives from one of our errors, and its file, read without importing it."""
    classes = [
        (node, path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, Path] = {}
    known = {"VeracruzError"}
    while True:
        more = {
            node.name: path
            for node, path in classes
            if node.name not in found and known & {ast.unparse(base).split(".")[-1] for base in node.bases}
        }
        if not more:
            return found
        found |= more
        known |= set(more)


def test_the_page_is_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_error_reference.py", "--check"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (TOP / "docs" / "errors.md").read_text()
    assert re.findall(r"^### `(.+)`$", page, re.M) == [entry.slug for entry in ENTRIES]


def test_errors_are_declared_where_the_reference_looks_for_them() -> None:
    assert {str(path) for name, path in _declared().items() if path.name != "errors.py"} == set()
    known = {kind.__name__ for kind in _all_kinds()}
    assert set(_declared()) <= known


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.slug)
def test_every_slug_has_a_cause_and_a_cure(entry: Entry) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", entry.slug)
    assert 0 < entry.exit_code <= 5
    for text in (entry.cause, entry.cure):
        assert 10 < len(text) < 300
        assert text.endswith(".")


def test_no_two_errors_share_a_slug() -> None:
    assert [slug for slug, count in Counter(entry.slug for entry in ENTRIES).items() if count > 1] == []
    for kind in _all_kinds() - set(BASES):
        inherits = "slug" not in vars(kind) and kind not in (runtime_errors.ApiError, runtime_errors.BrokenHttp)
        assert not inherits, f"{kind.__name__} has no slug of its own"


def test_what_the_api_answers_is_what_its_client_knows() -> None:
    answered = {kind.slug for kind in _all_kinds(runtime_errors.ApiError)} - {runtime_errors.ApiError.slug}
    assert answered == {kind.slug for kind in ApiRefusal.__subclasses__()}
    assert answered == {entry.slug for entry in ENTRIES if entry.status is not None}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_a_base_is_never_raised_itself(base: type[VeracruzError]) -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == base.__name__:
                pytest.fail(f"{path.relative_to(TOP)}:{node.lineno} raises {base.__name__}")


def test_slugs_that_scripts_and_pages_rely_on_exist() -> None:
    told = (TOP / "scripts" / "demo_refusals.py").read_text()
    relied = set(re.findall(r'Refusal\([^"()]*"([a-z-]+)"', told))
    assert relied
    assert relied <= SLUGS
    for page in (TOP / "docs").rglob("*.md"):
        assert set(re.findall(r"veracruz explain ([a-z-]+)", page.read_text())) <= SLUGS


def test_commands_that_a_cure_names_exist() -> None:
    verbs = _verbs(PARSER)
    for entry in ENTRIES:
        for words in re.findall(r"veracruz ([a-z]+(?: [a-z]+)?)", entry.cure):
            assert words in verbs or words.split()[0] in verbs, entry.cure


def _verbs(parser: argparse.ArgumentParser, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                deeper = _verbs(child, f"{prefix}{name} ")
                found |= deeper or {f"{prefix}{name}"}
    return found


def _explain(*words: str) -> int:
    return run_verb(PARSER.parse_args(["explain", *words]))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.slug)
def test_explain_prints_what_the_page_says(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain(entry.slug) == 0
    said = capsys.readouterr().out
    assert entry.cause in said
    assert entry.cure in said
    assert _explain(entry.slug, "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields == {
        "slug": entry.slug, "package": entry.package, "exit_code": entry.exit_code, "http_status": entry.status,
        "cause": entry.cause, "cure": entry.cure,
    }  # fmt: skip


def test_explain_alone_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [entry.slug for entry in ENTRIES]
    assert _explain("--json") == 0
    assert [row["slug"] for row in json.loads(capsys.readouterr().out)["errors"]] == [e.slug for e in ENTRIES]


def test_an_unknown_slug_is_a_usage_error_with_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert _explain("nonce-missmatch") == 2
    assert "expected nonce-mismatch" in capsys.readouterr().err
    assert _explain("\x1b[2J") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_the_verifier_alone_explains_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attestation", "explain", "stale-evidence"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-age" in done.stdout


def test_an_error_says_what_to_do_and_where_to_read_more(capsys: pytest.CaptureFixture[str]) -> None:
    report(NonceMismatch("the document answers another nonce", expected="00", actual="01"), as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: the document answers another nonce; expected 00, got 01",
        f"hint: {NonceMismatch.cure}",
        "more: veracruz explain nonce-mismatch",
    ]
    report(Busy("the isolate refused"), as_json=False)  # explain would add nothing
    assert capsys.readouterr().err.splitlines() == ["error: the isolate refused", f"hint: {Busy.cure}"]
    report(Busy("the isolate refused", hint="wait"), as_json=False)
    assert capsys.readouterr().err.splitlines()[1:] == ["hint: wait", "more: veracruz explain busy"]
    assert PLAIN_SLUGS <= SLUGS
    report(UsageError("--x: wrong form", expected="a number", actual="y"), as_json=False)
    assert capsys.readouterr().err.splitlines() == ["error: --x: wrong form; expected a number, got y"]


def test_long_values_stand_one_above_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    report(NonceMismatch("another", expected=bytes(32), actual=bytes(31) + b"\1"), as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["error: another", f"  expected {'00' * 32}", f"  got      {'00' * 31}01"]
