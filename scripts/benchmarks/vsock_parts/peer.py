# SPDX-License-Identifier: MIT
"""The other backend: vhost-device-vsock, one package of Debian's unstable, pinned and unpacked by our own reader.

It needs libc6 >= 2.34 alone, so it runs on Debian 12 and 13 too; no source of packages is added to the machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from attestation.errors import VeracruzError
from enclave_image.cache import Cache
from enclave_image.config import find_mirrors, load_config
from enclave_image.debian import unpack
from enclave_image.fetch import fetch_inputs
from enclave_image.lock import Archive, LockedPackage

PACKAGE = LockedPackage(
    name="vhost-device-vsock",
    version="0.3.0-2",
    roles=frozenset(),
    archive=Archive.DEBIAN,
    path="pool/main/r/rust-vhost-device-vsock/vhost-device-vsock_0.3.0-2_amd64.deb",
    size=945484,
    sha256="fd36382419cc174f00d9b1691486b581e13e8c1168dc339b86b2a65180a29ce7",
)
PROGRAM = "usr/bin/vhost-device-vsock"


class NoPeer(Exception):
    """The package is not to be had here; the text says why."""


def find_peer() -> Path:
    """Return the program, fetched and unpacked into the cache once; raise NoPeer."""
    cache = Cache()
    try:
        entry = cache.find(PACKAGE.name, PACKAGE.sha256)
        if entry is None:
            inputs = fetch_inputs([PACKAGE], find_mirrors(load_config()))
            with cache.make(PACKAGE.name, PACKAGE.sha256) as making:
                unpack(inputs[PACKAGE.name], making.product, keep=lambda name: name == PROGRAM)
            entry = cache.demand(PACKAGE.name, PACKAGE.sha256)
    except (VeracruzError, OSError) as error:
        raise NoPeer(f"{PACKAGE.name} {PACKAGE.version} cannot be had: {error}") from error
    program = entry / PROGRAM
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise NoPeer(f"{PACKAGE.name} does not run here: {done.stderr.strip()[:200]}")
    return program


def peer_command(program: Path, vhost: Path, base: Path, cid: int) -> list[str]:
    """Return its command: the host's ports as Unix sockets `base_PORT`, sizes as it has them by default."""
    return [str(program), "--vm", f"guest-cid={cid},socket={vhost},uds-path={base}"]
