# SPDX-License-Identifier: MIT
"""The document factory: a certificate chain of Nitro's shape, and attestation documents of any form, broken ones too.

`make_pki()` gives a sound chain under a development root, `make_document(pki)` a sound document; every argument changes
one thing. What cannot be said in values (duplicate keys, odd lengths) is said in bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from attestation.binding import Binding, Purpose, policy_pcr
from attestation.chain import Root, load_root
from attestation.measurements import Measurements, instance_pcr, measure_image

MADE_AT = datetime(2026, 11, 1, 12, 0, 0, 250_000, tzinfo=UTC)  # the timestamp of documents that do not say another
INSTANCE_ID = "i-0123456789abcdef0"
MODULE_ID = f"{INSTANCE_ID}-enc0123456789abcdef"
IMAGE = measure_image(kernel=b"kernel", cmdline=b"console=ttyS0", ramdisks=[b"boot", b"application"])
OTHER_IMAGE = measure_image(kernel=b"kernel", cmdline=b"console=ttyS0", ramdisks=[b"boot", b"other"])
DEBUG = Measurements(bytes(48), bytes(48), bytes(48))
POLICY_HASH = hashlib.sha256(b"the policy").digest()
NONCE = bytes(range(32))
PUBLIC_KEY = (
    ec.derive_private_key(7, ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
ES384_HEADER = bytes.fromhex("a1013822")
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973

CA_USAGE = ("key_cert_sign", "crl_sign", "digital_signature")
LEAF_USAGE = ("digital_signature", "content_commitment")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True)
class CertificateForm:
    """One certificate, and all that can be wrong with it."""

    name: str
    before: timedelta  # how long before the document's time it becomes valid
    after: timedelta  # how long after it it ends
    ca: bool = True
    path_length: int | None = None
    basic_constraints: bool = True
    basic_constraints_critical: bool = True
    usage: tuple[str, ...] | None = CA_USAGE
    usage_critical: bool = True
    key_identifiers: bool = True
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    curve: ec.EllipticCurve = field(default_factory=ec.SECP384R1)
    hash: hashes.SHA224 | hashes.SHA256 | hashes.SHA384 = field(default_factory=hashes.SHA384)
    signed_by: ec.EllipticCurvePrivateKey | None = None  # instead of the issuer's key
    issuer_name: str | None = None  # instead of the issuer's name
    edit: Callable[[bytes], bytes] | None = None  # of the TBSCertificate, which is signed afterwards


# Lifetimes and extensions of the real chains, 2021 to 2025.
NITRO_FORMS: Mapping[str, CertificateForm] = {
    "root": CertificateForm("development.nitro-enclaves", timedelta(days=2000), timedelta(days=9000)),
    "regional": CertificateForm("regional.nitro-enclaves", timedelta(days=3), timedelta(days=17), path_length=2),
    "zonal": CertificateForm("zonal.nitro-enclaves", timedelta(days=1), timedelta(days=5), path_length=1),
    "instance": CertificateForm(
        f"{INSTANCE_ID}.nitro-enclaves", timedelta(hours=5), timedelta(hours=19), path_length=0, key_identifiers=False
    ),
    "leaf": CertificateForm(
        MODULE_ID, timedelta(seconds=3), timedelta(hours=3), ca=False, usage=LEAF_USAGE, usage_critical=False,
        key_identifiers=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pki:
    """A chain from the root to the leaf, in DER, and every key."""

    certificates: Mapping[str, bytes]
    keys: Mapping[str, ec.EllipticCurvePrivateKey]

    @property
    def root(self) -> Root:
        """The development root, as a relying party loads it."""
        return load_root(x509.load_der_x509_certificate(self.certificates["root"]).public_bytes(Encoding.PEM))

    @property
    def leaf(self) -> bytes:
        """The certificate whose key signs documents."""
        return self.certificates["leaf"]

    @property
    def cabundle(self) -> list[bytes]:
        """Root, regional, zonal, instance."""
        return [self.certificates[name] for name in ("root", "regional", "zonal", "instance")]


def make_pki(*, at: datetime = MADE_AT, seed: str | None = None, **changes: Mapping[str, Any]) -> Pki:
    """Make a chain of Nitro's shape, valid `at`; `zonal={"path_length": 0}` changes one certificate's form.

    With a seed the same bytes come out each time: keys, serial numbers and signatures follow from it.
    """
    certificates: dict[str, bytes] = {}
    keys: dict[str, ec.EllipticCurvePrivateKey] = {}
    issuer = "root"
    forms = {name: replace(form, **changes.get(name, {})) for name, form in NITRO_FORMS.items()}
    for name, form in forms.items():
        keys[name] = make_key(form.curve, seed=seed and f"{seed} {name}")
        certificates[name] = make_certificate(
            form, key=keys[name], issuer_name=forms[issuer].name, issuer_key=keys[issuer], at=at,
            seed=seed and f"{seed} {name}",
        )  # fmt: skip
        issuer = name
    return Pki(certificates, keys)


def make_key(curve: ec.EllipticCurve, *, seed: str | None = None) -> ec.EllipticCurvePrivateKey:
    """Make a key: a new one, or always the same of a seed."""
    if seed is None:
        return ec.generate_private_key(curve)
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big") >> 1, curve)


def make_certificate(
    form: CertificateForm,
    *,
    key: ec.EllipticCurvePrivateKey,
    issuer_name: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    at: datetime = MADE_AT,
    seed: str | None = None,
) -> bytes:
    """Make one certificate in DER; with a seed, always the same."""
    serial = (
        x509.random_serial_number()
        if seed is None
        else int.from_bytes(hashlib.sha1(seed.encode()).digest(), "big") >> 1
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(form.name))
        .issuer_name(_name(form.issuer_name or issuer_name))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before((at - form.before).replace(microsecond=0))
        .not_valid_after((at + form.after).replace(microsecond=0))
    )
    if form.basic_constraints:
        constraints = x509.BasicConstraints(form.ca, form.path_length if form.ca else None)
        builder = builder.add_extension(constraints, critical=form.basic_constraints_critical)
    if form.usage is not None:
        usage = x509.KeyUsage(**{name: name in form.usage for name in _USAGES})
        builder = builder.add_extension(usage, critical=form.usage_critical)
    if form.key_identifiers:
        subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(subject, critical=False)
    for extension, critical in form.extensions:
        builder = builder.add_extension(extension, critical=critical)
    signer = form.signed_by or issuer_key
    certificate = builder.sign(signer, form.hash, ecdsa_deterministic=seed is not None)
    if form.edit is None:
        return certificate.public_bytes(Encoding.DER)
    return sign_tbs(form.edit(certificate.tbs_certificate_bytes), signer, deterministic=seed is not None)


def sign_tbs(tbs: bytes, key: ec.EllipticCurvePrivateKey, *, deterministic: bool = False) -> bytes:
    """Return a certificate in DER around an edited TBSCertificate, signed with ECDSA and SHA-384."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")
    signature = key.sign(tbs, ec.ECDSA(hashes.SHA384(), deterministic_signing=deterministic))
    return der(0x30, tbs + algorithm + der(0x03, b"\0" + signature))


def der(tag: int, content: bytes) -> bytes:
    """Return one DER element."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    width = (size.bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + size.to_bytes(width, "big") + content


def replace_in_tbs(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Return an edit that replaces a direct child of the TBSCertificate, whatever its length."""

    def edit(tbs: bytes) -> bytes:
        content = tbs[4:]  # 30 82 hi lo: a TBSCertificate of Nitro's shape has more than 255 bytes
        assert content.count(old) == 1
        return der(0x30, content.replace(old, new))

    return edit


# An extension whose type an edit turns into that of another one.
PLACEHOLDER = ((x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x03\x02\x07\x80"), False),)


def duplicate_key_usage(tbs: bytes) -> bytes:
    """Edit a TBSCertificate with PLACEHOLDER so that it has its key usage twice."""
    return tbs.replace(bytes.fromhex("0603551d63"), bytes.fromhex("0603551d0f"))


def compress_key(tbs: bytes) -> bytes:
    """Edit a TBSCertificate so that its key is a compressed point (RFC 5480 2.2)."""
    start = tbs.index(bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"))
    spki = tbs[start : start + 0x78]
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), spki[-97:])
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3046301006072a8648ce3d020106052b81040022033200") + point
    return replace_in_tbs(spki, compressed)(tbs)


def from_year_zero(tbs: bytes) -> bytes:
    """Edit a TBSCertificate so that it is valid from the year 0 on, which DER can say and Python's dates cannot."""
    start = tbs.index(b"\x17\x0d") - 2  # a SEQUENCE of two times, the first a UTCTime
    validity = tbs[start : start + 2 + tbs[start + 1]]
    zero = der(0x30, der(0x18, b"00000101000000Z") + validity[17:])
    return replace_in_tbs(validity, zero)(tbs)


def _name(common_name: str) -> x509.Name:
    attributes = [
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.ORGANIZATION_NAME, "development"),
        (NameOID.COMMON_NAME, common_name),
    ]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def make_pcrs(
    image: Measurements = IMAGE, *, policy_hash: bytes | None = POLICY_HASH, **changes: bytes | None
) -> dict[int, bytes]:
    """Return the locked registers of an isolate; `pcr3=...` sets one, `pcr16=None` leaves one out."""
    pcrs = {index: bytes(48) for index in range(16)}
    pcrs.update(enumerate(image.registers))
    pcrs[4] = instance_pcr(INSTANCE_ID)
    if policy_hash is not None:
        pcrs[16] = policy_pcr(policy_hash)
    for name, value in changes.items():
        index = int(name.removeprefix("pcr"))
        if value is None:
            del pcrs[index]
        else:
            pcrs[index] = value
    return pcrs


def make_fields(pki: Pki, **changes: Any) -> dict[str, Any]:
    """Return the fields of a sound session document in their order; keywords change some."""
    fields: dict[str, Any] = {
        "module_id": MODULE_ID,
        "digest": "SHA384",
        "timestamp": milliseconds(MADE_AT),
        "pcrs": make_pcrs(),
        "certificate": pki.leaf,
        "cabundle": pki.cabundle,
        "public_key": PUBLIC_KEY,
        "user_data": Binding(Purpose.SESSION, POLICY_HASH, None).encode(),
        "nonce": NONCE,
    }
    assert set(changes) <= set(fields)
    return {**fields, **changes}


def milliseconds(moment: datetime) -> int:
    """Return a document's timestamp."""
    return round(moment.timestamp() * 1000)


def make_payload(fields: Mapping[str, Any], *, indefinite: bool = False) -> bytes:
    """Encode fields as a payload map; indefinite as AWS does since December 2025."""
    return make_map(((cbor2.dumps(key), cbor2.dumps(value)) for key, value in fields.items()), indefinite=indefinite)


def make_map(entries: Iterable[tuple[bytes, bytes]], *, indefinite: bool = False) -> bytes:
    """Encode a map out of encoded keys and values, duplicates and all."""
    encoded = [key + value for key, value in entries]
    head, tail = (b"\xbf", b"\xff") if indefinite else (bytes([0xA0 + len(encoded)]), b"")
    return head + b"".join(encoded) + tail


def sign(
    payload: bytes,
    key: ec.EllipticCurvePrivateKey,
    *,
    protected: bytes = ES384_HEADER,
    deterministic: bool = False,
) -> bytes:
    """Return r || s over the Sig_structure of RFC 9052 4.4, with the hash that goes with the key's curve."""
    size = (key.curve.key_size + 7) // 8
    algorithm = {32: hashes.SHA256(), 48: hashes.SHA384(), 66: hashes.SHA512()}[size]
    structure = cbor2.dumps(["Signature1", protected, b"", payload])
    r, s = decode_dss_signature(key.sign(structure, ec.ECDSA(algorithm, deterministic_signing=deterministic)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def malleate(signature: bytes) -> bytes:
    """Return the other signature of a pair: (r, n - s)."""
    s = P384_ORDER - int.from_bytes(signature[48:], "big")
    return signature[:48] + s.to_bytes(48, "big")


def make_envelope(
    payload: bytes,
    key: ec.EllipticCurvePrivateKey,
    *,
    protected: bytes = ES384_HEADER,
    unprotected: Mapping[Any, Any] | None = None,
    signature: bytes | None = None,
    tag: bytes = b"",
    deterministic: bool = False,
) -> bytes:
    """Return a COSE_Sign1 over a payload, untagged as every real document is."""
    signed = sign(payload, key, protected=protected, deterministic=deterministic) if signature is None else signature
    return tag + cbor2.dumps([protected, dict(unprotected or {}), payload, signed])


def make_document(pki: Pki, *, indefinite: bool = False, **changes: Any) -> bytes:
    """Return a sound document; keywords change fields of its payload (see `make_fields`)."""
    return make_envelope(make_payload(make_fields(pki, **changes), indefinite=indefinite), pki.keys["leaf"])


def make_qemu_document(**changes: Any) -> bytes:
    """Return a document as QEMU's nitro-enclave machine writes it: unsigned, zeros for certificates and signature."""
    placeholders = Pki({name: bytes(64) for name in NITRO_FORMS}, {})
    fields = make_fields(placeholders, **{"cabundle": [bytes(64)], **changes})
    return cbor2.dumps([bytes.fromhex("a10120"), {}, make_payload(fields), bytes(64)])
