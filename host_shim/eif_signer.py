# SPDX-License-Identifier: MIT
"""Who signed an image: the certificate in an EIF's signature section, which PCR8 measures.

As QEMU's loader, the emulator takes the certificate's fingerprint and does not verify the signature: that is the work
of the image's own tools, and PCR0 is what the signature covers.
"""

from __future__ import annotations

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.limits import MAX_CERTIFICATE_PEM
from enclave_image.eif import MAX_SIGNATURE
from enclave_image.errors import MalformedEif


def signer_of(section: bytes | None) -> bytes | None:
    """Return the DER of the first signature's certificate; raise MalformedEif.

    The section is CBOR: [{"signing_certificate": [PEM's bytes as numbers], "signature": [...]}, ...].
    """
    if section is None:
        return None
    try:
        if len(section) > MAX_SIGNATURE:
            raise ValueError("too long")
        first = cbor2.loads(section)[0]
        pem = bytes(first["signing_certificate"])
        if set(first) != {"signing_certificate", "signature"} or len(pem) > MAX_CERTIFICATE_PEM:
            raise ValueError("other fields")
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except Exception as error:  # cbor2 and cryptography raise many types on malformed bytes
        raise MalformedEif("the signature section is malformed", actual=error) from error
