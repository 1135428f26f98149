# SPDX-License-Identifier: MIT
"""Time from `enclave run` to the first verified evidence, beside the same kernel's time to a bare /init."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.chain import load_root
from attestation.channel import fetch_evidence
from attestation.console import say
from attestation.endpoint import Endpoint
from attestation.expectations import Expectations
from attestation.identity import make_identity
from attestation.policy import Policy, parse_policy
from attestation.verifier import Verdict, verify
from enclave_image.eif import Eif, SectionType, read_eif, write_eif
from enclave_image.initramfs import File, Node, write_cpio
from host_shim.accel import Accel
from host_shim.qemu import BootFiles, Machine, QemuIsolate, find_qemu

LIMIT = 120  # seconds for anything
GREETING = b"bare init\n"
VERACRUZ = [sys.executable, "-m", "host_shim.cli"]


def bare_init() -> bytes:
    """Return a static x86-64 ELF that writes GREETING to its stdout and reboots."""
    base, headers = 0x400000, 64 + 56
    code = b"\xb8" + struct.pack("<I", 1) + b"\xbf" + struct.pack("<I", 1)  # write(1,
    tail = b"\xba" + struct.pack("<I", len(GREETING)) + b"\x0f\x05"  # ..., length)
    tail += b"\xb8" + struct.pack("<I", 169) + b"\xbf" + struct.pack("<I", 0xFEE1DEAD)  # reboot(MAGIC1,
    tail += b"\xbe" + struct.pack("<I", 0x28121969) + b"\xba" + struct.pack("<I", 0x01234567)  # MAGIC2, RESTART)
    tail += b"\x0f\x05\xeb\xfe"
    code += b"\x48\x8d\x35" + struct.pack("<I", len(tail)) + tail + GREETING  # lea rsi, [rip + over the tail]
    size = headers + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def time_bare_init(image: Eif, accel: Accel, machine: Machine) -> float:
    """Return the seconds from QEMU's start to the first line of a /init that does nothing else."""
    ramdisk = write_cpio({"dev/console": Node(5, 1, 0o600), "init": File(bare_init(), executable=True)})
    sections = [
        (SectionType.KERNEL, bytes(image.kernel)), (SectionType.CMDLINE, image.cmdline),
        (SectionType.METADATA, b"{}"), (SectionType.RAMDISK, ramdisk),
    ]  # fmt: skip
    with BootFiles(read_eif(write_eif(sections))) as files:
        command = QemuIsolate(find_qemu(), files, machine, accel).command(0)
        for option in ("-chardev", "-device"):  # no vsock: nobody dials
            del command[command.index(option) : command.index(option) + 2]
        begin = time.monotonic()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            pass_fds=[files.kernel.descriptor, files.ramdisks.descriptor],
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if GREETING.strip() in line:
                    seconds = time.monotonic() - begin
                    process.kill()
                    return seconds
    raise SystemExit("the bare kernel did not reach /init")


def make_policy(image: Eif) -> bytes:
    """Return a policy that accepts the image and lets one party do nothing."""
    _, certificate = make_identity("bench")
    registers = {f"PCR{index}": value.hex() for index, value in enumerate(image.measurements.registers)}
    party = {"name": "bench", "certificate": certificate.decode(), "rights": {"/": ["list"]}}
    policy = {
        "schema": "veracruz.policy/1", "name": "bench boot", "images": [registers],
        "participants": [party], "join": ["bench"], "programs": [],
    }  # fmt: skip
    return json.dumps(policy).encode()


def time_evidence(path: Path, image: Eif, scratch: Path, options: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Return the seconds from `enclave run` to verified evidence, and what the run told of itself."""
    (scratch / "policy.json").write_bytes(raw := make_policy(image))
    policy = parse_policy(raw)
    begin = time.monotonic()
    with subprocess.Popen(
        [*VERACRUZ, "enclave", "run", str(path), "--policy", str(scratch / "policy.json"), "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            told = _read_object(process)
            check_evidence(told, policy, image)
            seconds = time.monotonic() - begin
            told["rss_mib"] = _qemu_rss(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            _, talk = process.communicate(timeout=LIMIT)
    steps = re.findall(r"^ *([0-9.]+) s  (policy|serving|[a-z]+ [A-Za-z]+)", talk, re.MULTILINE)
    told["steps"] = {text: float(at) for at, text in steps}
    return seconds, told


def _read_object(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            told: dict[str, Any] = json.loads(text)
            if "endpoint" in told:
                return told
            break
    assert process.stderr is not None
    raise SystemExit(f"the isolate did not come up:\n{process.stderr.read()}")


def check_evidence(told: dict[str, Any], policy: Policy, image: Eif) -> None:
    """Fetch evidence and verify it as a participant does."""
    nonce = os.urandom(32)
    evidence = fetch_evidence(Endpoint.parse(told["endpoint"]), nonce)
    root = load_root(Path(told["root"]).read_bytes())
    expected = Expectations.for_session(policy, [image.measurements], nonce, evidence.public_key)
    appraisal = verify(evidence.document, expected=expected, at=datetime.now(UTC), roots=[root])
    if appraisal.verdict is not Verdict.DEVELOPMENT:
        raise SystemExit(f"unexpected verdict {appraisal.verdict}")


def _qemu_rss(supervisor: int) -> float | None:
    """Return what QEMU holds of this machine's memory, in MiB."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            name = (stat.parent / "comm").read_text()
            if int(fields[1]) == supervisor and name.startswith("qemu"):
                return round(
                    int((stat.parent / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1
                )
        except OSError:
            continue
    return None


def find_image(given: Path | None, scratch: Path) -> Path:
    """Return the image to boot: the one given, else this checkout's, built or taken from the cache."""
    if given is not None:
        return given
    path = scratch / "bench.eif"
    done = subprocess.run([*VERACRUZ, "image", "build", "--out", str(path)], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return path


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench boot", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--image", type=Path, metavar="FILE.eif", help="default: build this checkout's")
    parser.add_argument("--runs", type=int, default=3, help="of each; medians are shown (default 3)")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    args = parser.parse_args()
    options = ["--accel", args.accel, "--memory", str(args.memory)]
    machine = Machine(args.memory, 1)
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder:
        path = find_image(args.image, Path(folder))
        raw = path.read_bytes()
        image = read_eif(raw)
        if args.accel == "auto":  # whether KVM works is found out before the clock runs
            time_evidence(path, image, Path(folder), options)
        evidence, inits = [], []
        for number in range(args.runs):
            seconds, told = time_evidence(path, image, Path(folder), options)
            evidence.append((seconds, told["steps"], told))
            inits.append(time_bare_init(image, Accel(told["accel"]), machine))
            say(f"run {number + 1}: evidence after {seconds:.2f} s, bare /init after {inits[-1]:.2f} s")
    evidence_s, init_s = statistics.median(run[0] for run in evidence), statistics.median(inits)
    middle = sorted(evidence, key=lambda run: run[0])[len(evidence) // 2]
    figures = {
        "evidence_s": round(evidence_s, 2),
        "init_s": round(init_s, 2),
        "evidence_vs_init": round(evidence_s / init_s, 2),
        "eif_mib": round(len(raw) / 2**20, 1),
        "isolate_mib": args.memory,
    }
    context = {
        "accel": middle[2]["accel"], "cpus": machine.cpus, "host_cpus": os.cpu_count(), "runs": args.runs,
        "qemu": find_qemu().banner, "qemu_rss_mib": middle[2]["rss_mib"], "steps_s": middle[1],
        "evidence_all_s": [round(run[0], 2) for run in evidence], "init_all_s": [round(one, 2) for one in inits],
        "load": [round(one, 1) for one in os.getloadavg()],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "boot", "ratios": figures, "context": context}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:17} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
