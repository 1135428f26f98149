# SPDX-License-Identifier: MIT
"""The locked toolchain: unpacked into a directory that is then the whole world of a compilation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .architecture import BUILDER, Architecture
from .debian import unpack
from .errors import BuildFailed, NoSandbox
from .run import run

SANDBOX = Path(__file__).parent / "sandbox.py"
PREFIX = f"{BUILDER.triplet}-"  # of the tools whose products run in the build itself
LIBRARY_DIRS = (BUILDER.libraries, "usr/lib")

# Documentation, and programs that no step runs and that would need further libraries (libstdc++, libsystemd).
_UNUSED = re.compile(
    r"usr/share/(doc|man|locale|info|lintian)/|.*/(lto1|lto-wrapper)$|.*/gconv/|.*/gcc(-cross)?/.*/plugin/|usr/bin/(pinky|users|who|uptime)$"
)

# A step of kbuild whose tool is missing or misbehaves often goes on with a wrong result; only the log shows it. Such
# lines come from shell, loader, make and the tools themselves, in words of their own.
_SUSPICIOUS = re.compile(
    r"not found|No such file|error while loading|cannot |can't |[Pp]ermission denied|[Ii]nvalid|[Uu]nrecognized|"
    r"[Uu]nknown option|[Bb]ad (?:regex|substitution|option|file)|[Uu]nmatched|[Rr]egular expression|[Ss]yntax error|"
    r"parse error|[Uu]sage: |Illegal instruction|Segmentation fault|core dumped|Killed|Terminated|Bus error|"
    r"Exec format|No space left|Broken pipe|Input/output error|Error [0-9]+ \(ignored\)|Bad system call|"
    r"not permitted|not supported"
)
# What is no message: the command itself, kbuild's own "  CC      file.o", the source that gcc shows under a warning.
_NO_MESSAGE = re.compile(r"\+ |  [A-Z][A-Z0-9_]*(?: \[[A-Z]\])? +\S+$|\s*\d* \| ")
# kbuild asks for tools that it can do without, and says so in these lines.
_HARMLESS = re.compile(r"pahole|rustc|bindgen|pkg-config|git: not found")

ENVIRONMENT = {"PATH": "/usr/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/tmp", "TMPDIR": "/tmp"}


def compiler_for(architecture: Architecture) -> str:
    """Return the name of the C compiler whose products run on an architecture."""
    return f"{architecture.triplet}-gcc-14"


def make_sysroot(root: Path, packages: Sequence[Path]) -> None:
    """Unpack the toolchain's packages into `root` and make by hand what their maintainer scripts would.

    Raises BuildFailed when a library that a program needs is in none of them: such a tool fails late or silently.
    """
    for package in packages:
        unpack(package, root, keep=lambda name: not _UNUSED.match(name))
    for alias in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / alias).mkdir(exist_ok=True)
        (root / alias).symlink_to(f"usr/{alias}")
    loader = root / "usr" / BUILDER.loader_directory / BUILDER.loader
    if not loader.is_symlink() and not loader.exists():
        loader.symlink_to(f"../lib/{BUILDER.triplet}/{BUILDER.loader}")
    binaries = root / "usr/bin"
    (binaries / "awk").symlink_to("mawk")  # update-alternatives would
    for tool in ("as", "ld"):  # gcc looks for these names
        (binaries / tool).symlink_to(f"{PREFIX}{tool}")
    if not (binaries / "sh").exists():
        (binaries / "sh").symlink_to("dash")
    for directory in ("dev", "tmp", "src", "build"):
        (root / directory).mkdir()
    check_libraries(root)


def needed_libraries(path: Path) -> Iterator[str]:
    """Yield the DT_NEEDED names of an ELF file (none for another file), by the ELF64 tables alone."""
    raw = path.read_bytes()
    if raw[:6] != b"\x7fELF\x02\x01" or len(raw) < 64:
        return

    def word(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little")

    table, entry, count = word(32, 8), word(54, 2), word(56, 2)
    segments = [table + index * entry for index in range(count)]
    loads = [(word(s + 16, 8), word(s + 8, 8), word(s + 32, 8)) for s in segments if word(s, 4) == 1]
    for segment in segments:
        if word(segment, 4) != 2:  # PT_DYNAMIC
            continue
        start, size = word(segment + 8, 8), word(segment + 32, 8)
        tags = [(word(at, 8), word(at + 8, 8)) for at in range(start, start + size, 16)]
        address = next((value for tag, value in tags if tag == 5), None)  # DT_STRTAB
        if address is None:
            return
        base = next(
            (offset + address - vaddr for vaddr, offset, length in loads if vaddr <= address < vaddr + length), 0
        )
        for tag, value in tags:
            if tag == 0:
                return
            if tag == 1:  # DT_NEEDED
                begin = base + value
                yield raw[begin : raw.index(b"\0", begin)].decode("ascii", "replace")


def check_libraries(root: Path, directories: Sequence[str] = LIBRARY_DIRS) -> None:
    """Raise BuildFailed unless every library that a file in `root` needs is there."""
    present = {path.name for directory in directories for path in (root / directory).iterdir()}
    missing: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and (path.stat().st_mode & 0o111 or ".so" in path.name):
            for name in needed_libraries(path):
                if name not in present and not (path.parent / name).exists():
                    missing.setdefault(name, str(path.relative_to(root)))
    if missing:
        rows = ", ".join(f"{name} (for {user})" for name, user in sorted(missing.items()))
        raise BuildFailed(f"libraries that nothing provides: {rows}", hint="add their packages to image.toml and lock")


def sandboxed(
    root: Path, command: Sequence[str], *, what: str, log: Path, env: Mapping[str, str] | None = None
) -> None:
    """Run a command with `root` as its whole world; raise BuildFailed, or NoSandbox where none can be had."""
    words = [sys.executable, "-I", str(SANDBOX), str(root), "--", *command]
    try:
        run(words, what=what, log=log, env={**ENVIRONMENT, **(env or {})})
    except BuildFailed as error:
        if "exit code 97" in error.what:
            raise NoSandbox(
                "this machine allows no sandbox to compile in: no unprivileged user namespace",
                hint="run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
                "kernel.apparmor_restrict_unprivileged_userns=0)",
            ) from error
        raise


def check_log(log: Path) -> None:
    """Raise BuildFailed when a build's log shows a missing or misbehaving tool."""
    for line in log.read_text("utf-8", "replace").splitlines():
        if _SUSPICIOUS.search(line) and not _HARMLESS.search(line) and not _NO_MESSAGE.match(line):
            raise BuildFailed("the build only seemed to succeed; its log says", actual=line, hint=f"see {log}")
