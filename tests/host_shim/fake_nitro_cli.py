# SPDX-License-Identifier: MIT
"""A nitro-cli without Nitro, for tests: commands, answers, errors and life cycle as the real one's source has them.

What it keeps of the original (aws-nitro-enclaves-cli): an enclave's own process, daemonized, that outlives the command;
run-enclave returns once the enclave has sent 0xB7 to port 9000, which this program answers itself; describe-enclaves
prints a list, terminate-enclave takes an id or a name; an error goes to stderr as "[ E.. ] ...", first the enclave's
process's own, then E39 of the command that got no answer, and is the exit code.
What is not the original's: the enclave is tests.host_shim.stub_guest on Unix sockets under FAKE_NITRO/NAME.
FAKE_NITRO_FAULT makes it fail: E26, E27, no-device, no-permission, boot, garbage, slow.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(os.environ["FAKE_NITRO"])
FAULT = os.environ.get("FAKE_NITRO_FAULT", "")
WAY = os.environ.get("FAKE_NITRO_WAY", "serves")
TOP = Path(__file__).resolve().parents[2]
MORE = "For more details, please visit https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html#"


def fail(code: str, text: str, *, number: int, subaction: str = "") -> int:
    """Report an error as nitro-cli does, with its backtrace if BACKTRACE is 1."""
    print(f"[ {code} ] {text}\n\n{MORE}{code}", file=sys.stderr)
    if os.environ.get("BACKTRACE") == "1":
        print(f"\nBacktrace:\n  Action: Run Enclave\n  Subactions:\n    {subaction}", file=sys.stderr)
    return number


def no_answer() -> int:
    """Report that the enclave's process sent no answer."""
    print("Failed connections: 1", file=sys.stderr)
    text = (
        "Enclave process connection failure. Such error appears when the enclave manager fails to connect to at least"
        " one enclave process for retrieving the description information."
    )
    return fail("E39", text, number=39, subaction="Failed to connect to 1 enclave processes")


def run(args: argparse.Namespace) -> int:
    """Start an enclave; return once it has greeted."""
    print("Start allocating memory...", file=sys.stderr)
    least = 4 * -(-Path(args.eif_path).stat().st_size // 2**20)
    if int(args.memory) < least or FAULT == "E26":
        fail(
            "E26",
            f"Insufficient memory requested. User provided `memory` is {args.memory} MB, but based on the EIF file"
            f" size, the minimum memory should be {least} MB",
            number=26,
        )
        return no_answer()
    if FAULT == "E27":
        text = f"Insufficient memory available. User provided `memory` is {args.memory} MB, which is more than the"
        fail(
            "E27", text + " available hugepage memory.", number=27, subaction="Failed to allocate entire memory (64 MB)"
        )
        return no_answer()
    if FAULT in ("no-device", "no-permission"):
        system = 'code: 2, kind: NotFound, message: "No such file or directory"'
        if FAULT == "no-permission":
            system = 'code: 13, kind: PermissionDenied, message: "Permission denied"'
        text = "File operation failure.\nFile: '/dev/nitro_enclaves', failing operation: 'Open'."
        fail("E19", text, number=19, subaction=f"Failed to open device file: Os {{ {system} }}")
        return no_answer()
    place = HOME / args.enclave_name
    place.mkdir(exist_ok=True)
    answer, answer_end = os.pipe()
    if os.fork() == 0:
        os.close(answer)
        os.setsid()
        if os.fork():
            os._exit(0)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        hold(args, place, answer_end)
        os._exit(0)
    os.close(answer_end)
    os.wait()
    if FAULT == "slow":
        time.sleep(600)
    with os.fdopen(answer, "rb") as source:
        said = source.read()
    if not said:
        fail("E36", "Enclave boot failure.", number=36, subaction="Waiting on enclave to boot failed with error")
        return no_answer()
    info = json.loads(said)
    print(f"Started enclave with enclave-cid: {info['EnclaveCID']}", file=sys.stderr)
    if FAULT == "garbage":
        info["EnclaveCID"] = "sixteen"
    print(json.dumps({key: info[key] for key in RUN_KEYS}, indent=2))
    return 0


RUN_KEYS = ("EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB")


def hold(args: argparse.Namespace, place: Path, answer: int) -> None:
    """Be the enclave's process: keep the guest, end when it does, end it when told (or killed)."""
    base = f"{place}/v"
    (place / "pid").write_text(str(os.getpid()))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{base}_9000")
        listener.listen()
        listener.settimeout(20)
        with (place / "console").open("wb") as console:
            guest = subprocess.Popen(
                [sys.executable, "-m", "tests.host_shim.stub_guest", base, WAY],
                cwd=TOP, stdout=console, stderr=console, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            if FAULT == "boot":
                guest.kill()
            while guest.poll() is None:
                listener.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection:
                        if connection.recv(1) == b"\xb7":
                            connection.sendall(b"\xb7")
                            break
            else:
                return
            cpus = int(args.cpu_count)
            info = {
                "EnclaveName": args.enclave_name,
                "EnclaveID": f"i-0123456789abcdef0-enc{os.urandom(8).hex()}",
                "ProcessID": os.getpid(),
                "EnclaveCID": int(args.enclave_cid),
                "NumberOfCPUs": cpus,
                "CPUIDs": list(range(1, 2 * cpus, 2)),
                "MemoryMiB": int(args.memory),
                "State": "RUNNING",
                "Flags": "DEBUG_MODE" if args.debug_mode else "NONE",
                "Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": "00" * 48},
            }
            (place / "info.tmp").write_text(json.dumps(info))
            (place / "info.tmp").rename(place / "info.json")
            os.write(answer, json.dumps(info).encode())
            os.close(answer)
            signal.signal(signal.SIGTERM, lambda *_: guest.kill())
            guest.wait()
        finally:
            guest.kill()
            guest.wait()
            (place / "info.json").unlink(missing_ok=True)


def die_with_parent() -> None:
    """As the driver ends the enclave of a process that is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def enclaves() -> list[dict[str, Any]]:
    """Return what the living processes would answer; what the dead left is removed, as nitro-cli removes sockets."""
    found = []
    for path in sorted(HOME.glob("*/info.json")):
        with contextlib.suppress(FileNotFoundError):
            info = json.loads(path.read_text())
            if not lives(info["ProcessID"]):
                path.unlink(missing_ok=True)
            else:
                found.append(info)
    return found


def terminate(args: argparse.Namespace) -> int:
    """End an enclave."""
    for info in enclaves():
        if info["EnclaveID"] == args.enclave_id or info["EnclaveName"] == args.enclave_name:
            os.kill(info["ProcessID"], signal.SIGTERM)
            while any(other["EnclaveID"] == info["EnclaveID"] for other in enclaves()):
                time.sleep(0.01)
            print(f"Successfully terminated enclave {info['EnclaveID']}.", file=sys.stderr)
            told = {"EnclaveName": info["EnclaveName"], "EnclaveID": info["EnclaveID"], "Terminated": True}
            print(json.dumps(told, indent=2))
            return 0
    return fail("E11", "Socket error.", number=11, subaction="Failed to connect to enclave process")


def main() -> int:
    """Take a command as nitro-cli does."""
    parser = argparse.ArgumentParser(prog="nitro-cli")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("run-enclave")
    for option in ("--eif-path", "--cpu-count", "--memory", "--enclave-cid", "--enclave-name"):
        start.add_argument(option)
    start.add_argument("--debug-mode", action="store_true")
    end = commands.add_parser("terminate-enclave")
    end.add_argument("--enclave-id")
    end.add_argument("--enclave-name")
    commands.add_parser("describe-enclaves")
    args = parser.parse_args()
    match args.command:
        case "run-enclave":
            return run(args)
        case "terminate-enclave":
            return terminate(args)
    print(json.dumps(enclaves(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
