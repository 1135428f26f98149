# SPDX-License-Identifier: MIT
"""Run by a peer's own Python: time how one peer verifies one document, rounds as asked for on stdin."""

# Only the standard library and the peer are here. One JSON object on stdin, one on stdout for each line of rounds.

import base64
import json
import statistics
import sys
import time
from pathlib import Path


def epsilon(job):
    """`verify_attestation` as documented; the root is given by path, so its pin does not apply."""
    from epsilon_verifier.verifier import verify_attestation

    encoded = base64.b64encode(Path(job["document"]).read_bytes()).decode()

    def once():
        result = verify_attestation(encoded, expected_pcr0=job["pcr0"], aws_root_cert_path=job["root"])
        if not result.valid:
            raise SystemExit(f"refused: {result.error}")

    return once


def attested_relay(job):
    """Its document check without its relay's policy; the root in its package is replaced by ours."""
    import hashlib
    import ssl

    from attested_relay import verify

    pem = Path(job["root"]).read_text()
    verify.ROOT_SHA256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    verify.files = lambda _: Path(job["folder"])
    document = Path(job["document"]).read_bytes()
    return lambda: verify._authenticated_document(document, job["pcr0"])


def aimarket(job):
    """`verify_nitro_attestation` as documented."""
    from aimarket_hub.tee_attestation import verify_nitro_attestation

    encoded = base64.b64encode(Path(job["document"]).read_bytes()).decode()

    def once():
        result = verify_nitro_attestation(encoded, expected_pcr0=job["pcr0"], max_age_s=10**9)
        if not result["valid"]:
            raise SystemExit(f"refused: {result['reason']}")

    return once


def evervault(job):
    """`attest_enclave` up to its last step: it compares user data with the key of a connection, and there is none."""
    import ssl

    from evervault_attestation_bindings import attest_enclave

    certificate = ssl.PEM_cert_to_DER_cert(Path(job["root"]).read_text())
    document = Path(job["document"]).read_bytes()

    def once():
        try:
            attest_enclave(certificate, [], document)
        except ValueError as error:
            if not any(last in str(error) for last in ("User data was not set", "public key length")):
                raise

    return once


PEERS = {"evervault": evervault, "epsilon": epsilon, "attested_relay": attested_relay, "aimarket": aimarket}


def main():
    import gc
    import logging

    logging.disable(logging.CRITICAL)
    job = json.loads(sys.stdin.readline())
    try:
        once = PEERS[job["peer"]](job)
        for _ in range(3):
            once()
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        times = []
        gc.disable()
        for _ in range(int(line)):
            begin = time.perf_counter()
            once()
            times.append(time.perf_counter() - begin)
        gc.enable()
        print(json.dumps({"seconds": statistics.median(times)}), flush=True)


if __name__ == "__main__":
    main()
