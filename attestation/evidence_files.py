# SPDX-License-Identifier: MIT
"""A document as people keep it: raw, in base64 or in hex, in a file or on stdin; anything else is named."""

from __future__ import annotations

import base64
import binascii
import re
import sys
from pathlib import Path

from .errors import MalformedEvidence, UsageError, escape
from .files import read_limited
from .limits import MAX_DOCUMENT

MAX_TEXT = 4 * MAX_DOCUMENT  # bytes of a document written as hex or base64, with line breaks
SHOWN = 16  # bytes of what is no document: it may be a private key
FORM = "one COSE_Sign1, raw or in base64 or hex"
STDIN = "-"

_HEX = re.compile(rb"[0-9A-Fa-f]+")
_BASE64 = re.compile(rb"[0-9A-Za-z+/_-]+={0,2}")
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_evidence(name: str) -> bytes:
    """Return the document in a file, or on stdin if the name is `-`; raise UsageError or MalformedEvidence."""
    return decode_evidence(_read_stdin() if name == STDIN else _read_file(name))


def decode_evidence(raw: bytes) -> bytes:
    """Return the document in a file: as it is if it begins as a COSE_Sign1 does, else decoded from hex or base64."""
    if raw[:1] in (b"\x84", b"\xd2"):
        return raw
    text = b"".join(raw.removeprefix(_UTF8_MARK).split())
    reason = _name_other(raw, text)
    if reason is not None:
        raise MalformedEvidence(f"no attestation document: {reason}", expected=FORM, actual=f"{len(raw)} bytes")
    digits = text.removeprefix(b"0x")
    try:
        if _HEX.fullmatch(digits):
            return binascii.unhexlify(digits)
        padding = b"=" * (-len(text) % 4)  # URL-safe base64 often comes without
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + padding, validate=True)
    except ValueError as error:  # binascii.Error is one
        encoding = "hex" if _HEX.fullmatch(digits) else "base64" if _BASE64.fullmatch(text) else None
        raise MalformedEvidence(
            f"no attestation document: {encoding} that is cut or damaged" if encoding else "no attestation document",
            expected=FORM, actual=raw[:SHOWN],
        ) from error  # fmt: skip


def _name_other(raw: bytes, text: bytes) -> str | None:
    """Return what stands in the file where it is plainly something else; its content is not repeated."""
    if not text:
        return "nothing is in it"
    if raw.startswith(_UTF16_MARKS):
        return "it is text in UTF-16 (PowerShell's > writes so); save the bytes, or base64 as ASCII"
    armour = re.match(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----", raw.removeprefix(_UTF8_MARK).lstrip())
    if armour:
        return f"it is PEM ({escape(armour[1].decode())})"
    if text[:1] in (b"{", b"["):
        return "it is JSON; give the document in it alone"
    if text[:1] == b"<":
        return "it is HTML or XML"
    return None


def _read_file(name: str) -> bytes:
    # Who sent it made it too large: that is refused like any bad document, and others are judged all the same.
    return read_limited(
        Path(name), limit=MAX_TEXT, what="document", hint="- reads standard input", oversized=MalformedEvidence
    )


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise UsageError(
            "standard input is a terminal, which cuts long lines", expected="a document",
            hint="give a file, or redirect one: veracruz attest verify - ... < FILE",
        )  # fmt: skip
    raw = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise MalformedEvidence(
            "the document on standard input is too large", expected=f"at most {MAX_TEXT} bytes", actual="more"
        )
    return raw
