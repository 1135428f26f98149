# SPDX-License-Identifier: MIT
"""nitro-cli as its public source has it (aws-nitro-enclaves-cli, src/common/json_output.rs): its commands and answers.

Answers are taken in that form only and within limits; keys that we do not know are left alone, since it adds some.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from attestation.errors import escape

from .diagnosis import find_cause
from .errors import NitroCliFailed

MAX_ANSWER = 1 << 20  # bytes
MAX_ENCLAVES = 64  # four are the most that one instance runs
PATIENCE = 60.0  # seconds for a command that asks or ends; it waits 3 s for an enclave's process itself
ID_FORM = re.compile(r"i-[0-9a-f]{8,32}-enc[0-9a-f]{1,16}", re.ASCII)
NAME_FORM = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)
STATES = ("RUNNING", "TERMINATING", "EMPTY")
TELL_ALL = {"BACKTRACE": "1"}  # its errors name the call that failed only then


@dataclass(frozen=True, slots=True)
class Enclave:
    """An enclave that nitro-cli keeps."""

    name: str
    id: str
    pid: int  # of the process of nitro-cli that holds it; it ends when the enclave does
    cid: int
    memory_mib: int
    state: str
    debug: bool


def run_command(
    tool: str, *, image: str, cpus: int, memory_mib: int, cid: int, name: str, debug_mode: bool
) -> list[str]:
    """Return the command that starts an enclave; it ends once the enclave has greeted on port 9000."""
    command = [
        tool, "run-enclave", "--eif-path", image, "--cpu-count", str(cpus), "--memory", str(memory_mib),
        "--enclave-cid", str(cid), "--enclave-name", name,
    ]  # fmt: skip
    return [*command, "--debug-mode"] if debug_mode else command


class NitroCli:
    """The commands that ask and that end."""

    def __init__(self, tool: str) -> None:
        self._tool = tool

    def list(self) -> tuple[Enclave, ...]:
        """Return all enclaves of this user; raise NitroCliFailed."""
        return parse_enclaves(self._run("describe-enclaves"))

    def find(self, name: str) -> Enclave | None:
        """Return the enclave of a name."""
        return next((enclave for enclave in self.list() if enclave.name == name), None)

    def terminate(self, name: str) -> bool:
        """End the enclave of a name; return False if there is none. Raise NitroCliFailed."""
        enclave = self.find(name)
        if enclave is None:
            return False
        parse_terminated(self._run("terminate-enclave", "--enclave-id", enclave.id), enclave.id)
        return True

    def _run(self, *words: str) -> bytes:
        try:
            done = subprocess.run(
                [self._tool, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NitroCliFailed(f"{self._tool} {words[0]} does not answer", actual=error) from error
        if done.returncode != 0:
            lines = [escape(line) for line in done.stderr[:MAX_ANSWER].decode("utf-8", "replace").splitlines() if line]
            cause = find_cause((), lines)
            raise NitroCliFailed(
                f"{self._tool} {words[0]} failed: {cause.cause if cause else 'exit code ' + str(done.returncode)}",
                actual=lines[0] if lines else None, hint=cause.hint if cause else None,
            )  # fmt: skip
        return done.stdout


def parse_enclaves(raw: bytes) -> tuple[Enclave, ...]:
    """Parse what describe-enclaves prints; raise NitroCliFailed for another form."""
    value = _load(raw, "describe-enclaves")
    if not isinstance(value, list) or len(value) > MAX_ENCLAVES:
        raise _another_form("describe-enclaves", f"a list of at most {MAX_ENCLAVES}", value)
    return tuple(_enclave(one, f"describe-enclaves[{index}]") for index, one in enumerate(value))


def parse_started(raw: bytes, name: str) -> Enclave:
    """Parse what run-enclave prints of the enclave of this name; raise NitroCliFailed for another form."""
    value = _load(raw, "run-enclave")
    found = _enclave(
        {**value, "State": "RUNNING", "Flags": "NONE"} if isinstance(value, dict) else value, "run-enclave"
    )
    if found.name != name:
        raise _another_form("run-enclave.EnclaveName", name, found.name)
    return found


def parse_terminated(raw: bytes, enclave_id: str) -> None:
    """Check what terminate-enclave prints; raise NitroCliFailed unless it says that this enclave has ended."""
    value = _load(raw, "terminate-enclave")
    if not isinstance(value, dict) or value.get("EnclaveID") != enclave_id or value.get("Terminated") is not True:
        raise _another_form("terminate-enclave", f"{enclave_id} terminated", value)


def _load(raw: bytes, place: str) -> Any:
    if len(raw) > MAX_ANSWER:
        raise _another_form(place, f"at most {MAX_ANSWER} bytes", f"{len(raw)} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _another_form(place, "JSON", raw[:80].decode("utf-8", "replace")) from error


def _enclave(value: Any, place: str) -> Enclave:
    if not isinstance(value, dict):
        raise _another_form(place, "an object", value)

    def text(key: str, form: re.Pattern[str]) -> str:
        found = value.get(key)
        if not isinstance(found, str) or not form.fullmatch(found):
            raise _another_form(f"{place}.{key}", form.pattern, found)
        return found

    def number(key: str, most: int) -> int:
        found = value.get(key)
        if type(found) is not int or not 0 <= found <= most:
            raise _another_form(f"{place}.{key}", f"0 to {most}", found)
        return found

    return Enclave(
        # Older versions leave the name out of the description.
        name=text("EnclaveName", NAME_FORM) if value.get("EnclaveName") is not None else "",
        id=text("EnclaveID", ID_FORM),
        pid=number("ProcessID", (1 << 22)),
        cid=number("EnclaveCID", (1 << 32) - 1),
        memory_mib=number("MemoryMiB", 1 << 40),
        state=text("State", re.compile("|".join(STATES))),
        debug=text("Flags", re.compile("DEBUG_MODE|NONE")) == "DEBUG_MODE",
    )


def _another_form(place: str, expected: str, actual: object) -> NitroCliFailed:
    return NitroCliFailed(f"nitro-cli's answer has another form: {place}", expected=expected, actual=actual)
