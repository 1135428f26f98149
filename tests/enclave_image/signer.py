# SPDX-License-Identifier: MIT
"""A key that signs as an archive does, by a real gpg with a home of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("gpg", "gpg-agent", "gpgv")
MISSING = ", ".join(f"no {tool} here" for tool in TOOLS if shutil.which(tool) is None)
LIMIT = 60  # seconds


class Signer:
    """A key pair in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)
        self.gpg("--passphrase", "", "--quick-generate-key", "Archive <archive@example.invalid>", "ed25519", "sign")
        self.keyring = home / "keyring.gpg"
        self.gpg("--output", str(self.keyring), "--export")

    def gpg(self, *words: str, data: bytes = b"") -> bytes:
        command = ["gpg", "--batch", "--homedir", str(self.home), "--pinentry-mode", "loopback", *words]
        return subprocess.run(command, input=data, capture_output=True, check=True, timeout=LIMIT).stdout

    def sign(self, text: str, *words: str) -> bytes:
        return self.gpg(*words, "--clearsign", data=text.encode())

    def close(self) -> None:
        command = ["gpgconf", "--homedir", str(self.home), "--kill", "all"]
        subprocess.run(command, capture_output=True, check=False, timeout=LIMIT)


@contextlib.contextmanager
def new_signer() -> Iterator[Signer]:
    """Make a key for the body. Its home is not below pytest's: an agent's socket has a path of at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vgpg-") as top:
        signer = Signer(Path(top) / "home")
        try:
            yield signer
        finally:
            signer.close()
