# SPDX-License-Identifier: MIT
"""A directory with parties, policies and isolates in it, driven by the real command line as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
PROGRAM = "/program/recommender.wasm"
WASM = TOP / "examples/recommender/recommender.wasm"
BOOT_LIMIT = 180  # seconds; a busy machine without KVM


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object that it printed under --json."""
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def slug(self) -> str:
        """The slug of the error that it printed under --json."""
        value: str = self.json["error"]["slug"]
        return value


@dataclass(frozen=True, slots=True)
class Enclave:
    """A running isolate."""

    name: str
    endpoint: str
    measurements: Path


class World:
    """One directory, one state home: the host's and the parties' files."""

    def __init__(self, directory: Path, source: Path = TOP) -> None:
        self.directory = directory
        self.source = source
        self.environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state"), "PYTHONPATH": str(source)}
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def root(self) -> Path:
        """The development root of this host's NSM emulator."""
        return Path(self.environment["XDG_STATE_HOME"]) / "veracruz/dev-root/root.pem"

    def run(self, *words: str | Path, expect: int | None = 0, timeout: float = BOOT_LIMIT + 60) -> Done:
        """Run `veracruz WORDS`; fail with its output unless it ends with `expect` (None: any)."""
        command = [sys.executable, "-m", "host_shim.cli", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert expect is None or done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr)

    def build(self, name: str = "image") -> Path:
        """Build the image of this world's source; its measurements stand beside it as NAME.json."""
        image = self.directory / f"{name}.eif"
        self.run("image", "build", "--out", image, "--measurements", image.with_suffix(".json"), timeout=2400)
        return image

    def identity(self, name: str) -> Path:
        """Make a party's identity once; return its directory."""
        directory = self.directory / name
        if not directory.exists():
            self.run("identity", "new", name, "--out", directory)
        return directory

    def policy(self, name: str, measurements: Path, *words: str | Path, program: Path = WASM) -> Path:
        """Write the policy of the tests: Alice and Bob put tables in, Bob runs the program, both read its output."""
        out = self.directory / f"{name}.policy.json"
        rights = (
            "alice:/input/alice/:write,read,list,delete", "alice:/output/:read,list", "alice:/log/:append,read",
            "bob:/input/bob/:write", "bob:/output/:read", "bob:/program/:write", f"bob:{PROGRAM}:execute,observe",
        )  # fmt: skip
        options: list[str | Path] = [
            word
            for party in ("alice", "bob")
            for word in ("--participant", f"{party}={self.identity(party) / f'{party}.pem'}")
        ]
        options += [word for right in rights for word in ("--right", right)]
        options += [
            word for right in ("/input/:read", "/output/:write") for word in ("--program-right", f"{PROGRAM}:{right}")
        ]
        self.run(
            "policy", "new", "--name", name, "--measurements", measurements, *options,
            "--program", f"{PROGRAM}={program}", "--out", out, "--force", *words,
        )  # fmt: skip
        return out

    @contextlib.contextmanager
    def enclave(self, image: Path, policy: Path, *words: str) -> Iterator[Enclave]:
        """Boot an image; stop it at the end."""
        done = self.run("enclave", "run", image, "--policy", policy, "--detach", "--json", *words)
        name = done.json["name"]
        measurements = self.directory / f"{name}.measured.json"
        measurements.write_text(json.dumps({"Measurements": done.json["Measurements"]}))
        try:
            yield Enclave(name, done.json["endpoint"], measurements)
        finally:
            self.run("enclave", "stop", name, expect=None)

    def trust(self, enclave: Enclave, policy: Path, measurements: Path | None = None) -> Sequence[str | Path]:
        """Return the options of a participant's verb."""
        return (
            "--isolate", enclave.endpoint, "--policy", policy, "--root", self.root,
            "--measurements", measurements or enclave.measurements, "--json",
        )  # fmt: skip

    def party(
        self, name: str, verb: str, enclave: Enclave, policy: Path, *words: str | Path, expect: int | None = 0,
        measurements: Path | None = None,
    ) -> Done:  # fmt: skip
        """Run a participant's verb."""
        identity = ("--identity", self.identity(name))
        return self.run(verb, *self.trust(enclave, policy, measurements), *identity, *words, expect=expect)

    def processes(self) -> list[str]:
        """Return the command lines of processes that still belong to this world."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and str(self.directory).encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


def copy_source(target: Path) -> Path:
    """Copy the packages of this checkout, to change them."""
    import shutil

    for package in ("attestation", "enclave_image", "host_shim"):
        shutil.copytree(TOP / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def change(path: Path, old: str, new: str) -> None:
    """Change a text that stands exactly once in a file of a copy."""
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old!r} stands {text.count(old)} times"
    path.write_text(text.replace(old, new))
