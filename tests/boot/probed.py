# SPDX-License-Identifier: MIT
"""An image in which the engine is replaced by a probe, and canaries stand where a worker must not reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from .machines import WASM, Done, Enclave, World, change, copy_source

PROGRAM = "/program/probe.wasm"
KEY_NUMBER = int.from_bytes(hashlib.sha256(b"the key of an isolate in which nothing is secret").digest(), "big")


def canary(name: str) -> tuple[bytes, bytes]:
    """Return the halves of a text of 32 letters that stands nowhere else."""
    text = hashlib.sha256(b"canary " + name.encode()).hexdigest().encode()
    return text[:16], text[16:32]


def whole(name: str) -> str:
    first, second = canary(name)
    return (first + second).decode()


def key_canaries() -> dict[str, tuple[bytes, bytes]]:
    """Return the private key as it may lie in memory: big-endian, OpenSSL's little-endian words, and in its PEM."""
    raw = KEY_NUMBER.to_bytes(32, "big")
    key = ec.derive_private_key(KEY_NUMBER, ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).splitlines()[1]  # its first line
    return {
        "tls-key": (raw[:16], raw[16:]),
        "tls-key-words": (raw[::-1][:16], raw[::-1][16:]),
        "tls-key-pem": (pem[-16:-8], pem[-8:]),
    }


CANARIES = {**key_canaries(), **{name: canary(name) for name in ("beside-the-key", "policy-name", "alice", "bob")}}


def change_engine(source: Path) -> None:
    """Put the probe in the engine's place in a copy of the packages; the jail's own code is not touched."""
    runtime = source / "enclave_image/runtime"
    (runtime / "engine.py").rename(runtime / "real_engine.py")
    (runtime / "engine.py").write_bytes((Path(__file__).parent / "probe_engine.py").read_bytes())
    (runtime / "canaries.py").write_text(
        f"CANARIES = {CANARIES!r}\nCONTROL = {canary('control')!r}\nKEY_NUMBER = {hex(KEY_NUMBER)}\nkept = []\n"
    )
    loaded = "    with contextlib.suppress(OSError):\n        os.sched_setscheduler(0, os.SCHED_OTHER"
    change(runtime / "zygote.py", loaded, "    engine.settle(os.getppid())\n" + loaded)
    decoded = "    task = Task.decode(read_all(task_fd, MAX_TASK))\n"
    change(runtime / "zygote.py", decoded, decoded + "    engine.before_guard(task)\n")
    entered = "            jail.enter(task.jail)\n"
    noted = "            from . import engine\n            engine.before_jail(task)\n"
    change(runtime / "warden.py", entered, noted + entered)
    change(
        runtime / "identity.py", "ec.generate_private_key(ec.SECP256R1())",
        "ec.derive_private_key(KEY_NUMBER, ec.SECP256R1())",
    )  # fmt: skip
    change(runtime / "identity.py", "import os\n", "import os\nfrom .canaries import CANARIES, KEY_NUMBER, kept\n")
    made = '    """Make a key and its certificate: self-signed, CA:FALSE, 2020 to 9999."""\n'
    change(runtime / "identity.py", made, made + '    kept.append(b"".join(CANARIES["beside-the-key"]))\n')


@dataclass(frozen=True, slots=True)
class Probed:
    """A booted image with the probe, and the files of its parties in it."""

    world: World
    enclave: Enclave
    policy: Path

    def party(self, name: str, verb: str, *words: str | Path, expect: int | None = 0) -> Done:
        return self.world.party(name, verb, self.enclave, self.policy, *words, expect=expect)

    def send(self, name: str, path: str, content: bytes) -> None:
        file = self.world.directory / "to-send"
        file.write_bytes(content)
        self.party(name, "send", file, path)

    def run(self, plan: str) -> Done:
        """Run the probe under a plan."""
        self.send("bob", "/input/open/plan", plan.encode())
        return self.party("bob", "run", PROGRAM, "--wait", expect=None)


def build_probe(world: World, directory: Path) -> tuple[World, Path]:
    """Build the changed image once in `directory`, on the host of `world`."""
    probed = World(directory / "probed", directory / "probed-source")
    probed.environment["XDG_STATE_HOME"] = world.environment["XDG_STATE_HOME"]  # the same host and root
    image = probed.directory / "probe.eif"
    if not image.exists():
        change_engine(copy_source(probed.source))
        probed.build("probe")
    return probed, image


@contextmanager
def boot_probe(world: World, directory: Path, *, secrets: bool = True) -> Iterator[Probed]:
    """Boot the changed image under a policy that lets the program read one directory and write another."""
    probed, image = build_probe(world, directory)
    policy = probed.directory / "policy.json"
    rights = {
        "alice": ["/input/alice/:write"],
        "bob": ["/input/bob/:write", "/input/open/:write", "/program/:write", "/output/:read,list",
                f"{PROGRAM}:execute,observe"],
    }  # fmt: skip
    words: list[str | Path] = []
    for name, own in rights.items():
        words += ["--participant", f"{name}={probed.identity(name) / f'{name}.pem'}"]
        words += [word for right in own for word in ("--right", f"{name}:{right}")]
    probed.run(
        "policy", "new", "--name", whole("policy-name"), "--measurements", image.with_suffix(".json"), *words,
        "--program", f"{PROGRAM}={WASM}", "--program-right", f"{PROGRAM}:/input/open/:read",
        "--program-right", f"{PROGRAM}:/output/:write", "--out", policy, "--force",
    )  # fmt: skip
    with probed.enclave(image, policy) as enclave:
        booted = Probed(probed, enclave, policy)
        booted.party("bob", "send", WASM, PROGRAM, "--new-isolate")
        booted.party("alice", "status", "0" * 32, "--new-isolate", expect=None)  # to join is to have connected
        for name in ("alice", "bob") if secrets else ():
            booted.send(name, f"/input/{name}/secret", f"{whole(name)}\n".encode() * 1000)
        yield booted


__all__ = ["CANARIES", "PROGRAM", "Probed", "boot_probe"]
