# SPDX-License-Identifier: MIT
"""One good image and every malformed form of it; docs/eif.md has a row for each.

`python -m tests.enclave_image.eif_specimens` prints those rows.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from attestation.errors import VeracruzError
from enclave_image.eif import MAX_COMMAND_LINE, SectionType, read_eif, write_eif
from enclave_image.eif_tool.findings import Weight
from enclave_image.eif_tool.inspection import Inspection, inspect
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.eif_tool.signature_section import dump_section, dump_sign1, payload_of, unsigned_of
from enclave_image.initramfs import File, write_cpio

AT = datetime(2026, 6, 1, tzinfo=UTC)
HEADER, OFFSETS, SIZES, CRC = 548, 0x1C, 0x11C, 0x220
Sections = list[tuple[SectionType, bytes]]


def make_kernel(version: str = "6.12.0-test") -> bytes:
    """Return the head of an x86 bzImage."""
    kernel = bytearray(1024)
    struct.pack_into("<H", kernel, 0x1FE, 0xAA55)
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x20E, 0x300 - 0x200)
    kernel[0x300 : 0x300 + len(version) + 1] = version.encode() + b"\0"
    return bytes(kernel)


def make_arm_kernel(text_offset: int = 0x200000) -> bytes:
    """Return the head of an arm64 Image."""
    kernel = bytearray(1024)
    struct.pack_into("<Q", kernel, 8, text_offset)
    kernel[56:60] = b"ARM\x64"
    return bytes(kernel)


IDENTITY = {
    "ImageName": "specimen", "ImageVersion": "1",
    "BuildMetadata": {
        "BuildTime": "2026-01-01T00:00:00Z", "BuildTool": "a tool", "BuildToolVersion": "2",
        "OperatingSystem": "Linux", "KernelVersion": "6.12",
    },
    "DockerInfo": None, "CustomMetadata": None,
}  # fmt: skip
KERNEL, CMDLINE, METADATA, RAMDISK, SIGNATURE = (
    SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA, SectionType.RAMDISK, SectionType.SIGNATURE,
)  # fmt: skip
SECTIONS: Sections = [
    (KERNEL, make_kernel()),
    (CMDLINE, b"reboot=k panic=30 console=ttyS0"),
    (METADATA, json.dumps(IDENTITY).encode()),
    (RAMDISK, write_cpio({"init": File(b"\x7fELF", executable=True)})),
    (RAMDISK, write_cpio({"app/main.py": File(b"print(1)\n")})),
]
GOOD = write_eif(SECTIONS)
PCR0 = read_eif(GOOD).measurements.pcr0


def with_crc(raw: bytes | bytearray) -> bytes:
    """Make the checksum fit again, so that the fault under test is the only one."""
    raw = bytearray(raw)
    crc = zlib.crc32(raw[HEADER:], zlib.crc32(raw[:CRC]))
    raw[CRC : CRC + 4] = struct.pack(">I", crc)
    return bytes(raw)


def patched(offset: int, form: str, value: int, *, raw: bytes = GOOD) -> bytes:
    """Return an image with one number of its frame changed, and the checksum right."""
    changed = bytearray(raw)
    struct.pack_into(form, changed, offset, value)
    return with_crc(changed)


def replaced(kind: SectionType, data: bytes) -> bytes:
    """Return an image with other data in the sections of one type."""
    return write_eif([(k, data if k is kind else d) for k, d in SECTIONS])


def without(kind: SectionType) -> bytes:
    """Return an image without the sections of one type."""
    return write_eif([section for section in SECTIONS if section[0] is not kind])


def offset_of(index: int, raw: bytes = GOOD) -> int:
    """Return where a section's header is."""
    (offset,) = struct.unpack_from(">Q", raw, OFFSETS + 8 * index)
    assert isinstance(offset, int)
    return offset


def gap(filler: bytes = bytes(4)) -> bytes:
    """Return an image with bytes between the header and the first section, all offsets right."""
    raw = bytearray(GOOD[:HEADER] + filler + GOOD[HEADER:])
    for index in range(5):
        struct.pack_into(">Q", raw, OFFSETS + 8 * index, offset_of(index) + len(filler))
    return with_crc(raw)


def hidden_section() -> bytes:
    """Return an image with a further ramdisk after the last, which the table does not name."""
    data = b"070701 hidden"
    return with_crc(GOOD + struct.pack(">HHQ", RAMDISK, 0, len(data)) + data)


CURVES: dict[str, ec.EllipticCurve] = {
    curve.name: curve for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1(), ec.SECP256K1())
}


@cache
def _key(curve: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve])


def signing_key(curve: str = "secp384r1") -> ec.EllipticCurvePrivateKey:
    """Return a key that stays the same for a run."""
    return _key(curve)


def key_pem(curve: str = "secp384r1") -> bytes:
    """Return that key's PEM."""
    return signing_key(curve).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_certificate(
    curve: str = "secp384r1", *, since: datetime = AT - timedelta(days=1), until: datetime = AT + timedelta(days=1),
    name: str = "specimen signer", usage: bool | None = None,
) -> x509.Certificate:  # fmt: skip
    """Return a self-signed certificate; `usage` is whether its key usage allows signatures, None for none."""
    key, subject = signing_key(curve), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(since).not_valid_after(until)
    )  # fmt: skip
    if usage is not None:
        flags = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        flags["key_cert_sign"] = True
        builder = builder.add_extension(x509.KeyUsage(digital_signature=usage, **flags), critical=True)
    return builder.sign(key, hashes.SHA384())


def sign(pcr0: bytes = PCR0, *, certificate: x509.Certificate | None = None, curve: str = "secp384r1") -> bytes:
    """Return a signature section over a PCR0."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    from enclave_image.eif_tool.signature_section import algorithm_of

    certificate = certificate or make_certificate(curve)
    algorithm = algorithm_of(make_certificate(curve))
    unsigned = unsigned_of(pcr0, algorithm)
    r, s = decode_dss_signature(signing_key(curve).sign(unsigned.to_be_signed, ec.ECDSA(algorithm.hash)))
    size = algorithm.coordinate_size
    return dump_section(certificate, dump_sign1(unsigned, r.to_bytes(size, "big") + s.to_bytes(size, "big")))


def signed(section: bytes) -> bytes:
    """Return the image with a signature section."""
    return write_eif([*SECTIONS, (SIGNATURE, section)])


def resigned_by_aws() -> bytes:
    """Return what nitro-cli's signer leaves when it replaces a signature by one of another size: a stale table."""
    section = sign()  # once: another signature may be longer by just as much
    return patched(SIZES + 8 * 5, ">Q", len(section) + 7, raw=signed(section))


def two_signatures() -> bytes:
    entry = cbor2.loads(sign())[0]
    return signed(cbor2.dumps([entry, entry]))


def as_byte_strings() -> bytes:
    entry = cbor2.loads(sign())[0]
    return signed(cbor2.dumps([{key: bytes(value) for key, value in entry.items()}]))


def flipped_signature() -> bytes:
    entry = cbor2.loads(sign())[0]
    entry["signature"][-1] ^= 1
    return signed(cbor2.dumps([entry]))


@dataclass(frozen=True, slots=True)
class Specimen:
    """A malformed, or odd, form: how it is made, what our reader says (None: takes it), describe's slug for it."""

    make: Callable[[], bytes]
    refusal: str | None
    slug: str | None  # None: no EIF at all


def _cmdline(data: bytes) -> Callable[[], bytes]:
    return lambda: replaced(CMDLINE, data)


SPECIMENS: dict[str, Specimen] = {
    "an empty file": Specimen(lambda: b"", "too short", None),
    "half a header": Specimen(lambda: GOOD[:300], "too short", None),
    "another magic number": Specimen(lambda: patched(0, ">I", 0x7F454C46), "no EIF", None),
    "version 1": Specimen(lambda: patched(4, ">H", 1), "version", "version-internal"),
    "version 2, with metadata": Specimen(lambda: patched(4, ">H", 2), "version", "section-version"),
    "version 3, without metadata": Specimen(
        lambda: patched(4, ">H", 3, raw=without(METADATA)), "version", "version-old"
    ),
    "version 5": Specimen(lambda: patched(4, ">H", 5), "version", "version-unknown"),
    "a reserved flag": Specimen(lambda: patched(6, ">H", 2), "reserved", "reserved-nonzero"),
    "the reserved field not zero": Specimen(lambda: patched(0x18, ">H", 1), "reserved", "reserved-nonzero"),
    "the unused field not zero": Specimen(lambda: patched(0x21C, ">I", 1), "reserved", "reserved-nonzero"),
    "0 sections": Specimen(lambda: patched(0x1A, ">H", 0), "number of sections", "section-count"),
    "33 sections": Specimen(lambda: patched(0x1A, ">H", 33), "number of sections", "section-count"),
    "one section fewer than the table": Specimen(
        lambda: patched(0x1A, ">H", 4), "unused section slots", "slots-nonzero"
    ),
    "a gap of 4 bytes": Specimen(gap, "gap or an overlap", "gap"),
    "a gap that reads as a section": Specimen(
        lambda: gap(struct.pack(">HHQ", RAMDISK, 0, 0)), "gap or an overlap", "readers-differ"
    ),
    "two sections in one place": Specimen(
        lambda: patched(OFFSETS + 8, ">Q", HEADER), "gap or an overlap", "overlap"
    ),
    "a size in the table that is not the section's": Specimen(
        lambda: patched(SIZES, ">Q", 59), "a gap or an overlap|disagree", "size-stale"
    ),
    "signed again by nitro-cli with another size": Specimen(resigned_by_aws, "ends after|disagree", "size-stale"),
    "a section of 2^64 - 1 bytes": Specimen(
        lambda: patched(offset_of(4) + 4, ">Q", (1 << 64) - 1, raw=patched(SIZES + 32, ">Q", (1 << 64) - 1)),
        "ends after the file", "section-truncated",
    ),
    "an offset after the file": Specimen(
        lambda: patched(OFFSETS + 32, ">Q", 1 << 62), "gap or an overlap", "section-truncated"
    ),
    "section flags": Specimen(lambda: patched(HEADER + 2, ">H", 1), "flags", "section-flags"),
    "section type 0": Specimen(lambda: patched(HEADER, ">H", 0), "type", "section-type"),
    "section type 6": Specimen(lambda: patched(offset_of(2), ">H", 6), "type", "section-type"),
    "truncated by one byte": Specimen(lambda: GOOD[:-1], "truncated", "section-truncated"),
    "one byte after the last section": Specimen(
        lambda: with_crc(GOOD + b"x"), "after the last section", "trailing-bytes"
    ),
    "a section that the table does not name": Specimen(hidden_section, "after the last section", "readers-differ"),
    "one bit flipped": Specimen(lambda: GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "CRC-32", "crc-mismatch"),
    "no kernel": Specimen(lambda: without(KERNEL), "kernel", "section-missing"),
    "no command line": Specimen(lambda: without(CMDLINE), "cmdline", "section-missing"),
    "no ramdisk": Specimen(lambda: without(RAMDISK), "no ramdisk", "section-missing"),
    "no metadata": Specimen(lambda: without(METADATA), "metadata", "metadata-missing"),
    "two kernels": Specimen(lambda: write_eif([SECTIONS[0], *SECTIONS]), "kernel", "section-duplicate"),
    "two command lines": Specimen(lambda: write_eif([*SECTIONS, SECTIONS[1]]), "cmdline", "section-duplicate"),
    "two signature sections": Specimen(
        lambda: write_eif([*SECTIONS, *[(SIGNATURE, sign())] * 2]), "signature", "section-duplicate"
    ),
    "a ramdisk before the kernel": Specimen(
        lambda: write_eif([SECTIONS[3], *SECTIONS]), "before the kernel", "ramdisk-before-kernel"
    ),
    "an empty ramdisk": Specimen(lambda: write_eif([*SECTIONS, (RAMDISK, b"")]), None, "section-empty"),
    "one ramdisk only": Specimen(lambda: write_eif(SECTIONS[:4]), None, "ramdisk-single"),
    "a ramdisk of another form": Specimen(lambda: replaced(RAMDISK, b"hello, world"), None, "ramdisk-format"),
    "a kernel of another form": Specimen(lambda: replaced(KERNEL, b"\x7fELF" * 300), None, "kernel-format"),
    "an arm64 kernel under the x86_64 flag": Specimen(
        lambda: replaced(KERNEL, make_arm_kernel()), None, "kernel-architecture"
    ),
    "an arm64 Image with text_offset 0": Specimen(
        lambda: patched(6, ">H", 1, raw=replaced(KERNEL, make_arm_kernel(0))), None, "kernel-text-offset"
    ),
    "a NUL at the end of the command line": Specimen(_cmdline(b"quiet\0"), "command line", "cmdline-nul"),
    "a NUL within the command line": Specimen(_cmdline(b"quiet\0init=/bin/sh"), "command line", "cmdline-nul"),
    "a command line of 3,000 bytes": Specimen(_cmdline(b"x" * 3000), None, "cmdline-long"),
    "a command line of 4,097 bytes": Specimen(
        _cmdline(b"x" * (MAX_COMMAND_LINE + 1)), "command line", "cmdline-endless"
    ),
    "terminal codes in the command line": Specimen(_cmdline(b"\x1b[2Jquiet"), None, "cmdline-unprintable"),
    "metadata that is no JSON": Specimen(lambda: replaced(METADATA, b"{"), None, "metadata-malformed"),
    "metadata without an image name": Specimen(lambda: replaced(METADATA, b"{}"), None, "metadata-malformed"),
    "metadata nested 100,000 deep": Specimen(
        lambda: replaced(METADATA, b"[" * 100_000), None, "metadata-malformed"
    ),
    "metadata of 300 KiB": Specimen(
        lambda: replaced(METADATA, b'{"a":"' + b"x" * 300 * 1024 + b'"}'), None, "metadata-endless"
    ),
    "unsigned": Specimen(lambda: GOOD, None, "unsigned"),
    "a signature section of 32,769 bytes": Specimen(lambda: signed(bytes(32769)), "signature", "signature-endless"),
    "a signature section that is no CBOR": Specimen(lambda: signed(b"\xff"), None, "signature-malformed"),
    "a signature section with byte strings": Specimen(as_byte_strings, None, "signature-malformed"),
    "a signature without a certificate": Specimen(
        lambda: signed(cbor2.dumps([{"signing_certificate": [1], "signature": [2]}])), None, "signature-malformed"
    ),
    "a signature with one bit flipped": Specimen(flipped_signature, None, "signature-bad"),
    "another image's signature": Specimen(lambda: signed(sign(bytes(48))), None, "signature-bad"),
    "another key's certificate": Specimen(
        lambda: signed(sign(certificate=make_certificate("secp256r1"))), None, "signature-bad"
    ),
    "two signatures in the section": Specimen(two_signatures, None, "signature-unread"),
    "an expired certificate": Specimen(
        lambda: signed(sign(certificate=make_certificate(until=AT - timedelta(hours=1)))), None, "certificate-expired"
    ),
    "a certificate of tomorrow": Specimen(
        lambda: signed(sign(certificate=make_certificate(since=AT + timedelta(hours=1)))), None, "certificate-early"
    ),
    "a certificate that is not for signatures": Specimen(
        lambda: signed(sign(certificate=make_certificate(usage=False))), None, "certificate-usage"
    ),
}  # fmt: skip


def look(raw: bytes) -> Inspection:
    """Inspect bytes at the specimens' time."""
    return inspect(BytesSource(raw), at=AT)


def make_row(form: str) -> str:
    """Return the row of docs/eif.md for a form, as the readers answer today."""
    raw = SPECIMENS[form].make()
    try:
        found = look(raw)
    except VeracruzError:
        return f"| {form} | refused | exit 2: no EIF | no | no |"
    words = {True: "yes", False: "no", None: "not known"}
    ours, qemu, nitro = (words[verdict.takes] for verdict in found.loaders)
    slugs = dict.fromkeys(one.slug for one in found.findings if one.weight is not Weight.NOTE)
    if not slugs:
        slugs = {str(SPECIMENS[form].slug): None}
    listed = ", ".join(f"`{slug}`" for slug in slugs)
    return f"| {form} | {'taken' if ours == 'yes' else 'refused'} | {listed} | {qemu} | {nitro} |"


def payload() -> bytes:
    """Return what is signed of the good image."""
    return payload_of(PCR0)


if __name__ == "__main__":
    print("\n".join(make_row(form) for form in SPECIMENS))
