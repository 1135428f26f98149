# SPDX-License-Identifier: MIT
"""The smallest guests that tell whether an accelerator works: each uses vectors, says a word, and ends its machine.

For x86-64: a 32-bit ELF with the note by which QEMU starts a kernel in protected mode (PVH;
include/xen/interface/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY = 18). Nested hosts offer a KVM that opens, runs some
instructions and fails at the first AVX one, which any kernel or C library uses: so this guest uses one too, where there
is any.

For aarch64: a flat `Image` (the kernel's Documentation/arch/arm64/booting.rst) that uses NEON, speaks to the PL011 of
QEMU's `virt`, and ends by PSCI's SYSTEM_OFF.
"""

from __future__ import annotations

import struct

from enclave_image.architecture import Architecture

WORD = b"veracruz-probe\n"
BASE = 0x100000  # bytes; the guest's physical address, the first above the legacy area
NOTE = struct.pack("<III", 4, 4, 18) + b"Xen\0"
HEADERS = 52 + 2 * 32  # bytes: ELF header, two program headers

# Vol. 2 of Intel's manual: CPUID.1:ECX.26 XSAVE and .28 AVX; CR4.9 OSFXSR and .18 OSXSAVE.
DETECT = bytes.fromhex(
    "b801000000"  # mov eax, 1
    "0fa2"  # cpuid
    "81e100000014"  # and ecx, XSAVE | AVX
    "81f900000014"  # cmp ecx, XSAVE | AVX
    "75"  # jne over USE_AVX (its length follows)
)
USE_AVX = bytes.fromhex(
    "0f20e0"  # mov eax, cr4
    "0d00020400"  # or eax, OSFXSR | OSXSAVE
    "0f22e0"  # mov cr4, eax
    "31c931d2"  # xor ecx, ecx; xor edx, edx
    "b807000000"  # mov eax, x87 | SSE | AVX
    "0f01d1"  # xsetbv
    "c5fc57c0"  # vxorps ymm0, ymm0, ymm0
)


def _code(word: int, nothing: int) -> bytes:
    """Return the guest's instructions; `word` is the address of what it says, `nothing` that of eight zero bytes."""
    say = b"\x66\xba\xf8\x03\xbe" + struct.pack("<I", word)  # mov dx, 0x3f8; mov esi, word
    say += b"\xb9" + struct.pack("<I", len(WORD))  # mov ecx, length
    say += b"\xac\xee\xe2\xfc"  # again: lodsb; out dx, al; loop again
    reset = b"\x0f\x01\x1d" + struct.pack("<I", nothing) + b"\xcc\xf4\xeb\xfd"  # lidt nothing; int3: a triple fault
    return DETECT + bytes([len(USE_AVX)]) + USE_AVX + say + reset


_ARM_HEAD = 64  # bytes
_ARM_CODE = struct.pack(
    "<15I",
    0xD2A00600,  # mov x0, #3 << 20
    0xD5181040,  # msr cpacr_el1, x0: vectors are allowed
    0xD5033FDF,  # isb
    0x4F00E400,  # movi v0.16b, #0
    0x10000161,  # adr x1, word: behind the last instruction, 44 bytes on
    0xD2A12002,  # mov x2, #0x9000000: the PL011's data register (QEMU hw/arm/virt.c)
    0x38401420,  # again: ldrb w0, [x1], #1
    0x34000060,  # cbz w0, done
    0xB9000040,  # str w0, [x2]
    0x17FFFFFD,  # b again
    0x52B08000,  # done: mov w0, #0x84000000
    0x72800100,  # movk w0, #8: SYSTEM_OFF (PSCI, Arm DEN 0022, 5.9)
    0xD4000002,  # hvc #0
    0xD503207F,  # rest: wfi
    0x17FFFFFF,  # b rest
)


def probe_guest(architecture: Architecture = Architecture.X86_64) -> bytes:
    """Return the file that QEMU's -kernel takes."""
    return _arm_guest() if architecture is Architecture.AARCH64 else _x86_guest()


def _arm_guest() -> bytes:
    body = _ARM_CODE + WORD + b"\0"
    branch = 0x14000000 | _ARM_HEAD // 4  # b over the header
    return struct.pack("<IIQQQ24x4sI", branch, 0, 0, _ARM_HEAD + len(body), 0, b"ARM\x64", 0) + body


def _x86_guest() -> bytes:
    note = len(NOTE) + 4
    entry = BASE + HEADERS + note
    length = len(_code(0, 0))
    body = _code(entry + length, entry + length + len(WORD)) + WORD + bytes(8)
    size = HEADERS + note + len(body)
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    load = struct.pack("<8I", 1, 0, BASE, BASE, size, size, 7, 0x1000)
    notes = struct.pack("<8I", 4, HEADERS, BASE + HEADERS, BASE + HEADERS, note, note, 4, 4)
    return header + load + notes + NOTE + struct.pack("<I", entry) + body
