# SPDX-License-Identifier: MIT
"""The files that a person names on a command line, read with a limit; an error in one names it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .chain import Root, aws_root, load_root
from .errors import MalformedInput
from .files import naming, read_limited
from .limits import MAX_CERTIFICATE_PEM, MAX_MEASUREMENTS_FILE, MAX_POLICY
from .measurements import Measurements, load_measurements
from .panics import reraise_interrupt
from .policy import Policy, parse_policy


def read_policy(path: Path) -> Policy:
    """Return the policy in a file; raise UsageError or MalformedPolicy."""
    hint = "veracruz policy new writes one"
    raw = read_limited(path, limit=MAX_POLICY, what="policy", hint=hint)
    with naming(path, hint=hint):
        return parse_policy(raw)


def read_measurements(paths: Iterable[Path]) -> tuple[Measurements, ...]:
    """Return the images in measurements files; raise UsageError or MalformedInput."""
    found: list[Measurements] = []
    hint = "veracruz image build --measurements FILE writes one"
    for path in paths:
        raw = read_limited(path, limit=MAX_MEASUREMENTS_FILE, what="measurements file", hint=hint)
        with naming(path, hint=hint):
            found += load_measurements(raw)
    return tuple(found)


def read_root(name: str) -> Root:
    """Return the root that `--root aws|FILE` names; raise UsageError or MalformedInput."""
    if name == "aws":
        return aws_root()
    raw = read_limited(Path(name), limit=MAX_CERTIFICATE_PEM, what="root")
    with naming(Path(name)):
        return load_root(raw)


def read_certificate(path: Path) -> bytes:
    """Return the DER of the one certificate in a PEM or DER file; raise UsageError or MalformedInput."""
    raw = read_limited(path, limit=MAX_CERTIFICATE_PEM, what="certificate")
    try:
        if raw[:1] == b"0":  # a DER SEQUENCE
            return x509.load_der_x509_certificate(raw).public_bytes(Encoding.DER)
        (certificate,) = x509.load_pem_x509_certificates(raw)
        return certificate.public_bytes(Encoding.DER)
    except BaseException as error:  # cryptography raises many types on malformed certificates
        reraise_interrupt(error)
        raise MalformedInput(f"{path}: no certificate", expected="one, in PEM or DER", actual=error) from error
