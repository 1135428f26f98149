# SPDX-License-Identifier: MIT
"""Bytes of a certificate: the fields are where the library finds them, and a plain name says what it says."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from attestation.chain import aws_root
from attestation.der import read_fields, read_plain_name

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


@pytest.mark.parametrize("der", [aws_root().certificate, *PKI.certificates.values()])
def test_the_fields_are_those_that_the_library_finds(der: bytes) -> None:
    certificate = x509.load_der_x509_certificate(der)
    issuer, subject, key = read_fields(der)
    assert issuer == certificate.issuer.public_bytes()
    assert subject == certificate.subject.public_bytes()
    assert key[-97:] == der[der.index(key) + len(key) - 97 :][:97]
    assert read_plain_name(subject) == certificate.subject.rfc4514_string()
    for size in range(len(der) // 2):
        with pytest.raises(ValueError, match=r"."):
            read_fields(der[:size])
