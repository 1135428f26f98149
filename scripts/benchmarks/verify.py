# SPDX-License-Identifier: MIT
"""Verify documents cold, warm and in a batch, beside bare P-384 verifications and other verifiers."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import cryptography
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP))  # the document factory is the tests'

from attestation.batch import usable_cores, verify_batch  # noqa: E402
from attestation.chain import Root, aws_root  # noqa: E402
from attestation.chain_cache import ChainCache  # noqa: E402
from attestation.console import say  # noqa: E402
from attestation.cose import parse_sign1  # noqa: E402
from attestation.document import parse_document  # noqa: E402
from attestation.errors import AttestationError  # noqa: E402
from attestation.expectations import Expectations, ImageIs, NonceIs  # noqa: E402
from attestation.verifier import Appraisal, archived_time, verify  # noqa: E402
from tests.attestation.documents import IMAGE, NONCE, make_document, make_pki, milliseconds  # noqa: E402

DOCUMENTS = "VERACRUZ_NITRO_DOCUMENTS"  # a folder of documents that AWS signed
ROUNDS = 200
BLOCK = 40  # rounds between two looks at a peer
BATCH = 2000  # documents
LIMIT = 300  # seconds for anything

# Name in the figures: what to install. Versions are fixed, so that a figure says of what it is. cbor2: epsilon takes
# only its version 5's lists for arrays; the others run with it too.
PEERS = {
    "epsilon": ["epsilon-attestation-verifier==1.1.0", "cbor2==5.9.0"],
    "attested_relay": ["attested-relay==0.2.0a4", "cbor2==5.9.0"],
    "aimarket": ["aimarket-tee==2.0.1", "aimarket-hub==3.16.0", "cbor2==5.9.0"],
}
# It trusts AWS's root at the machine's time alone, so it gets a document that AWS signed and, by libfaketime (Debian
# has a package of that name), the document's own time.
ARCHIVED = {"evervault": ["evervault-attestation-bindings==0.5.0"]}
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@dataclass(frozen=True)
class Specimen:
    """A sound document and all that it takes to verify it."""

    document: bytes
    expected: Expectations
    at: datetime
    root: Root

    def cold(self) -> Appraisal:
        """Verify it with nothing remembered."""
        return verify(self.document, expected=self.expected, at=self.at, roots=[self.root])

    def bare(self) -> list[Callable[[], None]]:
        """Return the five bare verifications that it takes at least: keys, signatures and messages laid ready."""
        sign1 = parse_sign1(self.document)
        claims = parse_document(sign1.payload)
        path = [x509.load_der_x509_certificate(der) for der in (*claims.cabundle, claims.certificate)]
        algorithm = ec.ECDSA(hashes.SHA384())
        r, s = (int.from_bytes(half, "big") for half in (sign1.signature[:48], sign1.signature[48:]))
        jobs = [(a.public_key(), b.signature, b.tbs_certificate_bytes) for a, b in pairwise(path)]
        jobs.append((path[-1].public_key(), encode_dss_signature(r, s), sign1.to_be_signed))

        def one(key: Any, signature: bytes, message: bytes) -> Callable[[], None]:
            return lambda: key.verify(signature, message, algorithm)

        return [one(*job) for job in jobs]


def make_specimen() -> Specimen:
    """Make a document of this moment: some peers know no other time."""
    now = datetime.now(UTC)
    pki = make_pki(at=now)
    expected = Expectations.of(ImageIs.any_of([IMAGE]), NonceIs(NONCE))
    return Specimen(make_document(pki, timestamp=milliseconds(now)), expected, now, pki.root)


def real_specimens() -> dict[str, Specimen]:
    """Return the sound production documents of the folder that the environment names, by file name."""
    found = {}
    folder = os.environ.get(DOCUMENTS)
    for path in sorted(Path(folder).glob("*.cbor")) if folder else ():
        raw = path.read_bytes()
        try:
            image = parse_document(parse_sign1(raw).payload).measurements
            if image.debug:
                continue
            specimen = Specimen(raw, Expectations.of(ImageIs.any_of([image])), archived_time(raw), aws_root())
            specimen.cold()
        except AttestationError:
            continue
        found[path.name] = specimen
    return found


def time_rounds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each job, done in turn in every round; no garbage is collected meanwhile."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, job in jobs.items():
                begin = time.perf_counter()
                job()
                times[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return times


def time_specimen(specimen: Specimen, rounds: int) -> dict[str, list[float]]:
    """Time one document cold and warm beside its bare verifications."""
    links, bare = ChainCache(), specimen.bare()

    def raw_5() -> None:
        for one in bare:
            one()

    def warm() -> Appraisal:
        return verify(specimen.document, expected=specimen.expected, at=specimen.at, roots=[specimen.root], links=links)

    if warm() != specimen.cold() or warm() != specimen.cold():
        raise SystemExit("warm and cold differ")
    return time_rounds({"raw_1": bare[-1], "warm": warm, "raw_5": raw_5, "cold": specimen.cold}, rounds)


def compare(times: dict[str, list[float]]) -> dict[str, float | None]:
    """Return the medians of each round's own ratios: its jobs met the same load."""

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[one], times[other], strict=True)), 2)

    return {"cold_vs_5_raw": ratio("cold", "raw_5"), "warm_vs_1_raw": ratio("warm", "raw_1")}


def time_batch(specimen: Specimen, count: int, processes: int) -> float:
    """Return documents a second, from the first result on: starting processes takes as long for ten as for millions."""
    outcomes = verify_batch(
        (specimen.document for _ in range(count)), expected=specimen.expected, at=specimen.at, roots=[specimen.root],
        processes=processes,
    )  # fmt: skip
    next(outcomes)
    begin = time.perf_counter()
    if not all(isinstance(outcome, Appraisal) for outcome in outcomes):
        raise SystemExit("the batch refused a sound document")
    return (count - 1) / (time.perf_counter() - begin)


def install_peer(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a peer's own virtual environment; raise OSError or CalledProcessError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veracruz" / "bench-peers"
    folder = cache / f"{name}-{'-'.join(requirements).replace('==', '-')}-{platform.python_version()}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        say(f"installing {requirements[0]}")
        quiet: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "timeout": LIMIT}
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], **quiet)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *requirements], **quiet)
        (folder / "complete").touch()
    return python


class Peer:
    """A peer's process, which times itself."""

    def __init__(self, python: Path, job: dict[str, str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-I", str(Path(__file__).parent / "peers" / "time_peer.py")], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.ask(json.dumps(job))

    def ask(self, line: str) -> dict[str, Any]:
        """Return the answer to one line; raise RuntimeError with what the peer says if it ends instead."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(process.stderr.read().strip()[-300:] or "it ended")
        told: dict[str, Any] = json.loads(answer)
        return told

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=LIMIT)


def time_peer(name: str, requirements: Sequence[str], specimen: Specimen, rounds: int, *, archived: bool) -> float:
    """Return a peer's time over our cold time, measured in turns; raise RuntimeError where that cannot be had."""
    try:
        python = install_peer(name, requirements)
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise RuntimeError(f"not installed: {told[-1]}") from error
    environment = dict(os.environ)
    if archived:
        moment = specimen.at.strftime("@%Y-%m-%d %H:%M:%S")
        environment |= {
            "LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": moment, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC",
        }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder:
        scratch = Path(folder)
        (scratch / "document").write_bytes(specimen.document)
        root = x509.load_der_x509_certificate(specimen.root.certificate)
        (scratch / "nitro-root.pem").write_bytes(root.public_bytes(Encoding.PEM))
        pcr0 = parse_document(parse_sign1(specimen.document).payload).pcrs[0].hex()
        names = {"document": "document", "root": "nitro-root.pem", "folder": "."}
        job = {"peer": name, "pcr0": pcr0, **{key: str(scratch / file) for key, file in names.items()}}
        ratios: list[float] = []
        peer = Peer(python, job, environment)
        try:
            for _ in range(max(rounds // BLOCK, 1)):
                ours = statistics.median(time_rounds({"cold": specimen.cold}, BLOCK)["cold"])
                ratios.append(peer.ask(str(BLOCK))["seconds"] / ours)
        finally:
            peer.close()
    return round(statistics.median(ratios), 2)


def time_peers(specimen: Specimen, real: Sequence[Specimen], rounds: int) -> tuple[dict[str, float | None], Any]:
    """Return each peer's ratio, null where there is none, and what of it was run or why not."""
    ratios: dict[str, float | None] = {}
    told = {}
    for name, requirements in {**PEERS, **ARCHIVED}.items():
        archived = name in ARCHIVED
        told[name] = requirements[0]
        ratios[f"vs_{name}"] = None
        if archived and not (real and FAKETIME):
            told[name] += f": not run; it takes documents in {DOCUMENTS} and libfaketime"
            continue
        try:
            chosen = real[0] if archived else specimen
            ratios[f"vs_{name}"] = time_peer(name, requirements, chosen, rounds, archived=archived)
        except (RuntimeError, OSError, ValueError) as error:
            told[name] += f": {error}"
    return ratios, told


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench verify", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each; medians are shown (default {ROUNDS})")
    parser.add_argument("--no-peers", action="store_true", help="do not install and time other verifiers")
    args = parser.parse_args()
    specimen, real = make_specimen(), real_specimens()
    times = time_specimen(specimen, args.rounds)
    cores = usable_cores()
    ratios = compare(times)
    ratios["batch_docs_per_s"] = round(time_batch(specimen, BATCH, cores))
    context: dict[str, Any] = {
        "python": platform.python_version(), "cryptography": cryptography.__version__, "cores": cores,
        "rounds": args.rounds,
        "medians_us": {name: round(statistics.median(taken) * 1e6, 1) for name, taken in times.items()},
        "batch_documents": BATCH, "batch_docs_per_s_one_process": round(time_batch(specimen, BATCH, 1)),
    }  # fmt: skip
    if not args.no_peers:
        found, told = time_peers(specimen, list(real.values()), args.rounds)
        ratios |= found
        context |= {"vs": "a peer's time over our cold time", "peers": told}
    each = {name: compare(time_specimen(one, max(args.rounds // 4, 1))) for name, one in real.items()}
    context["real_documents"] = each or f"none: {DOCUMENTS} names no folder of documents that AWS signed"
    context["load"] = [round(one, 1) for one in os.getloadavg()]
    if args.json:
        print(json.dumps({"bench": "verify", "ratios": ratios, "context": context}, indent=2))
    else:
        for name, value in ratios.items():
            print(f"{name:18} {'-' if value is None else value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
