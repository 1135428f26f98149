# SPDX-License-Identifier: MIT
"""Image measurements: what PCR0, PCR1 and PCR2 of an image will be, register arithmetic, and the measurements file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .limits import MAX_MEASUREMENTS_FILE, PCR_SIZE
from .strict_json import Node, read_json

ZERO_PCR = bytes(PCR_SIZE)  # a register that was never extended; in PCR0-2: debug mode
HASH_ALGORITHM = "Sha384 { ... }"  # nitro-cli's own spelling: Rust's Debug form of the hasher
MAX_IMAGES = 64  # measurement sets in one file

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Measurements:
    """PCR0, PCR1 and PCR2 of one image, 48 bytes each: always compared together.

    PCR0 alone does not fix where kernel, command line and first ramdisk end: contents are concatenated without lengths.
    """

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes

    def __post_init__(self) -> None:
        for index, value in enumerate(self.registers):
            if type(value) is not bytes or len(value) != PCR_SIZE:
                raise ValueError(f"PCR{index} is {PCR_SIZE} bytes")

    @property
    def registers(self) -> tuple[bytes, bytes, bytes]:
        """The three values in order of their index."""
        return self.pcr0, self.pcr1, self.pcr2

    @property
    def debug(self) -> bool:
        """Whether any of the three is zero: no image has such a value, debug mode does."""
        return ZERO_PCR in self.registers


def extend(old: bytes, data: Buffer) -> bytes:
    """Return a register's value after one extension: SHA384(old || data) (nsm-api ExtendPCR)."""
    if len(old) != PCR_SIZE:
        raise ValueError(f"a register is {PCR_SIZE} bytes")
    digest = hashlib.sha384(old)
    digest.update(data)
    return digest.digest()


def role_pcr(arn: str) -> bytes:
    """Return PCR3 for the ARN of the parent instance's IAM role (hashed raw, without an inner hash)."""
    return extend(ZERO_PCR, arn.encode())


def instance_pcr(instance_id: str) -> bytes:
    """Return PCR4 for the parent's instance id (hashed raw, without an inner hash)."""
    return extend(ZERO_PCR, instance_id.encode())


def signer_pcr(certificate: bytes) -> bytes:
    """Return PCR8 for the DER of an image's signing certificate."""
    return _finish(hashlib.sha384(certificate))


class Measurer:
    """Measure an image while its parts stream by, in file order (aws-nitro-enclaves-image-format: EIF Measurements).

    PCR0 = all, PCR1 = kernel, command line and first ramdisk, PCR2 = the later ramdisks.
    """

    def __init__(self) -> None:
        self._image = hashlib.sha384()
        self._boot: Any = None  # the same as the image until a second ramdisk comes: so long, one hash does for both
        self._application = hashlib.sha384()

    def kernel(self, chunk: Buffer) -> None:
        """Add bytes of the kernel."""
        self._add_boot(chunk)

    def cmdline(self, chunk: Buffer) -> None:
        """Add bytes of the command line."""
        self._add_boot(chunk)

    def ramdisk(self, index: int, chunk: Buffer) -> None:
        """Add bytes of the ramdisk of this index, the first being 0."""
        if not index:
            self._add_boot(chunk)
            return
        if self._boot is None:
            self._boot = self._image.copy()
        self._image.update(chunk)
        self._application.update(chunk)

    def _add_boot(self, chunk: Buffer) -> None:
        self._image.update(chunk)
        if self._boot is not None:
            self._boot.update(chunk)

    def measurements(self) -> Measurements:
        """Return the registers for what was added so far."""
        boot = self._image if self._boot is None else self._boot
        return Measurements(_finish(self._image), _finish(boot), _finish(self._application))


def _finish(content: Any) -> bytes:
    return extend(ZERO_PCR, content.digest())


def measure_image(*, kernel: Buffer, cmdline: Buffer, ramdisks: Iterable[Buffer]) -> Measurements:
    """Return the measurements of an image out of its parts (section data only, no headers, no trailing NUL)."""
    measurer = Measurer()
    measurer.kernel(kernel)
    measurer.cmdline(cmdline)
    for index, ramdisk in enumerate(ramdisks):
        measurer.ramdisk(index, ramdisk)
    return measurer.measurements()


def load_measurements(raw: bytes) -> tuple[Measurements, ...]:
    """Parse a measurements file; raise MalformedInput, naming the place.

    Accepts `{"Measurements": {...}}`, as we and nitro-cli's build-enclave and describe-eif write it (other top-level
    keys are theirs and not read), or an array of such objects: any one of several images, or nitro-cli's
    describe-enclaves. Zero registers are refused: they would accept debug mode.
    """
    top = read_json(raw, limit=MAX_MEASUREMENTS_FILE, what="the measurements file")
    entries = top.array(least=1, most=MAX_IMAGES) if isinstance(top.value, list) else [top]
    return tuple(_measurements(entry) for entry in entries)


def _measurements(entry: Node) -> Measurements:
    found = dict(entry.members()).get("Measurements")
    if found is None:
        entry.fail("a key is missing", expected="Measurements")
    # PCR8, the signer, stands there in a signed image's; it is a demand of its own (expectations.SignerIs).
    members = found.object("PCR0", "PCR1", "PCR2", optional=("HashAlgorithm", "PCR8"))
    if "HashAlgorithm" in members:
        algorithm = members["HashAlgorithm"].text(most=64)
        if algorithm.partition(" ")[0].upper() != "SHA384":
            members["HashAlgorithm"].fail("another algorithm", expected="SHA384", actual=algorithm)
    registers = []
    for name in ("PCR0", "PCR1", "PCR2"):
        registers.append(members[name].hexadecimal(PCR_SIZE))
        if registers[-1] == ZERO_PCR:
            members[name].fail("zero: that is debug mode and no image's measurement")
    return Measurements(*registers)


def dump_measurements(measurements: Measurements) -> dict[str, dict[str, str]]:
    """Return the JSON object of one image, under nitro-cli's names."""
    registers = {f"PCR{index}": value.hex() for index, value in enumerate(measurements.registers)}
    return {"Measurements": {"HashAlgorithm": HASH_ALGORITHM, **registers}}
