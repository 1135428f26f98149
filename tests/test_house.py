# SPDX-License-Identifier: MIT
"""The rules of the house, held by tests: types, lint, layers, headers, no machine's path or registry in the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("attestation", "enclave_image", "host_shim")
MODULES = sorted(path for package in PACKAGES for path in (TOP / package).rglob("*.py"))


def run_tool(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_types_are_strict() -> None:
    run_tool("mypy", "--no-error-summary")


def test_lint_is_clean() -> None:
    run_tool("ruff", "check", "--no-cache", ".")


def test_format_is_uniform() -> None:
    run_tool("ruff", "format", "--no-cache", "--check", ".")


def test_imports_only_go_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TOP)))
def test_a_module_names_its_licence_and_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# SPDX-License-Identifier: MIT"
    assert lines[1].startswith('"""') or lines[1].startswith("#")
    assert len(lines) <= 400, "a module above 400 lines is two concepts"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, check=True).stdout
    return [TOP / name for name in listed.decode().split("\0") if name and (TOP / name).is_file()]


def test_no_address_of_a_registry_or_mirror_is_built_in() -> None:
    hosts = re.compile(r"(deb|security|snapshot|ftp)\.debian\.org|pypi\.org|pythonhosted|crates\.io|npmjs")
    places = []
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in (".wasm", ".pem") or "fuzz_corpus" in path.parts:
            continue
        places += [f"{path.relative_to(TOP)}: {line}" for line in path.read_text().splitlines() if hosts.search(line)]
    assert not places


def test_the_attestation_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, attestation; print([m for m in ('cryptography', 'cbor2', 'ssl', 'socket') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MISSING_ELSEWHERE = (
    "fcntl", "resource", "termios", "pwd", "grp", "syslog", "pycose", "wasmtime", "h11", "host_shim", "enclave_image",
)  # fmt: skip
UNIX_NAMES = (
    "AF_UNIX", "AF_VSOCK", "SCM_RIGHTS", "memfd_create", "sched_getaffinity", "sched_setaffinity", "geteuid", "getuid",
    "fchmod", "fork", "pthread_sigmask", "SIGHUP", "SIGUSR1", "SIGALRM", "alarm", "O_NOFOLLOW", "O_DIRECTORY",
    "O_CLOEXEC", "O_NONBLOCK", "openpty", "setsid", "chroot", "prlimit",
)  # fmt: skip


def test_the_verifier_needs_cryptography_and_cbor2_alone() -> None:
    """Point: a bank uses it without the rest; and all of it loads and verifies where there is no Unix."""
    script = (
        "import importlib, os, pkgutil, signal, socket, sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {MISSING_ELSEWHERE}:\n"
        "            raise ImportError(name)\n"
        "import cryptography, subprocess, tempfile, asyncio, multiprocessing, concurrent.futures.process  # their own\n"
        f"for name in {MISSING_ELSEWHERE[:6]}: sys.modules.pop(name, None)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "for module in (os, signal, socket):\n"
        f"    for name in {UNIX_NAMES}: vars(module).pop(name, None)\n"
        "import attestation\n"
        "for found in pkgutil.iter_modules(attestation.__path__):\n"
        "    if found.name != '__main__': importlib.import_module(f'attestation.{found.name}')\n"
        "from attestation.cli import main\n"
        "sys.exit(main(['verify', 'no such document', '--any-image']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot read the document" in done.stderr


def test_a_build_loads_neither_cryptography_nor_the_other_commands() -> None:
    """Point: an unchanged build takes less time than those imports."""
    script = (
        "import sys; from host_shim.cli import make_parser; make_parser('image');"
        "print([m for m in ('cryptography', 'cbor2', 'host_shim.enclave_cli', 'cyclonedx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=TOP, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
