# SPDX-License-Identifier: MIT
"""A state directory without a free block: what serves goes on, starts anew after a death, and its end is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_shim.test_enclave_cli import Host, host  # noqa: F401 -- a fixture

pytestmark = pytest.mark.faults

NO_MOUNT = 77
# A file system of its own, in a mount namespace of its own: nothing is left of it.
SCRIPT = """
mount -t tmpfs -o size=64k tmpfs "$XDG_STATE_HOME" || exit 77
enclave() { "$PYTHON" -m host_shim.cli enclave "$@"; }
enclave run --isolate process --policy "$POLICY" --name one --restart on-failure --detach --json >/dev/null || exit 1
dd if=/dev/zero of="$XDG_STATE_HOME/fill" bs=1k 2>/dev/null
enclave health one >&2 || exit 2
for _ in $(seq 300); do
    guest=$(enclave describe one --json | "$PYTHON" -c '
import json, sys
told = json.load(sys.stdin)
print(*(one["pid"] for one in told["processes"] if one["role"] == "runtime"), told["restarts"], told["stage"])')
    case "$guest" in
    *" 0 serving") kill -9 "${guest%% *}" ;;
    *" 1 serving") break ;;
    esac
    sleep 0.1
done
enclave run --isolate process --policy "$POLICY" --name two >&2; echo "two: $?" >&2
enclave stop one --json
"""


def test_what_runs_on_a_full_disk_starts_anew_and_ends_as_it_should(host: Host) -> None:  # noqa: F811
    state = host.home / "state"
    state.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "POLICY": str(host.policy)}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", SCRIPT], cwd=Path(__file__).parents[2], env=environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode == NO_MOUNT or "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["isolates"]
    assert (told["stage"], told["reason"], told["restarts"]) == ("ended", "stopped by SIGTERM", 1)
    assert "two/state.json: No space left on device" in done.stderr
    assert "hint: free some space there" in done.stderr
    assert "two: 3" in done.stderr
