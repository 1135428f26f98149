# SPDX-License-Identifier: MIT
"""What a supervisor logs: kept within bounds, whoever writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from host_shim.report import MAX_LOG, Report


def test_a_log_that_helpers_fill_is_moved_aside(tmp_path: Path) -> None:
    path, older = tmp_path / "supervisor.log", tmp_path / "supervisor.log.1"
    report = Report(lambda line: None)
    helper = os.dup(report.log_to(path))
    os.write(helper, b"old\n" + b"x" * MAX_LOG)
    report.trim()
    assert older.read_bytes() == b"x" * MAX_LOG
    assert stat.S_IMODE(older.stat().st_mode) == 0o600
    os.write(helper, b"helper\n")
    report.log("supervisor")
    lines = path.read_text().splitlines()
    assert lines[0] == "helper"
    assert lines[1].endswith(" supervisor")
    for number in range(4 * MAX_LOG // 1024):
        report.log(f"{number} {'y' * 1024}")
    assert path.stat().st_size <= MAX_LOG + 2048
    assert older.stat().st_size <= MAX_LOG
    os.close(helper)
    report.close()
