# SPDX-License-Identifier: MIT
"""Debian's archive as its keyring signed it: InRelease, and the Packages indices that it names by hash.

The chain: (1) a key of the archive's keyring signed the InRelease; (2) it is the suite that was asked for; (3) it is
not past its Valid-Until, which -updates and -security must have; (4) it is not older than the one that the lock was
made from; (5) the index has the SHA-256 and size that it names. Whatever fails ends the run: nothing unsigned is used.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from .architecture import BUILDER, Architecture
from .debian import PoolFile, parse_packages
from .download import AddressFailed, read_url
from .errors import ArchiveUntrusted, InputUnavailable
from .lock import Release

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MAX_RELEASE = 4 * 1024 * 1024  # bytes of an InRelease
MAX_INDEX = 64 * 1024 * 1024  # bytes of a Packages.xz
MAX_UNPACKED = 512 * 1024 * 1024  # bytes
GPGV_LIMIT = 60  # seconds
CLOCK_SLACK = timedelta(hours=24)  # a release from further in the future means that this machine's clock is wrong

# What gpgv says of a signature that must not count (doc/DETAILS of GnuPG); NO_PUBKEY alone is a key that we lack.
_BAD = re.compile(r"^\[GNUPG:\] (BADSIG|EXPSIG|EXPKEYSIG|REVKEYSIG|NODATA|FAILURE)\b.*$", re.MULTILINE)
_GOOD = re.compile(r"^\[GNUPG:\] VALIDSIG ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Index:
    """One suite's packages, and the release that vouches for them."""

    release: Release
    packages: tuple[PoolFile, ...]


def _get(url: str, limit: int) -> bytes:
    try:
        raw = read_url(url, limit=limit)
    except AddressFailed as error:
        raise InputUnavailable(f"cannot read {url}: {error}") from error
    if len(raw) > limit:
        raise ArchiveUntrusted(f"{url} is too long", expected=f"at most {limit} bytes")
    return raw


def verify_release(signed: bytes, *, keyring: Path = KEYRING) -> str:
    """Return the text of an InRelease that a key in the keyring signed; raise ArchiveUntrusted."""
    if shutil.which("gpgv") is None:
        raise InputUnavailable("cannot check the archive's signature: no gpgv here", hint="apt-get install gpgv")
    if not keyring.is_file():
        raise InputUnavailable(
            f"cannot check the archive's signature: no keyring {keyring}",
            hint="apt-get install debian-archive-keyring, or name its file: --keyring FILE",
        )
    with tempfile.TemporaryDirectory(prefix="veracruz-release-") as scratch:
        source, out = Path(scratch) / "InRelease", Path(scratch) / "Release"
        source.write_bytes(signed)
        try:
            done = subprocess.run(
                ["gpgv", "--status-fd", "1", "--keyring", str(keyring.absolute()), "--output", str(out), str(source)],
                stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=GPGV_LIMIT,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": scratch},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ArchiveUntrusted("gpgv did not end", expected=f"{GPGV_LIMIT} s") from error
        status = done.stdout.decode("ascii", "replace")
        if (bad := _BAD.search(status)) is not None:
            raise ArchiveUntrusted("the archive's InRelease has a bad signature", actual=bad[0][9:])
        if _GOOD.search(status) is None or not out.is_file():
            raise ArchiveUntrusted(
                "the archive's InRelease has no good signature", expected=f"one by a key in {keyring}",
                actual=" ".join(done.stderr.decode("utf-8", "replace").split())[-160:],
            )  # fmt: skip
        return out.read_bytes().decode("utf-8", "replace")  # what was signed, not what stands around it


def _fields(release: str) -> Mapping[str, str]:
    return dict(re.findall(r"^([A-Z][A-Za-z-]*): (.*)$", release, re.MULTILINE))


def _time(fields: Mapping[str, str], name: str, base: str) -> datetime:
    try:
        time = parsedate_to_datetime(fields[name])
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (KeyError, ValueError, TypeError) as error:
        raise ArchiveUntrusted(f"{base}: {name}", expected="a date", actual=fields.get(name)) from error


def check_release(text: str, *, suite: str, now: datetime, after: Release | None, base: str) -> datetime:
    """Return the date of a release whose signature is good; raise ArchiveUntrusted for points 2 to 4."""
    fields = _fields(text)
    if fields.get("Codename") != suite:
        raise ArchiveUntrusted(f"{base} is another suite", expected=suite, actual=fields.get("Codename"))
    date = _time(fields, "Date", base)
    if date > now + CLOCK_SLACK:
        raise ArchiveUntrusted(f"{base} is from the future", expected=f"before {now}: is the clock right?", actual=date)
    if "Valid-Until" in fields:
        until = _time(fields, "Valid-Until", base)
        if until < now:
            raise ArchiveUntrusted(f"{base} has expired: the mirror is stale", expected=f"valid at {now}", actual=until)
    elif "-" in suite:  # the plain suite changes only in point releases and has no end
        raise ArchiveUntrusted(f"{base} names no Valid-Until", expected="one, in this suite")
    if after is not None and date < after.date:
        raise ArchiveUntrusted(
            f"{base} is older than the one that the lock was made from", expected=f"from {after.date}", actual=date,
            hint="the mirror is behind, or somebody holds back updates: try another",
        )  # fmt: skip
    return date


def read_index(
    mirror: str,
    suite: str,
    *,
    architectures: Sequence[Architecture] = (BUILDER,),
    after: Release | None = None,
    keyring: Path = KEYRING,
    now: datetime | None = None,
) -> Index:
    """Return a suite's packages, over the chain above. `after` is the release that the lock was made from.

    Those of another architecture than the building machine's have it behind their names, as in `libc6:arm64`.
    """
    base = f"{mirror}/dists/{suite}"
    signed = _get(f"{base}/InRelease", MAX_RELEASE)
    text = verify_release(signed, keyring=keyring)  # (1)
    date = check_release(text, suite=suite, now=now or datetime.now(UTC), after=after, base=base)  # (2) (3) (4)
    release = Release(suite, date.replace(microsecond=0), hashlib.sha256(signed).hexdigest())
    packages: list[PoolFile] = []
    for architecture in architectures:
        index = _read_packages(base, text, f"main/binary-{architecture.debian}/Packages.xz")
        packages += [replace(package, name=architecture.package(package.name)) for package in index]
    return Index(release, tuple(packages))


def _read_packages(base: str, release: str, wanted: str) -> list[PoolFile]:
    hashes = release.split("\nSHA256:", 1)[-1] if "\nSHA256:" in release else ""
    row = re.search(rf"^ ([0-9a-f]{{64}}) +(\d{{1,12}}) (?:updates/)?{re.escape(wanted)}$", hashes, re.MULTILINE)
    if row is None:
        raise ArchiveUntrusted(f"{base}/InRelease names no {wanted}")
    raw = _get(f"{base}/{wanted.rsplit('/', 1)[0]}/by-hash/SHA256/{row[1]}", MAX_INDEX)
    actual = hashlib.sha256(raw).hexdigest()
    if (len(raw), actual) != (int(row[2]), row[1]):  # (5)
        raise ArchiveUntrusted(
            f"{base}: {wanted} is not the file that was signed", expected=f"SHA-256 {row[1]}, {row[2]} bytes",
            actual=f"{actual}, {len(raw)} bytes",
        )  # fmt: skip
    return list(parse_packages(_unpack(raw, base)))


def _unpack(raw: bytes, base: str) -> str:
    try:
        reader = lzma.LZMADecompressor(memlimit=MAX_UNPACKED)
        text = reader.decompress(raw, max_length=MAX_UNPACKED)
        if not reader.eof:
            raise ArchiveUntrusted(f"{base}: the index is too long or truncated", expected=f"at most {MAX_UNPACKED}")
        return text.decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ArchiveUntrusted(f"{base}: the index cannot be unpacked", actual=error) from error
