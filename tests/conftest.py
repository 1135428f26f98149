# SPDX-License-Identifier: MIT
"""Options of the test run: what is slow runs only when asked for."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

FIRST_BUILD = 2700  # seconds; whichever test boots first also compiles the kernel, from an empty cache
LONGEST_ID = 120  # characters of a value that names its test
SLOW = {
    "boot": "--boot", "faults": "--boot", "rebuild": "--rebuild", "kernel": "--kernel",
    "minimal_kernel": "--minimal-kernel", "aarch64": "--aarch64",
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boot", action="store_true", help="also the tests that boot a machine or kill processes")
    parser.addoption("--kernel", action="store_true", help="also compile the kernel once more, elsewhere (with --boot)")
    parser.addoption("--rebuild", action="store_true", help="also run the tests that need the 400 MB compiler wheel")
    parser.addoption("--minimal-kernel", action="store_true", help="also boot that one, compiled once (with --boot)")
    parser.addoption("--aarch64", action="store_true", help="also build and boot an image for aarch64 (with --boot)")


def pytest_configure() -> None:
    """Give the programs under test the signals of a terminal, also where this run has them ignored (nohup, `&`)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    settings.register_profile("house", deadline=None)  # a loaded machine is no defect; the whole test has its time
    settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)  # before the workers read the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("boot"):  # one worker for all machines: they share isolates, and each takes a core
            item.add_marker(pytest.mark.xdist_group("boot"))
            item.add_marker(pytest.mark.timeout(FIRST_BUILD), append=False)
    for marker, option in SLOW.items():
        if config.getoption(option):
            continue
        for item in items:
            if item.get_closest_marker(marker):  # its keywords hold the names of folders too
                item.add_marker(pytest.mark.skip(reason=f"runs with {option}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where pytest-xdist knows no groups: two machines on two cores are slower than any deadline."""
    if "PYTEST_XDIST_WORKER" in os.environ and session.config.getoption("loadgroup"):
        for item in session.items:
            if item.get_closest_marker("boot") and not item.nodeid.endswith("@boot"):
                raise pytest.UsageError(f"{item.nodeid}: pytest-xdist did not take its group; see pyproject.toml")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Number texts and bytes that are long: some are made anew in each process, and the workers' names must agree."""
    return argname if isinstance(val, (str, bytes)) and len(val) > LONGEST_ID else None
