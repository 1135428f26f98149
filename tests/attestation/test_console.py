# SPDX-License-Identifier: MIT
"""The command line as a whole under a hostile shell: closed and full outputs, odd locales, signals, odd files."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from attestation import console
from attestation.errors import EnvironmentLacks, UsageError
from attestation.files import MAX_STREAM, demand_target, hash_limited, read_limited, replacing, write_whole
from attestation.identity import make_identity
from host_shim.cli import main

pytestmark = pytest.mark.faults

COMMAND = [sys.executable, "-m", "host_shim.cli"]
MISSING = ["policy", "check", "/none/policy.json"]


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which "$@" is the command `veracruz`."""
    return subprocess.run(
        ["/bin/bash", "-c", script, "sh", *COMMAND], env={**os.environ, **environment}, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ('"$@" identity new a --out "$HOME/a" >/dev/full', 3),
        ('"$@" identity new a --out "$HOME/a" --json >/dev/full', 3),
        ('"$@" policy check /none --json >/dev/full', 2),
        ('"$@" policy check /none 2>/dev/full', 2),
        ('"$@" identity new a --out "$HOME/a" <&- >&- 2>&-', 0),
        ('"$@" policy check /none >&- 2>&-', 2),
    ],
)  # fmt: skip
def test_an_output_that_takes_nothing_gives_no_traceback(tmp_path: Path, script: str, code: int) -> None:
    done = shell(script, HOME=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("script", ['"$@" --help >/dev/full', '"$@" --help | head -c 0; exit ${PIPESTATUS[0]}'])
def test_help_that_cannot_be_written_gives_no_traceback(tmp_path: Path, script: str) -> None:
    """Later versions of argparse drop the error themselves, so the exit code is theirs to choose."""
    done = shell(script, HOME=str(tmp_path))
    assert done.returncode in (0, 3, 130), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "ascii:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_names_that_the_locale_cannot_write_are_escaped(tmp_path: Path, locale: dict[str, str]) -> None:
    done = shell(
        '"$@" identity new a --out "$HOME/$(printf \'d\\303\\244\\377\\033[31m\')"', HOME=str(tmp_path), **locale
    )
    assert done.returncode == 0, done.stderr
    assert b"a.pem" in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_a_verb_that_waits(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [*COMMAND, "attest", "fetch", "--isolate", endpoint, "--out", str(tmp_path / "x")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(number)
                _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_has_the_form_of_every_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["identity", "new", "a", "--out", str(tmp_path / "file/x"), "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"slug", "message", "expected", "actual", "hint"}
    assert str(tmp_path / "file") in error["message"]


def test_talk_and_results_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.printable("a\x1b[31m\r\x9b\u202eb\n\tc\udcff") == "a\\x1b[31m\\r\\x9b\\u202eb\n\tc\\udcff"
    assert main(["policy", "check", "/none/\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--participant", "--measurements"])
def test_a_private_key_in_the_wrong_place_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    key, _ = make_identity("alice")
    (tmp_path / "alice.key").write_bytes(key)
    value = f"alice={tmp_path / 'alice.key'}" if option == "--participant" else str(tmp_path / "alice.key")
    assert main(["policy", "new", "--name", "x", option, value]) == 2
    said = capsys.readouterr().err
    assert main(["attest", "verify", str(tmp_path / "alice.key"), "--any-image"]) == 1
    said += capsys.readouterr().err
    secret = key.splitlines()[1]
    assert secret[:12].decode() not in said
    assert secret[:12].hex() not in said


def test_an_error_in_a_file_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_text("{}")
    for words in (["policy", "check", str(path)], ["attest", "verify", "x", "--measurements", str(path)]):
        if words[0] == "attest":
            words[2] = str(path)
        assert main(words) == 2
        assert f"error: {path}: " in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    script = (
        "import os, sys; from host_shim import cli; cli.make_parser();"  # loaded while it may be read
        "os.setuid(54321); sys.exit(cli.main(['enclave', 'list']))"
    )
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "error: this user has no home directory\nhint: set HOME or XDG_STATE_HOME\n"


# --- files ---


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_never_replaces_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    before = path.stat()
    with pytest.raises(UsageError, match="no regular file"):
        write_whole(path, b"x")
    assert path.stat().st_ino == before.st_ino
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_content_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # to a writer the same as a full disk
    try:
        with (
            pytest.raises(EnvironmentLacks, match=f"cannot write {path}: File too large") as caught,
            replacing(path) as file,
        ):
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in str(caught.value.hint)  # there may be space enough
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_takes_no_files_is_not_said_to_be_missing() -> None:
    if os.geteuid() != 0:
        pytest.skip("an ordinary user has no right there, and is told that")
    with pytest.raises(EnvironmentLacks, match="cannot write in /proc: its file system takes no new files"):
        write_whole(Path("/proc/veracruz"), b"x")


def test_a_target_in_no_directory_is_told_first(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="no such directory") as caught:
        demand_target(tmp_path / "none/x")
    assert caught.value.hint == f"mkdir -p {tmp_path / 'none'}"


def test_reads_no_more_of_an_endless_device_than_of_a_long_stream() -> None:
    with pytest.raises(UsageError, match="too large"):
        hash_limited(Path("/dev/zero"), limit=1 << 40, what="program")
    assert MAX_STREAM < 1 << 30


def test_reads_a_pipe(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.write(sink, b"from a pipe")
    os.close(sink)
    try:
        assert read_limited(Path(f"/dev/fd/{source}"), limit=100, what="policy") == b"from a pipe"
    finally:
        os.close(source)
