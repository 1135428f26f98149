# SPDX-License-Identifier: MIT
"""Whether KVM works here: found out once by booting with it, and remembered until the machine or QEMU changes.

/dev/kvm may be there and be of no use: on nested machines QEMU aborts, stalls at the guest's first AVX instruction, or
never starts the guest at all. What was found lies in the cache: losing it costs some seconds.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path

from attestation.errors import VeracruzError
from attestation.files import write_whole
from enclave_image.config import cache_dir

KVM = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Accel(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


def kvm_opens() -> bool:
    """Whether this user may open KVM's device."""
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class KvmVerdict:
    """The remembered answer, for one boot of this machine and one version of QEMU."""

    def __init__(self, qemu: str, home: Path | None = None) -> None:
        self._path = (home or cache_dir()) / "kvm.json"
        self._key = {"boot": _boot_id(), "qemu": qemu}

    def read(self) -> bool | None:
        """Return whether KVM worked; None if it was never tried."""
        try:
            found = json.loads(self._path.read_bytes()[:4096])
            works = found.pop("works")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return works if found == self._key and isinstance(works, bool) else None

    def write(self, works: bool) -> None:
        """Remember; where that cannot be, it is found out again."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps({**self._key, "works": works}).encode(), mode=0o600)
        except (OSError, VeracruzError):
            return


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return "unknown"
