# SPDX-License-Identifier: MIT
"""Targets of the verifier: whole documents, certificate chains, participants' certificates and roots.

The first byte of an input says what the rest is. In half of the cases the target signs it with the factory's keys, as
otherwise nothing behind the signature is ever reached.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from random import Random
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.binding import policy_pcr
from attestation.certificates import parse_certificate
from attestation.chain import CLOCK_LEEWAY, Chain, ChainCache, load_root, verify_chain
from attestation.chain_certificate import ChainCertificate, load_certificate
from attestation.chain_path import check_order, validate_by_library, validate_path
from attestation.errors import AttestationError, MalformedInput, UntrustedChain
from attestation.expectations import Expectations, ImageIs, NonceIs, PolicyIs, PublicKeyIs
from attestation.verifier import verify
from tests.attestation.documents import (
    ES384_HEADER,
    IMAGE,
    LEAF_USAGE,
    MADE_AT,
    NITRO_FORMS,
    NONCE,
    POLICY_HASH,
    PUBLIC_KEY,
    CertificateForm,
    Pki,
    make_certificate,
    make_envelope,
    make_fields,
    make_key,
    make_payload,
    make_pcrs,
    make_pki,
    make_qemu_document,
    malleate,
    sign_tbs,
)

from .mutations import change_bytes, change_cbor, change_der
from .target import Target, WrongVerdict

SEED = "veracruz fuzzing"
EXPECTED = Expectations.of(NonceIs(NONCE), ImageIs.any_of([IMAGE]), PolicyIs(POLICY_HASH), PublicKeyIs(PUBLIC_KEY))
AS_IT_IS, PAYLOAD, HEADER_AND_PAYLOAD = 0, 2, 3  # the first byte, modulo 4; 1 is also as it is
CHAIN = ("regional", "zonal", "instance", "leaf")
ISSUERS = {"regional": "root", "zonal": "regional", "instance": "zonal", "leaf": "instance"}


@cache
def _pki() -> Pki:
    return make_pki(seed=SEED)


@cache
def _payloads() -> Mapping[str, bytes]:
    fields = make_fields(_pki())
    full = {f"pcr{index}": bytes([index]) * 48 for index in range(17, 32)}
    changes: dict[str, dict[str, Any]] = {
        "definite": {},
        "null": {"public_key": None, "user_data": None, "nonce": None},
        "empty": {"user_data": b"", "nonce": b""},
        "full": {"public_key": bytes(1024), "user_data": bytes(1024), "nonce": bytes(1024)},
        "registers": {"pcrs": make_pcrs(**full)},
    }
    payloads = {name: make_payload({**fields, **change}) for name, change in changes.items()}
    return {**payloads, "indefinite": make_payload(fields, indefinite=True)}


def _document(payload: bytes, **changes: Any) -> bytes:
    return make_envelope(payload, _pki().keys["leaf"], deterministic=True, **changes)


# Documents


def run_evidence(data: bytes) -> None:
    """Verify a document; what is accepted must be signed, and carry what was expected."""
    kind, rest = data[:1], data[1:]
    mode = kind[0] & 3 if kind else AS_IT_IS
    if mode == PAYLOAD:
        document = _document(rest)
    elif mode == HEADER_AND_PAYLOAD:
        size = rest[0] & 31 if rest else 0
        document = _document(rest[1 + size :], protected=rest[1 : 1 + size])
    else:
        document = rest
    appraisal = verify(document, expected=EXPECTED, at=MADE_AT, roots=[_pki().root])
    # Accepted. A general decoder says what was in it.
    parts = cbor2.loads(document)
    protected, _, payload, _ = parts.value if isinstance(parts, cbor2.CBORTag) else parts
    if mode not in (PAYLOAD, HEADER_AND_PAYLOAD) and payload not in _payloads().values():
        raise WrongVerdict("a payload was accepted that nobody signed")
    if protected != ES384_HEADER:
        raise WrongVerdict("a header was accepted that is not ES384 alone")
    fields = cbor2.loads(payload)
    pcrs = fields["pcrs"]
    wanted = [*IMAGE.registers, policy_pcr(POLICY_HASH)]
    if fields["nonce"] != NONCE or fields["public_key"] != PUBLIC_KEY or [pcrs[n] for n in (0, 1, 2, 16)] != wanted:
        raise WrongVerdict("a document was accepted that is not what was expected")
    leaf, made_at = appraisal.chain[0], appraisal.timestamp
    if made_at is None or not leaf.not_before <= made_at + CLOCK_LEEWAY or made_at - CLOCK_LEEWAY > leaf.not_after:
        raise WrongVerdict("a document was accepted that was made when its certificate was not valid")
    if made_at - CLOCK_LEEWAY > MADE_AT:
        raise WrongVerdict("a document was accepted that was made after the time given")
    if dict(appraisal.pcrs) != pcrs or (appraisal.module_id, appraisal.user_data) != (
        fields["module_id"],
        fields["user_data"],
    ):
        raise WrongVerdict("the appraisal says something else than the document")


def evidence_seeds() -> Mapping[str, bytes]:
    payloads = _payloads()
    sound = _document(payloads["definite"])
    signature = sound[-96:]
    as_they_are = {
        **{name: _document(payload) for name, payload in payloads.items()},
        "tagged": b"\xd2" + sound,
        "high-s": _document(payloads["definite"], signature=malleate(signature)),
        "qemu": make_qemu_document(),
        "es256": _document(payloads["null"], protected=cbor2.dumps({1: -7}), signature=bytes(64)),
    }
    seeds = {f"document-{name}": bytes([AS_IT_IS]) + raw for name, raw in as_they_are.items()}
    seeds |= {f"payload-{name}": bytes([PAYLOAD]) + raw for name, raw in payloads.items()}
    head = bytes([HEADER_AND_PAYLOAD, len(ES384_HEADER)]) + ES384_HEADER
    return {**seeds, "header-and-payload": head + payloads["definite"]}


def change_evidence(data: bytes, random: Random) -> bytes:
    """Change items of the payload, of the envelope, or the certificates in them."""
    kind, rest = data[:1], data[1:]
    if random.randrange(8) == 0:
        return bytes([random.randrange(4)]) + rest
    if random.randrange(3) == 0:  # one certificate, signed anew or not
        old = random.choice([*_pki().certificates.values()])
        name = next(name for name, der in _pki().certificates.items() if der == old)
        new = change_der(old, random)
        if random.randrange(2) and name in ISSUERS:
            tbs = x509.load_der_x509_certificate(old).tbs_certificate_bytes
            new = sign_tbs(change_der(tbs, random), _pki().keys[ISSUERS[name]], deterministic=True)
        return kind + rest.replace(cbor2.dumps(old), cbor2.dumps(new))
    return kind + change_cbor(rest, random)


# Chains


def run_chain(data: bytes) -> None:
    """Verify a chain in which one certificate is other bytes, or was issued anew over other contents."""
    kind, rest = (data[0] if data else 0), data[1:]
    name = CHAIN[kind >> 1 & 3]
    der = sign_tbs(rest, _pki().keys[ISSUERS[name]], deterministic=True) if kind & 1 else rest
    certificates = {**_pki().certificates, name: der}
    path = [certificates[each] for each in ("root", *CHAIN)]
    _compare_paths([load_certificate(each, "certificate") for each in path])
    try:
        chain = _verify_chain(path, links=None)
    except UntrustedChain:
        _compare_remembered(path, None)
        raise
    _compare_remembered(path, chain)
    certificate = x509.load_der_x509_certificate(der)
    sound = x509.load_der_x509_certificate(_pki().certificates[name])
    if not kind & 1 and certificate.tbs_certificate_bytes != sound.tbs_certificate_bytes:
        raise WrongVerdict("a certificate was accepted that its issuer did not sign")
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not (start <= MADE_AT + CLOCK_LEEWAY and end >= MADE_AT - CLOCK_LEEWAY):
        raise WrongVerdict("a chain was accepted at a time at which it is not valid")
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    key = certificate.public_key()
    if constraints.ca is (name == "leaf") or not isinstance(key, ec.EllipticCurvePublicKey):
        raise WrongVerdict("a chain was accepted in which a certificate has the wrong role")
    if name == "leaf" and key != chain.key:
        raise WrongVerdict("the chain's key is not its leaf's")


def _verify_chain(path: Sequence[bytes], *, links: ChainCache | None) -> Chain:
    root = _pki().root
    return verify_chain(path[-1], path[:-1], roots=[root], at=MADE_AT, made_at=MADE_AT, links=links)


def _compare_paths(path: Sequence[ChainCertificate]) -> None:
    """Judge a path as it is, and by cryptography's X.509 verification alone: both must come to the same."""
    check_order(path)  # cryptography knows nothing of an order
    verdicts: list[UntrustedChain | None] = []
    for validate in (validate_path, validate_by_library):
        try:
            validate(path, at=MADE_AT)
            path[-1].key()  # cryptography does not look at the leaf's
            verdicts.append(None)
        except UntrustedChain as error:
            verdicts.append(error)
    if (verdicts[0] is None) is not (verdicts[1] is None):
        raise WrongVerdict(f"the two ways to judge a path differ: {verdicts[0]} and {verdicts[1]}")


def _compare_remembered(path: Sequence[bytes], chain: Chain | None) -> None:
    """Judge a path twice with a memory that knows the sound chain already: neither time it may change the verdict."""
    links = ChainCache()
    _verify_chain([_pki().certificates[each] for each in ("root", *CHAIN)], links=links)
    for _ in range(2):
        try:
            remembered = _verify_chain(path, links=links)
        except UntrustedChain:
            remembered = None
        if remembered != chain:
            raise WrongVerdict("the verdict on a chain depends on what is remembered")


def chain_seeds() -> Mapping[str, bytes]:
    seeds = {}
    for index, name in enumerate(CHAIN):
        der = _pki().certificates[name]
        seeds[f"{name}-as-it-is"] = bytes([index << 1]) + der
        seeds[f"{name}-signed-anew"] = bytes([index << 1 | 1]) + _signed_part(der)
    for form, (name, change) in _CHAIN_FORMS.items():
        changes: dict[str, Any] = {name: change}
        der = make_pki(seed=SEED, **changes).certificates[name]  # of the same keys: they follow from the seed
        seeds[form] = bytes([CHAIN.index(name) << 1 | 1]) + _signed_part(der)
    return seeds


def _signed_part(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).tbs_certificate_bytes


_CRL_POINT = x509.DistributionPoint([x509.UniformResourceIdentifier("http://a.example/" + "x" * 120)], None, None, None)
_OTHER = x509.ObjectIdentifier("1.2.3")
_CHAIN_FORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "regional-crl-point": ("regional", {"extensions": ((x509.CRLDistributionPoints([_CRL_POINT]), False),)}),
    "zonal-two-crl-points": ("zonal", {"extensions": ((x509.CRLDistributionPoints([_CRL_POINT] * 2), False),)}),
    "zonal-no-path-length": ("zonal", {"path_length": None}),
    "zonal-policies": (
        "zonal", {"extensions": ((x509.CertificatePolicies([x509.PolicyInformation(_OTHER, None)]), False),)},
    ),
    "instance-issuer-key": ("instance", {"extensions": ((x509.AuthorityKeyIdentifier(bytes(20), None, None), False),)}),
    "instance-names": ("instance", {"extensions": ((x509.NameConstraints([x509.DNSName("example")], None), True),)}),
    "leaf-all-usages": ("leaf", {"usage": (*LEAF_USAGE, "key_agreement", "decipher_only"), "usage_critical": True}),
    "leaf-unknown": ("leaf", {"extensions": ((x509.UnrecognizedExtension(_OTHER, b"\5\0"), False),)}),
    "leaf-purpose": ("leaf", {"extensions": ((x509.ExtendedKeyUsage([x509.OID_CLIENT_AUTH]), False),)}),
    "leaf-until-2051": ("leaf", {"after": timedelta(days=9000)}),
}  # fmt: skip


def change_chain(data: bytes, random: Random) -> bytes:
    return data[:1] + change_der(data[1:], random)


# Participants' certificates and roots, as PEM from a user's file or a policy


@cache
def _participant() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = make_key(ec.SECP384R1(), seed=SEED)
    span = NITRO_FORMS["root"]
    form = CertificateForm("alice", span.before, span.after, ca=False, usage=LEAF_USAGE, key_identifiers=False)
    return key, make_certificate(form, key=key, issuer_name="alice", issuer_key=key, seed=SEED)


def run_certificate(data: bytes) -> None:
    """Read a participant's certificate, or a root: the bytes themselves, or DER that is signed anew and made PEM."""
    mode, rest = (data[0] & 3 if data else 0), data[1:]
    if mode == 0:
        parse_certificate(rest.decode("latin-1"))
    elif mode == 1:
        load_root(rest)
    else:
        key = _participant()[0] if mode == 2 else _pki().keys["root"]
        pem = _pem(sign_tbs(rest, key, deterministic=True))
        if mode == 2:
            der = parse_certificate(pem)
            constraints = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.BasicConstraints)
            if constraints.value.ca:
                raise WrongVerdict("an authority was taken for a participant")
        else:
            load_root(pem.encode())


def _pem(der: bytes) -> str:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


def certificate_seeds() -> Mapping[str, bytes]:
    participant, root = _participant()[1], _pki().certificates["root"]
    return {
        "participant": b"\0" + _pem(participant).encode(),
        "root": b"\1" + _pem(root).encode(),
        "two": b"\1" + 2 * _pem(root).encode(),
        "participant-signed-anew": b"\2" + x509.load_der_x509_certificate(participant).tbs_certificate_bytes,
        "root-signed-anew": b"\3" + x509.load_der_x509_certificate(root).tbs_certificate_bytes,
    }


def change_certificate(data: bytes, random: Random) -> bytes:
    mode = data[0] & 3 if data else 0
    if mode > 1:
        return data[:1] + change_der(data[1:], random)
    try:
        der = base64.b64decode(b"".join(data[1:].splitlines()[1:-1]))
    except ValueError:
        return change_bytes(data, random)
    return data[:1] + _pem(change_der(der, random)).encode()


TARGETS = (
    Target(
        "evidence", "verify() of an attestation document", run_evidence, (AttestationError,), evidence_seeds,
        change_evidence, largest=20_000,
    ),
    Target(
        "chain", "verify_chain(), one link changed, by each of its ways", run_chain, (UntrustedChain,), chain_seeds,
        change_chain,
    ),
    Target(
        "certificates", "participants' certificates and roots", run_certificate, (MalformedInput,), certificate_seeds,
        change_certificate, largest=20_000,
    ),
)  # fmt: skip
