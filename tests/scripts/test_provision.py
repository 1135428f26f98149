# SPDX-License-Identifier: MIT
"""scripts/provision on a machine whose apt-get, dpkg-query, sudo and Python we look at; and the Vagrantfile."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "cat", "cut", "sha256sum", "dirname", "env", "rm", "mkdir", "chmod", "cp")
PACKAGES = ("python3", "python3-venv", "qemu-system-x86")

# Each stub writes what it was called with to $LOG.
RECORD = '#!/bin/sh\necho "$(basename "$0") $*" >>"$LOG"\n'
PYTHON = RECORD + (
    'case "$*" in\n'
    '"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && : >.venv/bin/pip ;;\n'
    '"-c import pip") [ -e .venv/bin/pip ] ;;\n'
    '"-c "*version_info*) [ -z "${OLD_PYTHON:-}" ] ;;\n'
    '*requirements.lock) [ -z "${NO_NETWORK:-}" ] ;;\n'
    "esac\n"
)


@dataclass
class Bare:
    """A checkout and a PATH of its own."""

    checkout: Path
    bin: Path
    log: Path

    def stub(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def provision(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [str(self.checkout / "scripts" / "provision"), *arguments], capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL, check=False, env={"PATH": str(self.bin), "LOG": str(self.log), **environment},
        )  # fmt: skip

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(name + " ")]


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    checkout, folder = tmp_path / "a checkout", tmp_path / "bin"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("scripts/provision", "scripts/prepare.sh", "scripts/requirements.lock", "pyproject.toml"):
        shutil.copy(TOP / name, checkout / name)
    folder.mkdir()
    for name in (*TOOLS, "basename"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    machine = Bare(checkout, folder, tmp_path / "log")
    machine.stub("dpkg-query", RECORD + 'echo "unknown ok not-installed"\n')
    machine.stub("apt-get", RECORD)
    machine.stub("sudo", RECORD + 'exec "$@"\n')
    machine.stub("id", "#!/bin/sh\necho 0\n")
    machine.stub("python3", PYTHON)
    return machine


def test_installs_what_is_missing_and_makes_the_environment(bare: Bare) -> None:
    done = bare.provision()
    assert done.returncode == 0, done.stderr
    (update, install) = bare.calls("apt-get")
    assert update.startswith("apt-get update")
    assert all(package in install.split() for package in PACKAGES)
    assert "--no-install-recommends" in install
    assert any("--require-hashes" in call for call in bare.calls("python"))
    assert "installing Debian packages: python3" in done.stderr
    assert "making .venv" in done.stderr
    assert done.stdout == ""


def test_leaves_alone_what_is_there(bare: Bare) -> None:
    assert bare.provision().returncode == 0
    bare.stub("dpkg-query", RECORD + 'echo "install ok installed"\n')
    done = bare.provision()
    assert done.returncode == 0
    assert done.stderr == ""
    assert bare.calls("apt-get") == bare.calls("python") == bare.calls("python3") == []


def test_installs_only_the_package_that_is_missing(bare: Bare) -> None:
    bare.stub("dpkg-query", RECORD + 'case "$*" in *qemu*) exit 1 ;; *) echo "install ok installed" ;; esac\n')
    assert bare.provision().returncode == 0
    assert bare.calls("apt-get")[-1].split()[-1] == "qemu-system-x86"
    assert "python3-venv" not in bare.calls("apt-get")[-1]


def test_the_machines_part_alone_makes_no_environment(bare: Bare) -> None:
    assert bare.provision("--system").returncode == 0
    assert bare.calls("apt-get")
    assert not (bare.checkout / ".venv").exists()


def test_asks_sudo_where_it_is_not_root(bare: Bare) -> None:
    bare.stub("id", "#!/bin/sh\necho 1000\n")
    assert bare.provision().returncode == 0
    assert [call.split()[1] for call in bare.calls("sudo")] == ["apt-get", "env"]


def test_says_what_to_run_where_there_is_no_sudo(bare: Bare) -> None:
    bare.stub("id", "#!/bin/sh\necho 1000\n")
    (bare.bin / "sudo").unlink()
    done = bare.provision()
    assert done.returncode == 3
    assert "error: apt-get needs root, and there is no sudo" in done.stderr
    assert "hint: run as root: apt-get update" in done.stderr


def test_says_what_is_missing_where_there_is_no_apt(bare: Bare) -> None:
    (bare.bin / "apt-get").unlink()
    done = bare.provision()
    assert done.returncode == 3
    assert "error: missing packages: python3 python3-venv qemu-system-x86" in done.stderr


def test_refuses_an_old_python(bare: Bare) -> None:
    done = bare.provision(OLD_PYTHON="1")
    assert done.returncode == 3
    assert "error: no Python 3.11 or later with venv" in done.stderr


def test_a_failed_apt_fails_it(bare: Bare) -> None:
    bare.stub("apt-get", RECORD + "exit 100\n")
    assert bare.provision().returncode != 0
    assert not (bare.checkout / ".venv").exists()


def test_begins_again_where_it_was_interrupted(bare: Bare) -> None:
    assert bare.provision(NO_NETWORK="1").returncode != 0
    assert not (bare.checkout / ".venv" / ".veracruz-prepared").exists()
    (bare.checkout / ".venv" / "bin" / "pip").unlink()  # as if venv itself was cut off
    done = bare.provision()
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stderr


def test_prepares_anew_when_the_lock_changes(bare: Bare) -> None:
    assert bare.provision().returncode == 0
    with (bare.checkout / "scripts" / "requirements.lock").open("a") as lock:
        lock.write("# another\n")
    assert bare.provision().returncode == 0
    assert any("--require-hashes" in call for call in bare.calls("python"))


def test_refuses_an_unknown_option(bare: Bare) -> None:
    done = bare.provision("--everything")
    assert done.returncode == 2
    assert "usage: scripts/provision [--system]" in done.stderr
    assert bare.log.read_text() == ""


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="no vagrant here")
def test_the_vagrantfile_is_valid(tmp_path: Path) -> None:
    environment = os.environ | {"VAGRANT_HOME": str(tmp_path), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"], cwd=TOP, capture_output=True, text=True, timeout=100, check=False,
        stdin=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_the_vagrantfile_provisions_by_the_script_alone() -> None:
    text = (TOP / "Vagrantfile").read_text()
    assert "sh /vagrant/scripts/provision --system" in text
    assert '"$HOME/veracruz/scripts/provision"' in text
    assert "pip " not in text
