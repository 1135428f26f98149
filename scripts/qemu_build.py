# SPDX-License-Identifier: MIT
"""What scripts/build_qemu does once the machine is prepared: fetch by hash, unpack, configure, compile, keep.

The product is a directory in the cache: bin/qemu-system-x86_64 and, where it looks for them, the firmware files of this
machine's own QEMU package (Debian's source comes without). Nothing is installed; no root is needed here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from attestation.console import as_told, report, run_command, say
from attestation.errors import VeracruzError
from enclave_image.cache import Cache, demand_space, using_cache
from enclave_image.config import cache_dir, find_mirrors, find_snapshot, load_config
from enclave_image.errors import BuildFailed, InputUnavailable, MalformedConfig
from enclave_image.fetch import Snapshot, fetch_inputs
from enclave_image.lock import Archive, LockedPackage
from enclave_image.run import run

LOCK = Path(__file__).with_name("qemu.lock")
SCHEMA = "veracruz.qemu/1"
RECIPE = "qemu/1"  # part of the cache's key: change it when the steps below change their product
MACHINE = "nitro-enclave"
PROGRAM = "qemu-system-x86_64"
SPACE = 2_000_000_000  # bytes: the source unpacked, its objects
# The machine, its devices, and nothing else; both accelerators. KVM needs no library.
DEVICES = "CONFIG_MICROVM=y\nCONFIG_NITRO_ENCLAVE=y\n"
OPTIONS = (
    "--target-list=x86_64-softmmu", "--without-default-features", "--without-default-devices",
    "--with-devices-x86_64=veracruz", "--enable-system", "--enable-tcg", "--enable-kvm", "--enable-fdt=system",
    "--enable-gnutls", "--enable-libcbor", "--enable-vhost-user", "--enable-seccomp", "--disable-install-blobs",
    "--disable-docs", "--disable-werror",
)  # fmt: skip
FIRMWARE = ("qboot.rom", "linuxboot_dma.bin", "kvmvapic.bin")
FIRMWARE_DIRS = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))


@dataclass(frozen=True, slots=True)
class Pins:
    """What `qemu.lock` says."""

    suite: str
    version: str
    files: tuple[LockedPackage, ...]  # .dsc, .orig.tar.xz, .debian.tar.xz
    meson: tuple[str, str]  # version, SHA-256 of the wheel


def load_pins() -> Pins:
    """Read `qemu.lock`."""
    raw = LOCK.read_bytes()
    try:
        table = tomllib.loads(raw.decode())
        if table["schema"] != SCHEMA:
            raise MalformedConfig(f"{LOCK.name}: schema", expected=SCHEMA, actual=table["schema"])
        files = tuple(_pinned(table["version"], **row) for row in table["file"])
        meson = (table["meson"]["version"], table["meson"]["sha256"])
        return Pins(table["suite"], table["version"], files, meson)
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedConfig(f"{LOCK.name} is not of its form", actual=repr(error)) from error


def _pinned(version: str, *, path: str, size: int, sha256: str, sha1: str) -> LockedPackage:
    return LockedPackage(path.rsplit("/", 1)[-1], version, frozenset(), Archive.DEBIAN, path, size, sha256, sha1)


def key(pins: Pins) -> str:
    """Return the hash of all that decides on the product; a new release of this system has other libraries."""
    system = platform.freedesktop_os_release()
    inputs = [*(entry.sha256 for entry in pins.files), *pins.meson]
    parts = [RECIPE, *inputs, DEVICES, *OPTIONS, system.get("ID", ""), system.get("VERSION_ID", ""), platform.machine()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def link() -> Path:
    """Return the stable name of the newest product: what looks for this QEMU looks there."""
    return cache_dir() / "qemu-nitro"


def find(cache: Cache, pins: Pins) -> Path | None:
    """Return the program, if it was built and runs here."""
    entry = cache.find("qemu", key(pins))
    program = entry / "bin" / PROGRAM if entry else None
    return program if program and has_machine(program) else None


def has_machine(program: Path) -> bool:
    """Tell whether a QEMU runs and has the machine."""
    try:
        done = subprocess.run(
            [program, "-M", "help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return False
    return done.returncode == 0 and MACHINE in done.stdout.split()


def build(cache: Cache, pins: Pins) -> Path:
    """Build it; return the program."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    demand_space(cache_dir(), SPACE)
    if (stale := cache.find("qemu", key(pins))) is not None:  # it runs no more: a library has gone
        shutil.rmtree(stale)
    config = load_config()
    files = fetch_inputs(pins.files, find_mirrors(config), snapshot=Snapshot.named(find_snapshot(config)))
    firmware = [find_firmware(name) for name in FIRMWARE]
    start = time.monotonic()
    with cache.make("qemu", key(pins)) as out:
        log = cache.log("qemu", key(pins))
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(out.scratch)}
        source, objects, venv = (out.scratch / name for name in ("source", "objects", "venv"))
        say(f"unpacking QEMU {pins.version} with Debian's patches")
        downloads = out.scratch / "downloads"
        downloads.mkdir()
        for name, path in files.items():
            (downloads / name).symlink_to(path)
        dsc = next(name for name in files if name.endswith(".dsc"))
        # The hashes are ours, from the lock; the signature's key may be in no keyring of an older system.
        run(
            ["dpkg-source", "--no-check", "--extract", downloads / dsc, source],
            what="unpacking QEMU", log=log, env=environment,
        )  # fmt: skip
        (source / "configs/devices/x86_64-softmmu/veracruz.mak").write_text(DEVICES)
        say("configuring it")
        make_venv(venv, pins)
        objects.mkdir()
        configure = [source / "configure", f"--python={venv / 'bin/python3'}", *OPTIONS]
        script = f"cd {objects} && exec {' '.join(map(str, configure))}"
        run(["/bin/sh", "-c", script], what="configuring QEMU", log=log, env=environment)
        say(f"compiling it (about five minutes on two cores; the log is {log})")
        run(["ninja", "-C", objects, PROGRAM], what="compiling QEMU", log=log, env=environment)
        program = out.product / "bin" / PROGRAM
        for directory in (program.parent, out.product / "share/qemu"):
            directory.mkdir(parents=True)
        run(["strip", "-o", program, objects / PROGRAM], what="stripping QEMU", log=log)
        for path in firmware:
            shutil.copyfile(path, out.product / "share/qemu" / path.name)
        if not has_machine(program):
            raise BuildFailed(f"the QEMU that was built has no machine {MACHINE}", hint=f"see {log}: libcbor, gnutls")
    say(f"QEMU built in {time.monotonic() - start:.0f} s")
    return cache.demand("qemu", key(pins)) / "bin" / PROGRAM


def make_venv(target: Path, pins: Pins) -> None:
    """Make an environment with QEMU's build system in it, checked by hash."""
    version, sha256 = pins.meson
    requirements = target.with_name("meson.txt")
    requirements.write_text(f"meson=={version} --hash=sha256:{sha256}\n")
    for words in (
        ["-m", "venv", str(target)],
        ["-m", "pip", "--python", str(target / "bin/python3"), "install", "--quiet", "--disable-pip-version-check",
         "--require-hashes", "--requirement", str(requirements)],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise InputUnavailable("pip could not bring meson", actual=" ".join(done.stderr.split())[-400:])


def find_firmware(name: str) -> Path:
    """Return one of the machine's own firmware files."""
    for directory in FIRMWARE_DIRS:
        if (path := directory / name).is_file():
            return path
    raise InputUnavailable(
        f"no {name} on this machine", expected=" or ".join(map(str, FIRMWARE_DIRS)),
        hint="apt-get install --no-install-recommends qemu-system-x86 seabios",
    )  # fmt: skip


def set_link(program: Path) -> None:
    """Let the stable name lead to this product."""
    temporary = link().with_name(f".{link().name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(program.parent.parent.relative_to(cache_dir()))
    temporary.replace(link())


def main() -> int:
    """Find it or build it; print its path."""
    parser = argparse.ArgumentParser(prog="scripts/build_qemu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--find", action="store_true", help="build nothing: exit code 3 where there is none")
    args = parser.parse_args()
    try:
        pins, cache = load_pins(), Cache()
        with using_cache():
            program = find(cache, pins)
            if program is None and args.find:
                raise InputUnavailable(f"no QEMU with the machine {MACHINE} was built", hint="scripts/build_qemu")
            program = program or build(cache, pins)
            set_link(program)
        print(program)
    except (VeracruzError, OSError) as error:
        told = as_told(error)
        report(told, as_json=False)
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
