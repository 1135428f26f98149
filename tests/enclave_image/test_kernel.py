# SPDX-License-Identifier: MIT
"""The kernel's making without making one: configurations, patches, given kernels, builds that only seem to succeed."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import UsageError
from enclave_image.architecture import Architecture
from enclave_image.config import DEFAULT_DIR, load_config
from enclave_image.errors import BuildFailed, InputMismatch, MalformedConfig
from enclave_image.given_kernel import load_given_kernel
from enclave_image.kernel import build_environment, kernel_key
from enclave_image.kernel_checks import ORC_HASH, check_kernel, find_kernel
from enclave_image.kernel_config import KernelConfig, check_config, load_kernel_config, parse_fragment
from enclave_image.patches import Patch, apply_patch, load_patch
from enclave_image.toolchain import check_log
from host_shim.cli import main

X86 = Architecture.X86_64

# --- configurations ---


def configuration(text: str) -> KernelConfig:
    return KernelConfig("test", parse_fragment("kernel.fragment", text.encode()))


def test_a_line_without_effect_fails_the_build() -> None:
    check_config(configuration("CONFIG_A=y  # why\nCONFIG_B=n  # why\n"), "CONFIG_A=y\n# CONFIG_B is not set\n")
    with pytest.raises(BuildFailed, match="CONFIG_A did not take effect; expected y, got n"):
        check_config(configuration("CONFIG_A=y  # why\n"), "# CONFIG_A is not set\n")
    with pytest.raises(BuildFailed, match="CONFIG_B"):
        check_config(configuration("CONFIG_B=n  # why\n"), "CONFIG_B=y\n")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("CONFIG_A=y\n", "kernel.fragment:1"),  # no reason
        ("CONFIG_A=y  # why\nCONFIG_A=n  # why\n", "kernel.fragment:2: CONFIG_A is set twice"),
        ("# words\nCONFIG_A = y  # why\n", "kernel.fragment:2"),
        ("CONFIG_A=m  # no modules\n", "kernel.fragment:1"),
        ("config_a=y  # why\n", "kernel.fragment:1"),
        ("# \xe9\n", "no ASCII"),
    ],
)
def test_refuses_a_fragment_that_is_not_of_its_form(text: str, place: str) -> None:
    with pytest.raises(MalformedConfig, match=place):
        configuration(text)


def test_a_reasons_wording_changes_no_kernel() -> None:
    first, second = configuration("CONFIG_A=y  # why\n"), configuration("# new\nCONFIG_A=y  # other words\n")
    assert first.fragment == second.fragment == b"CONFIG_A=y\n"


def test_the_minimal_configuration_differs_from_the_default_where_it_says_so() -> None:
    default, minimal = load_config().kernel_config, load_config(kernel_config="minimal").kernel_config
    was = {option.name: option.value for option in default.options}
    now = {option.name: option.value for option in minimal.options}
    assert was["CONFIG_ACPI"] == "y"
    assert now["CONFIG_ACPI"] == "n"
    assert now["CONFIG_RANDOMIZE_BASE"] == "y"
    assert set(was) <= set(now)
    assert (default.name, minimal.name) == ("default", "minimal")


def test_refuses_a_minimal_line_that_changes_nothing() -> None:
    files = {"kernel.fragment": b"CONFIG_A=y  # why\n", "kernel-minimal.fragment": b"CONFIG_A=y  # why\n"}
    with pytest.raises(MalformedConfig, match="CONFIG_A is the same"):
        load_kernel_config("minimal", X86, files.__getitem__)


@pytest.mark.parametrize("name", ["../default", "", "UPPER", "a/b"])
def test_refuses_a_configurations_name_that_is_a_path(name: str) -> None:
    with pytest.raises(MalformedConfig, match="kernel_config"):
        load_kernel_config(name, X86, lambda name: b"")


def test_an_unknown_configuration_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "x.eif")
    assert main(["image", "build", "--out", out, "--kernel-config", "huge", "--json"]) == 2
    assert "kernel-huge.fragment" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_key_names_configuration_and_patches() -> None:
    config = load_config()

    def key(fragment: KernelConfig, patches: tuple[Patch, ...]) -> str:
        return kernel_key(source="00", toolchain=["11"], config=fragment, patches=patches, epoch=1)

    minimal = load_config(kernel_config="minimal").kernel_config
    keys = {
        key(config.kernel_config, ()), key(minimal, ()), key(config.kernel_config, config.kernel_patches),
    }  # fmt: skip
    assert len(keys) == 3


# --- patches ---


def make_patch(before: str, after: str, path: str = "dir/file.c") -> bytes:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}", lineterm="\n"
    )
    return ("What it does.\n" + "".join(lines)).encode()


def pinned(raw: bytes) -> Patch:
    return load_patch(Path("test.patch"), raw, sha256=hashlib.sha256(raw).hexdigest())


def source(tmp_path: Path, text: str) -> Path:
    (tmp_path / "dir").mkdir(exist_ok=True)
    (tmp_path / "dir/file.c").write_text(text)
    return tmp_path


LINES = [f"line {number}\n" for number in range(40)]
BEFORE = "".join(LINES)
AFTER = "".join([*LINES[:10], "new\n", *LINES[11:30], *LINES[31:]])


def test_applies_a_patch(tmp_path: Path) -> None:
    apply_patch(pinned(make_patch(BEFORE, AFTER)), source(tmp_path, BEFORE))
    assert (tmp_path / "dir/file.c").read_text() == AFTER


def test_a_reject_names_the_hunk_and_changes_nothing(tmp_path: Path) -> None:
    """The second hunk fits everywhere but in one context line: GNU patch would take it with fuzz."""
    changed = BEFORE.replace("line 28\n", "line twenty-eight\n")
    with pytest.raises(BuildFailed, match=r"test.patch: hunk 2 of dir/file.c does not fit at line 29") as caught:
        apply_patch(pinned(make_patch(BEFORE, AFTER)), source(tmp_path, changed))
    assert "line twenty-eight" in str(caught.value)
    assert (tmp_path / "dir/file.c").read_text() == changed


def test_a_hunk_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="hunk 1"):
        apply_patch(pinned(make_patch(BEFORE, AFTER)), source(tmp_path, "one more\n" + BEFORE))
    with pytest.raises(BuildFailed, match=r"no file dir/file\.c"):
        apply_patch(pinned(make_patch(BEFORE, AFTER)), tmp_path / "elsewhere")


def test_never_follows_a_link_out_of_the_source(tmp_path: Path) -> None:
    outside = tmp_path / "outside.c"
    outside.write_text(BEFORE)
    (tmp_path / "source/dir").mkdir(parents=True)
    (tmp_path / "source/dir/file.c").symlink_to(outside)
    with pytest.raises(BuildFailed, match="no file"):
        apply_patch(pinned(make_patch(BEFORE, AFTER)), tmp_path / "source")
    assert outside.read_text() == BEFORE


GOOD = make_patch(BEFORE, AFTER).decode()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GOOD, "only words\n", "no patch"),
        ("a/dir/file.c", "a/../file.c", "leaves the source|no pair"),
        ("dir/file.c", "../file.c", "leaves the source"),
        ("+++ b/dir/file.c", "+++ b/dir/other.c", "no pair"),
        ("--- a/dir", "--- /dev/null", "no pair"),
        ("-line 10\n", "", "shorter than it says|neither hunk|not as long"),
        ("-8,7 +8,7", "-8,9999 +8,9999", "shorter than it says"),
        ("-8,7 +8,7", "-0,0 +1,1", "neither hunk|not as long"),
        (" line 7\n", "\tline 7\n", "shorter than it says"),
        ("@@ -28,7", "@@ -9,7", "overlaps"),
        (" line 33\n", " line 33", "cut off"),
    ],
)
def test_refuses_a_patch_that_is_not_of_its_form(old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(MalformedConfig, match=words):
        pinned(GOOD.replace(old, new).encode())


def test_refuses_a_patch_that_is_not_the_one_pinned(tmp_path: Path) -> None:
    shutil.copytree(DEFAULT_DIR, tmp_path / "config")
    path = tmp_path / "config/patches/vsock-replies.patch"
    path.write_text(path.read_text().replace("kfree_skb", "kfree_now"))
    with pytest.raises(InputMismatch, match=r"vsock-replies\.patch"):
        load_config(tmp_path / "config")


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('file = "patches/vsock-replies.patch"', 'file = "../x.patch"', "kernel_patches.0..file"),
        ('file = "patches/vsock-replies.patch"', 'file = "/etc/x"', "kernel_patches.0..file"),
        ('sha256 = "', 'sha256 = "0', "kernel_patches.0..sha256"),
        ("[[kernel_patches]]", "[kernel_patches]", "kernel_patches"),
        ('sha256 = "', 'md5 = "', "kernel_patches.0."),
        ('kernel_config = "default"', "kernel_config = 1", "kernel_config"),
    ],
)
def test_refuses_a_malformed_kernel_choice(tmp_path: Path, old: str, new: str, place: str) -> None:
    shutil.copytree(DEFAULT_DIR, tmp_path / "config")
    path = tmp_path / "config/image.toml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(MalformedConfig, match=place):
        load_config(tmp_path / "config")


texts = st.lists(st.sampled_from(["a", "b", "", " ", "+x", "-y", "@@ z"]), min_size=1, max_size=30)


@given(before=texts, after=texts)
def test_applies_what_diff_wrote(tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str]) -> None:
    old, new = ("".join(f"{line}\n" for line in lines) for lines in (before, after))
    if old == new:
        return
    folder = source(tmp_path_factory.mktemp("patch"), old)
    apply_patch(pinned(make_patch(old, new)), folder)
    assert (folder / "dir/file.c").read_text() == new


@given(st.binary(max_size=300), st.integers(0, len(GOOD) - 1))
def test_damaged_patches_are_refused_or_parsed_and_nothing_else(noise: bytes, place: int) -> None:
    for raw in (noise, GOOD.encode()[:place] + noise + GOOD.encode()[place:]):
        with contextlib.suppress(MalformedConfig):
            pinned(raw)


# --- a given kernel ---


def bzimage(banner: str = "6.12.117 (eif@eif) #1 SMP 2026-01-01 00:00:00") -> bytearray:
    raw = bytearray(0x1000)
    raw[0x1FE:0x200] = b"\x55\xaa"
    raw[0x202:0x206] = b"HdrS"
    raw[0x206:0x208] = (0x20F).to_bytes(2, "little")
    raw[0x20E:0x210] = (0x400).to_bytes(2, "little")
    raw[0x211] = 1
    raw[0x236] = 1
    text = banner.encode() + b"\0"
    raw[0x600 : 0x600 + len(text)] = text
    return raw


def test_reads_what_a_kernel_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage("5.10.1\x1b[31m aws"))
    kernel = load_given_kernel(path, X86)
    assert kernel.banner == "5.10.1\x1b[31m aws"
    assert kernel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (0x1FE, 0, "0x1fe"), (0x202, 0, "0x202"), (0x206, 0, "2.12"), (0x207, 1, "2.12"), (0x211, 0, "zImage"),
        (0x236, 0, "64-bit"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_kernel(tmp_path: Path, offset: int, value: int, expected: str) -> None:
    raw = bzimage()
    raw[offset] = value
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(UsageError, match="no kernel that an enclave boots") as caught:
        load_given_kernel(tmp_path / "file", X86)
    assert expected in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\x7fELF" + bytes(64), bytes(bzimage()[:0x264])])
def test_refuses_what_is_too_short(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(UsageError):
        load_given_kernel(tmp_path / "file", X86)


@given(st.integers(0, 0xFFFF))
def test_a_banner_may_be_said_to_stand_anywhere(tmp_path_factory: pytest.TempPathFactory, pointer: int) -> None:
    raw = bzimage()
    raw[0x20E:0x210] = pointer.to_bytes(2, "little")
    path = tmp_path_factory.mktemp("kernel") / "file"
    path.write_bytes(raw)
    assert len(load_given_kernel(path, X86).banner) <= 1024


def test_a_kernel_and_a_configuration_are_not_both_chosen(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["image", "build", "--out", str(tmp_path / "x"), "--kernel", "x", "--kernel-config", "minimal"])


# --- a build that only seems to succeed ---


def test_time_stamp_is_one_that_date_understands() -> None:
    stamp = build_environment(load_config().source_date_epoch)["KBUILD_BUILD_TIMESTAMP"]
    done = subprocess.run(["date", "-u", "-d", stamp, "+%s"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == load_config().source_date_epoch


@pytest.mark.parametrize(
    "line",
    [
        # Each is what the named fault wrote, or what the tool's own source says it writes.
        "/bin/sh: 1: awk: not found",  # mawk without its alternative
        "/bin/sh: 1: bc: Permission denied",
        "readelf: error while loading shared libraries: libctf-nobfd0.so: cannot open shared object file",
        "sha1sum: error while loading shared libraries: libcrypto.so.3: cannot open shared object file",
        "zstd: error while loading shared libraries: libxxhash.so.0: cannot open shared object file",
        "sed: invalid option -- 'z'",
        "sed: -e expression #1, char 3: unterminated `s' command; syntax error",
        "awk: bad regex '{$': Invalid preceding regular expression",  # busybox
        "date: invalid date 'some day'",  # the present time is taken then
        "sort: unrecognized option '--parallel'",
        "Usage: cmp [-ls] FILE1 [FILE2]",
        "x86_64-linux-gnu-gcc-14: error: cannot execute 'as'",
        "/bin/sh: 1: /usr/bin/m4: Exec format error",
        "Segmentation fault (core dumped)",
        "make[2]: [scripts/Makefile:1: x] Error 127 (ignored)",
        "grep: Unmatched [, [^, [:, [., or [=",
        "gzip: stdout: No space left on device",
    ],
)
def test_a_log_that_shows_a_missing_tool_fails_the_build(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"  CC      init/main.o\n{line}\n  LD      vmlinux\n")
    with pytest.raises(BuildFailed, match="only seemed to succeed") as caught:
        check_log(tmp_path / "log")
    assert line in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "+ env -i PATH=/usr/bin make -C /src 'usage: x'",
        "  CC      lib/usercopy_invalid.o",
        "  LD [M]  drivers/cannot.o",
        "  123 |   return cannot (x); // invalid",
        "vmlinux.o: warning: objtool: .text+0x10: unreachable instruction",
        "make[1]: Entering directory '/build'",
        "/bin/sh: 1: pahole: not found",
        "Kernel: arch/x86/boot/bzImage is ready  (#1)",
    ],
)
def test_a_sound_log_passes(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"{line}\n")
    check_log(tmp_path / "log")


def finished(tmp_path: Path, *, banner: str, orc: str) -> Path:
    for path, data in ((find_kernel(tmp_path, X86), bytes(bzimage(banner))), (tmp_path / ORC_HASH, orc.encode())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


BANNER = "6.12.117 (eif@eif) #1 SMP 2026-01-01 00:00:00"
ORC = "#define ORC_HASH " + "0xfe," * 20
EMPTY = "#define ORC_HASH " + "".join(f"0x{byte:02x}," for byte in hashlib.sha1(b"").digest())


@pytest.mark.parametrize(
    ("banner", "orc", "words"),
    [
        ("6.12.117 (eif@eif) #1 SMP Sun Nov 22 19:11:02 UTC 2026", ORC, "another time"),
        ("6.12.117 (root@laptop) #1 SMP 2026-01-01 00:00:00", ORC, "another time"),
        ("6.12.117 (eif@eif) #7 SMP 2026-01-01 00:00:00", ORC, "another time"),
        (BANNER, EMPTY, "of nothing"),
        (BANNER, "#define ORC_HASH ", "of nothing"),
    ],
)
def test_a_kernel_that_shows_a_silent_failure_is_refused(tmp_path: Path, banner: str, orc: str, words: str) -> None:
    environment = build_environment(1767225600)
    check_kernel(finished(tmp_path, banner=BANNER, orc=ORC), X86, environment=environment)
    with pytest.raises(BuildFailed, match=words):
        check_kernel(finished(tmp_path, banner=banner, orc=orc), X86, environment=environment)


# --- documentation ---


def test_the_page_gives_each_options_reason() -> None:
    top = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "scripts/kernel_table.py", "--check"], cwd=top, check=False)
    assert done.returncode == 0, "run scripts/kernel_table.py"
    page = (top / "docs/kernel.md").read_text()
    for architecture in Architecture:
        for option in load_config(architecture=architecture, kernel_config="minimal").kernel_config.options:
            only = f"{option.architecture} only: " if option.architecture else ""
            row = f"| `{option.name.removeprefix('CONFIG_')}` | `{option.value}` | {only}{option.reason} |"
            assert row in page
    for patch in load_config().kernel_patches:
        assert patch.name in page
