# SPDX-License-Identifier: MIT
"""Targets that read files from others: policies, measurements, enclave images."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import MalformedInput
from attestation.measurements import ZERO_PCR, dump_measurements, load_measurements
from attestation.policy import parse_policy
from enclave_image.eif import SectionType, read_eif, write_eif
from enclave_image.eif_tool.cpio_reader import Budget, read_ramdisk
from enclave_image.eif_tool.inspection import inspect
from enclave_image.eif_tool.layout import BytesSource
from enclave_image.errors import MalformedEif, MalformedRamdisk
from enclave_image.initramfs import File, Link, Node, Tree, write_cpio
from host_shim.eif_signer import signer_of
from tests.attestation.documents import (
    IMAGE,
    LEAF_USAGE,
    MADE_AT,
    NITRO_FORMS,
    OTHER_IMAGE,
    CertificateForm,
    make_certificate,
    make_key,
)
from tests.attestation.parties import policy_members

from .mutations import change_bytes, change_cbor, change_json
from .target import Target, WrongVerdict

HEADER = 548  # bytes of an EIF's
CRC_AT = HEADER - 4
TABLE_AT = 28


def _certificate(name: str) -> str:
    key = make_key(ec.SECP384R1(), seed=f"fuzzing {name}")
    span = NITRO_FORMS["root"]
    form = CertificateForm(name, span.before, span.after, ca=False, usage=LEAF_USAGE, key_identifiers=False)
    der = make_certificate(form, key=key, issuer_name=name, issuer_key=key, seed=f"fuzzing {name}")
    return f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"


# Policies and measurements


def run_policy(data: bytes) -> None:
    policy = parse_policy(data)
    if policy.raw != data or any(image.debug for image in policy.images) or not policy.participants:
        raise WrongVerdict("a policy was accepted that lets debug mode or nobody in")
    # json keeps the last of two equal keys; the reader must have refused such a text.
    if len(json.loads(data)["participants"]) != len(policy.participants):
        raise WrongVerdict("the policy has other participants than its text")


def policy_seeds() -> Mapping[str, bytes]:
    members = policy_members({name: _certificate(name) for name in ("alice", "bob")})
    needed = {name: members[name] for name in ("schema", "name", "images", "participants", "join", "programs")}
    return {"full": json.dumps(members, indent=1).encode(), "needed": json.dumps(needed).encode()}


def run_measurements(data: bytes) -> None:
    images = load_measurements(data)
    if not images or any(ZERO_PCR in image.registers for image in images):
        raise WrongVerdict("measurements were accepted that name no image, or debug mode")


def measurement_seeds() -> Mapping[str, bytes]:
    ours, other = dump_measurements(IMAGE), dump_measurements(OTHER_IMAGE)
    described = {"EifVersion": 4, **ours, "IsSigned": False, "CheckCRC": True, "ImageName": "x", "Metadata": {}}
    signed = {"Measurements": {**ours["Measurements"], "PCR8": "ab" * 48}}
    values = {"ours": ours, "several": [ours, other], "nitro-cli": described, "signed": signed}
    return {name: json.dumps(value).encode() for name, value in values.items()}


# Enclave images: the first byte says whether sizes and CRC are put right, or the signature section alone is read


def run_eif(data: bytes) -> None:
    mode, raw = (data[0] & 3 if data else 0), data[1:]
    if mode == 3:
        signer_of(raw)
        return
    if mode:
        raw = _repaired(raw)
    found = inspect(BytesSource(raw), at=MADE_AT)
    image = read_eif(raw)
    if found.measurements != image.measurements:
        raise WrongVerdict("describe tells other measurements than the reader of what boots")
    signer_of(image.signature)
    parts = [(section.type, bytes(section.data)) for section in image.sections]
    again = read_eif(write_eif(parts))
    if again.measurements != image.measurements or image.size != len(raw):
        raise WrongVerdict("an image was accepted that is another one when written again")
    if sum(12 + len(section.data) for section in image.sections) + HEADER != len(raw):
        raise WrongVerdict("an image was accepted with bytes that belong to no section")


def _repaired(raw: bytes) -> bytes:
    """Return the image with the CRC that its bytes have: nothing else is reached otherwise."""
    if len(raw) < HEADER:
        return raw
    crc = zlib.crc32(raw[HEADER:], zlib.crc32(raw[:CRC_AT]))
    return raw[:CRC_AT] + crc.to_bytes(4, "big") + raw[HEADER:]


def _signature() -> bytes:
    pem = _certificate("signer").encode()
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(range(96))}])


def eif_seeds() -> Mapping[str, bytes]:
    metadata = json.dumps({"ImageName": "x", "ImageVersion": "1", "BuildMetadata": {}, "DockerInfo": {}}).encode()
    plain = [
        (SectionType.KERNEL, b"kernel"),
        (SectionType.CMDLINE, b"console=ttyS0"),
        (SectionType.METADATA, metadata),
        (SectionType.RAMDISK, b"boot"),
        (SectionType.RAMDISK, b"application"),
    ]
    signed = [*plain, (SectionType.SIGNATURE, _signature())]
    return {
        "plain": b"\0" + write_eif(plain),
        "repaired": b"\1" + write_eif(plain, aarch64=True),
        "signed": b"\1" + write_eif(signed),
        "signature-section": b"\3" + _signature(),
    }


def change_eif(data: bytes, random: Random) -> bytes:
    """Change a section's content and its sizes, or leave out, repeat and swap sections, or change bytes."""
    mode, raw = (data[0] & 3 if data else 0), data[1:]
    if mode == 3:
        return data[:1] + change_cbor(raw, random)
    try:
        image = read_eif(_repaired(raw))
    except MalformedEif:
        return data[:1] + change_bytes(raw, random)
    parts = [(section.type, bytes(section.data)) for section in image.sections]
    index = random.randrange(len(parts))
    match random.randrange(6):
        case 0 if len(parts) > 2:
            del parts[index]
        case 1 if len(parts) < 32:
            parts.insert(index, parts[index])
        case 2:
            parts[index], parts[0] = parts[0], parts[index]
        case 3:
            parts[index] = (random.choice(list(SectionType)), parts[index][1])
        case 4 if parts[index][0] is SectionType.SIGNATURE:
            parts[index] = (parts[index][0], change_cbor(parts[index][1], random))
        case _:
            parts[index] = (parts[index][0], change_bytes(parts[index][1], random))
    made = bytearray(write_eif(parts))
    if random.randrange(3) == 0:  # one number of the table
        place = TABLE_AT + 8 * random.randrange(64)
        made[place : place + 8] = random.choice((0, 1, 12, 548, 1 << 31, 1 << 32, (1 << 64) - 1)).to_bytes(8, "big")
    return data[:1] + bytes(made)


# Ramdisks: the first byte says whether the rest is compressed

ROOM = Budget(unpacked=1 << 22, entries=1000, names=1 << 16)
TREE: Tree = {"bin/init": File(b"#!", executable=True), "etc": None, "etc/link": Link("../x"), "dev": Node(1, 3, 0o666)}


def run_initramfs(data: bytes) -> None:
    raw = gzip.compress(data[1:], mtime=0) if data and data[0] & 1 else data[1:]
    budget, size, count = replace(ROOM), 0, 0
    for _, pieces in read_ramdisk(iter([raw]), budget):
        size, count = size + sum(map(len, pieces)), count + 1
    if size > max(ROOM.unpacked, len(raw)) or count > ROOM.entries:
        raise WrongVerdict("more was unpacked than there is room for")


def initramfs_seeds() -> Mapping[str, bytes]:
    archive = write_cpio(TREE)
    return {
        "plain": b"\0" + archive,
        "compressed-anew": b"\1" + archive,
        "two": b"\0" + archive + archive,
        "gzip": b"\0" + gzip.compress(archive, 0, mtime=0),  # stored: the same with every zlib
    }


TARGETS = (
    Target("initramfs", "ramdisks: cpio, packed or not", run_initramfs, (MalformedRamdisk,), initramfs_seeds),
    Target("policy", "parse_policy()", run_policy, (MalformedInput,), policy_seeds, change_json),
    Target(
        "measurements", "the measurements file", run_measurements, (MalformedInput,), measurement_seeds, change_json
    ),
    Target("eif", "read_eif() and the signature section", run_eif, (MalformedEif,), eif_seeds, change_eif),
)
