# SPDX-License-Identifier: MIT
"""docs/verify-evidence.md says what is so: its commands parse, its program runs, its names and keys are there."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation import verify_cli
from attestation.chain import CLOCK_LEEWAY, load_root
from attestation.console import run_verb
from attestation.measurements import dump_measurements
from attestation.verifier import Verdict

from .documents import IMAGE, NONCE, PUBLIC_KEY, make_document, make_pki, milliseconds

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "verify-evidence.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.M) if block.strip()]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("veracruz attest verify ")]
(PROGRAM,) = [block for block in BLOCKS if "import verify" in block]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    verify_cli.add_verbs(parser.add_subparsers(required=True))
    return parser


def _section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's reader has: a document of today, measurements, a root."""
    now = datetime.now(UTC)
    pki = make_pki(at=now)
    (tmp_path / "evidence.cbor").write_bytes(make_document(pki, timestamp=milliseconds(now)))
    (tmp_path / "measurements.json").write_text(json.dumps(dump_measurements(IMAGE)))
    root = x509.load_der_x509_certificate(pki.certificates["root"]).public_bytes(Encoding.PEM)
    (tmp_path / "root.pem").write_bytes(root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_of_the_right_form(command: str) -> None:
    _parser().parse_args(shlex.split(command)[2:])


def test_it_names_every_option_and_no_other() -> None:
    parser = _parser()._actions[-1].choices["verify"]  # type: ignore[index, union-attr]
    options = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
    assert options - {"--help", "--debug"} == set(re.findall(r"--[a-z][a-z-]*", PAGE))


def test_the_command_for_another_root_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [line for line in COMMANDS if "root.pem" in line]
    assert run_verb(_parser().parse_args(shlex.split(command)[2:])) == 0
    assert capsys.readouterr().out.startswith("verified-development: ")


@pytest.mark.parametrize(("nonce", "slug"), [(NONCE, None), (bytes(32), "nonce-mismatch")])
def test_its_program_runs_as_it_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nonce: bytes, slug: str | None
) -> None:
    monkeypatch.setattr("attestation.chain.aws_root", lambda: load_root((folder / "root.pem").read_bytes()))
    names: dict[str, Any] = {"nonce": nonce.hex()}
    exec(compile(PROGRAM, "verify-evidence.md", "exec"), names)
    if slug is None:
        assert names["key"] == PUBLIC_KEY
    else:
        assert names["refusal"][0] == slug


def test_its_loop_over_many_documents_runs_as_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = load_root((folder / "root.pem").read_bytes())
    monkeypatch.setattr("attestation.chain.aws_root", lambda: root)
    names: dict[str, Any] = {"nonce": NONCE.hex()}
    exec(compile(PROGRAM, "verify-evidence.md", "exec"), names)
    names["received"] = [(names["document"], NONCE), (names["document"], bytes(32))]
    (loop,) = [block for block in BLOCKS if "verify_batch" in block]
    outcomes: list[Any] = []
    exec(compile(loop.replace("...", "outcomes.append(outcome)"), "page", "exec"), names | {"outcomes": outcomes})
    assert [getattr(outcome, "slug", None) for outcome in outcomes] == [None, "nonce-mismatch"]


def test_the_names_that_it_lists_are_there() -> None:
    rows = re.findall(r"^\| `(attestation\.[a-z]+)` \| (.+) \|$", _section("From Python"), re.M)
    assert len(rows) == 7
    for module, names in rows:
        found = importlib.import_module(module)
        for name in re.findall(r"`([A-Za-z_]+)`", names):
            assert hasattr(found, name), f"{module}.{name}"
    expectations = importlib.import_module("attestation.expectations")
    for name in re.findall(r"\| `([A-Z][A-Za-z]+)[.(]", _section("What else can be demanded")):
        assert name in expectations.__all__


def test_its_table_of_keys_is_that_of_the_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "evidence.cbor", "--measurements", "measurements.json", "--root", "root.pem", "--json"]
    assert run_verb(_parser().parse_args(arguments)) == 0
    verdict = json.loads(capsys.readouterr().out)
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", _section("Exit codes and JSON"), re.M)
    assert [key for row in rows for key in re.findall(r"`(\w+)`", row)] == list(verdict)
    assert verdict["schema"] in PAGE
    for verdict_word in set(Verdict) - {Verdict.UNSIGNED}:
        assert f"`{verdict_word}`" in _section("Exit codes and JSON")


def test_it_states_the_leeway_of_the_code() -> None:
    assert f"may differ by {CLOCK_LEEWAY.total_seconds():.0f} seconds" in PAGE
