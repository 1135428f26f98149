# SPDX-License-Identifier: MIT
"""A panic of a Rust library on evidence is a refusal like any other failure; an interrupt is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

import attestation.binding
import attestation.chain_path
import attestation.cose
import attestation.nsm
from attestation.binding import Binding, Purpose
from attestation.certificates import parse_certificate
from attestation.chain import load_root
from attestation.errors import MalformedInput, MalformedNsm, PolicyMismatch, VeracruzError
from attestation.expectations import Expectations, UnsafeAcceptAnyImage
from attestation.panics import reraise_interrupt
from attestation.verifier import verify
from enclave_image.errors import MalformedEif
from host_shim.eif_signer import signer_of

from .documents import MADE_AT, PLACEHOLDER, POLICY_HASH, Pki, make_document, make_pki

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class PanicException(BaseException):
    """As PyO3 makes it: no Exception, and known by the name of its module alone."""


PanicException.__module__ = "pyo3_runtime"


def _verifier(pki: Pki) -> Callable[[], object]:
    document, expected, roots = make_document(pki), Expectations.of(UnsafeAcceptAnyImage()), [pki.root]
    return lambda: verify(document, expected=expected, at=MADE_AT, roots=roots)


_verify = _verifier(make_pki())
_verify_by_library = _verifier(make_pki(leaf={"extensions": PLACEHOLDER}))


def _read_binding() -> object:
    return Binding.decode(Binding(Purpose.SESSION, POLICY_HASH, None).encode())


def _read_section() -> object:
    return signer_of(cbor2.dumps([{"signing_certificate": list(PEM.encode()), "signature": []}]))


STEPS: dict[str, tuple[object, str, Callable[[], object], str]] = {
    "certificate": (x509, "load_der_x509_certificate", _verify, "untrusted-chain"),
    "chain": (attestation.chain_path, "PolicyBuilder", _verify_by_library, "untrusted-chain"),
    "link": (ec, "ECDSA", _verify, "untrusted-chain"),
    "signature": (attestation.cose, "encode_dss_signature", _verify, "bad-signature"),
    "root": (x509, "load_pem_x509_certificates", lambda: load_root(PEM.encode()), MalformedInput.slug),
    "participant": (x509, "load_pem_x509_certificate", lambda: parse_certificate(PEM), MalformedInput.slug),
    "binding": (cbor2, "loads", _read_binding, PolicyMismatch.slug),
    "NSM": (cbor2, "load", lambda: attestation.nsm.decode_request(b"\x60"), MalformedNsm.slug),
    "EIF": (x509, "load_pem_x509_certificate", _read_section, MalformedEif.slug),
}  # fmt: skip


def _raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_panic_is_a_refusal(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, run, slug = step
    monkeypatch.setattr(module, name, _raising(PanicException("called `Option::unwrap()` on a `None` value")))
    with pytest.raises(VeracruzError) as refusal:
        run()
    assert refusal.value.slug == slug


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), MemoryError()], ids=repr)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_an_interrupt_is_none(step: Any, interrupt: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, run, _ = step
    monkeypatch.setattr(module, name, _raising(interrupt))
    with pytest.raises(type(interrupt)):
        run()


def test_an_exception_of_whatever_name_is_a_failure() -> None:
    reraise_interrupt(ValueError())
    reraise_interrupt(PanicException())
    with pytest.raises(BaseExceptionGroup):
        reraise_interrupt(BaseExceptionGroup("", [KeyboardInterrupt()]))
