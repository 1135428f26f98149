# SPDX-License-Identifier: MIT
"""The judge and the fuzzer themselves: planted defects are found and saved, and each is shown again by its command."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest

from attestation.errors import EXIT_OK, EXIT_REFUSED, EXIT_USAGE
from scripts.fuzzing import findings
from scripts.fuzzing.__main__ import main
from scripts.fuzzing.campaign import fuzz
from scripts.fuzzing.mutations import change_bytes
from scripts.fuzzing.target import bounded_memory, judge
from scripts.fuzzing.targets import TARGETS

from . import planted

PLANTED = planted.TARGETS
has_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (scripts/fuzz installs it)"
)


def test_a_refusal_is_no_finding() -> None:
    assert judge(PLANTED["leak"], b"whatever") is None


def test_a_leaked_exception_is_found_among_changed_inputs_and_saved(tmp_path: Path) -> None:
    random, target = Random(1), PLANTED["leak"]
    found = [finding for _ in range(20_000) if (finding := judge(target, change_bytes(b"0000", random)))]
    assert {finding.place for finding in found} == {found[0].place}
    assert found[0].place.startswith("ValueError at planted.py:")
    path = findings.save(tmp_path / "new" / "folder", target, found[0])
    assert path.read_bytes() == found[0].data
    assert path.name.startswith("ValueError-at-planted-py-")
    told = path.with_name(path.name + ".txt").read_text()
    assert f"scripts/fuzz leak --replay {path}" in told
    assert "Traceback" in told


def test_a_smaller_input_takes_the_place_of_a_larger_one(tmp_path: Path) -> None:
    target = PLANTED["leak"]
    for data in (b"%abcdef", b"%"):
        finding = judge(target, data)
        assert finding is not None
        findings.save(tmp_path, target, finding, replaces=data == b"%")
    assert [path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt"] == [b"%"]


@pytest.mark.parametrize(("name", "place"), [("hang", "OutOfTime"), ("take_memory", "MemoryError")])
def test_an_input_that_takes_too_much_is_a_finding_even_as_a_refusal(name: str, place: str) -> None:
    with bounded_memory():
        finding = judge(PLANTED[name], b"")
    assert finding is not None
    assert finding.place == place


def test_an_exception_that_is_no_exception_is_a_finding() -> None:
    finding = judge(PLANTED["panic"], b"")
    assert finding is not None
    assert finding.place.startswith("SystemExit at planted.py:")


def test_names_of_findings_are_safe_in_a_shell() -> None:
    assert findings.file_name("Err\n; rm -rf / \x1b", b"") == "Err-rm-rf--e3b0c44298fc"


def test_the_command_lists_its_targets_and_replays_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scripts/fuzz", *words])
        return main()

    assert run() == EXIT_OK
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(TARGETS)
    good = tmp_path / "good"
    good.write_bytes(b"\0")
    assert run("evidence", "--replay", str(good)) == EXIT_OK
    assert run("evidence", "--replay", str(tmp_path / "missing")) == EXIT_USAGE
    assert capsys.readouterr().err.count("error:") == 1
    with pytest.raises(SystemExit, match="2"):
        run("nothing")
    monkeypatch.setitem(TARGETS, "leak", PLANTED["leak"])
    good.write_bytes(b"%")
    assert run("leak", "--replay", str(good)) == EXIT_REFUSED
    assert "ValueError at planted.py" in capsys.readouterr().err


@has_atheris
@pytest.mark.parametrize(("name", "place"), [("leak", "ValueError-at-planted-py-"), ("die", "crash-")])
def test_the_fuzzer_finds_and_saves_what_was_planted(name: str, place: str, tmp_path: Path) -> None:
    seeds, found = tmp_path / "seeds", tmp_path / "found"
    seeds.mkdir()
    (seeds / "seed").write_bytes(b"0000")
    result = fuzz(
        PLANTED[name], seconds=None, runs=5_000, corpus=seeds, findings=found, seed=1, module="tests.fuzzing.planted"
    )
    assert result.findings
    assert all(path.name.startswith(place) and path.read_bytes()[:1] == b"%" for path in result.findings)
    assert name == "die" or result.inputs >= 5_000
