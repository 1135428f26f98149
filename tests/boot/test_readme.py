# SPDX-License-Identifier: MIT
"""README's section "The same by hand", typed as it stands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import textwrap
from pathlib import Path

import pytest

from enclave_image.config import cache_dir

from .machines import TOP

pytestmark = pytest.mark.boot


def commands() -> str:
    """Return the section's one block."""
    section = (TOP / "README.md").read_text().split("## The same by hand\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines))


def test_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    for name in (".venv", "examples"):
        (tmp_path / name).symlink_to(TOP / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = commands()
    assert script.count("veracruz ") > 10
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(cache_dir().parent)}
    try:
        done = subprocess.run(
            ["/bin/bash", "-e"], input=script.replace("127.0.0.1:5000", f"127.0.0.1:{port}"), cwd=tmp_path,
            env=environment, capture_output=True, text=True, timeout=2600, check=False,
        )  # fmt: skip
    finally:
        veracruz = str(TOP / ".venv/bin/veracruz")
        subprocess.run([veracruz, "enclave", "stop", "--all"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified-development: " in done.stdout
    assert len(json.loads((tmp_path / "play/model.json").read_text())) > 0
    assert "play ended: stopped by SIGTERM" in done.stdout
