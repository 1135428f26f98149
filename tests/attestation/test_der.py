# SPDX-License-Identifier: MIT
"""Bytes of a certificate: the fields are where the library finds them, and a plain name says what it says."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from attestation.chain import aws_root
from attestation.der import read_extensions, read_fields, read_plain_name

from .documents import make_pki

PKI = make_pki()
_OIDS = st.sampled_from(
    [
        NameOID.COMMON_NAME, NameOID.LOCALITY_NAME, NameOID.STATE_OR_PROVINCE_NAME, NameOID.ORGANIZATION_NAME,
        NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.SERIAL_NUMBER, NameOID.DOMAIN_COMPONENT, NameOID.TITLE,
    ]
)  # fmt: skip
_TEXTS = st.text(st.sampled_from('aZ09 .:-_+,=#\\"<>;\0éя'), min_size=1, max_size=12) | st.sampled_from(
    ["x" * 64, "AWS"]
)
_RDNS = st.lists(st.builds(x509.NameAttribute, _OIDS, _TEXTS), min_size=1, max_size=2, unique=True).map(
    x509.RelativeDistinguishedName
)


@given(st.lists(_RDNS, max_size=5).map(x509.Name))
def test_a_plain_name_reads_as_the_library_writes_it(name: x509.Name) -> None:
    plain = read_plain_name(name.public_bytes())
    assert plain is None or plain == name.rfc4514_string()


@given(st.binary(max_size=40))
def test_bytes_that_are_no_name_are_not_plain(raw: bytes) -> None:
    read_plain_name(raw)
    with pytest.raises(ValueError, match=r"."):
        read_fields(raw)
    with pytest.raises(ValueError, match=r"."):
        read_extensions(raw)


@pytest.mark.parametrize("der", [aws_root().certificate, *PKI.certificates.values()])
def test_the_fields_are_those_that_the_library_finds(der: bytes) -> None:
    certificate = x509.load_der_x509_certificate(der)
    fields = read_fields(der)
    assert fields.issuer == certificate.issuer.public_bytes()
    assert fields.subject == certificate.subject.public_bytes()
    assert read_plain_name(fields.subject) == certificate.subject.rfc4514_string()
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert fields.key == key
    assert fields.signed == certificate.tbs_certificate_bytes
    assert fields.signature[3:] == certificate.signature
    assert fields.inner_algorithm == fields.algorithm
    assert fields.algorithm in der
    assert int.from_bytes(fields.serial[2:], "big") == certificate.serial_number
    assert len(read_extensions(fields.extensions)) == len(certificate.extensions)
    for size in range(len(der)):
        with pytest.raises(ValueError, match=r"."):
            read_fields(der[:size])
    with pytest.raises(ValueError, match="bytes after the certificate"):
        read_fields(der + b"\0")
