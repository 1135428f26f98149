# SPDX-License-Identifier: MIT
"""The runtime's pure parts: the clock, budgets, framing, reports, the attestor's typed requests."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import nsm
from attestation.limits import POLICY_PCR
from enclave_image.runtime import errors
from enclave_image.runtime.api import Budget
from enclave_image.runtime.attestor import Attestor, PolicyRegisterTaken, answer_request
from enclave_image.runtime.clock import Clock, ClockFailed
from enclave_image.runtime.errors import ApiError, Busy
from enclave_image.runtime.frames import BrokenFrame, recv_frame, send_frame
from enclave_image.runtime.jobs import round_up
from enclave_image.runtime.task import MAX_REPORT, Jail, Preopen, Report, Run, Task
from host_shim.dev_pki import Chain, make_root
from host_shim.nsm_emulator import BootState, Identity, NsmEmulator

POLICY = b"a policy"


class Source:
    """A module's clock, and the seconds since boot beside it."""

    def __init__(self, *stamps: int | Exception) -> None:
        self.stamps = list(stamps)
        self.boot = 100.0

    def time(self) -> int:
        stamp = self.stamps.pop(0)
        if isinstance(stamp, Exception):
            raise stamp
        return stamp

    def since_boot(self) -> float:
        return self.boot


def test_a_clock_asks_once_a_minute_and_adds_what_passed() -> None:
    source = Source(1_000_000, 1_070_000)
    clock = Clock(source, since_boot=source.since_boot)
    assert clock.now() == 1_000_000
    source.boot += 59
    assert clock.now() == 1_059_000
    source.boot += 1
    assert clock.now() == 1_070_000


def test_a_clock_never_runs_back_even_when_it_ran_ahead() -> None:
    source = Source(1_000_000, 1_030_000)
    clock = Clock(source, since_boot=source.since_boot)
    clock.now()
    source.boot += 59
    ahead = clock.now()
    source.boot += 1
    assert clock.now() == ahead


def test_a_module_whose_time_runs_back_gives_none() -> None:
    source = Source(1_000_000, 999_999)
    clock = Clock(source, since_boot=source.since_boot)
    clock.now()
    source.boot += 60
    with pytest.raises(ClockFailed):
        clock.now()


def test_a_module_without_an_answer_gives_no_time() -> None:
    source = Source(OSError())
    with pytest.raises(ClockFailed):
        Clock(source, since_boot=source.since_boot).passed(None)


def test_a_boot_time_that_jumps_back_is_asked_again() -> None:
    source = Source(1_000_000, 1_000_001)
    clock = Clock(source, since_boot=source.since_boot)
    clock.now()
    source.boot -= 50
    assert clock.now() == 1_000_001


def test_a_moment_has_passed_when_it_comes() -> None:
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    stamp = int(moment.timestamp() * 1000)
    for now, passed in ((stamp - 1, False), (stamp, True)):
        source = Source(now)
        assert Clock(source, since_boot=source.since_boot).passed(moment) is passed


def test_a_budget_fills_up_again() -> None:
    now = [0.0]
    budget = Budget(rate=2.0, burst=3.0, now=lambda: now[0])
    for _ in range(3):
        budget.spend()
    with pytest.raises(Busy):
        budget.spend()
    now[0] += 0.5
    budget.spend()
    with pytest.raises(Busy):
        budget.spend()


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1.0), (1.0, 1.0), (1.01, 2.0), (33.0, 64.0)])
def test_times_are_rounded_up_to_powers_of_two(seconds: float, told: float) -> None:
    assert round_up(seconds) == told


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_frames_pass_and_long_or_cut_ones_do_not(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    for message in (b"", b"x" * 1000):
        send_frame(one, message)
        assert recv_frame(other, 1000) == message
    send_frame(one, b"x" * 1001)
    with pytest.raises(BrokenFrame):
        recv_frame(other, 1000)
    one.close()
    other.recv(4096)
    with pytest.raises(BrokenFrame):
        recv_frame(other, 1000)


def test_a_task_passes_unchanged() -> None:
    jail = Jail("/r", 1, True, "/g", 2, 3, 4)
    run = Run(("a", "ü"), (("K", "v"),), (Preopen("/in", "tree/in", False),), "o", "e", 5, 6, False)
    for task in (Task(jail, 1.5, run), Task(jail, 2.0, None)):
        assert Task.decode(task.encode()) == task


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_a_report_is_read_or_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Report.decode(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"exit_code": "0"}, {"exit_code": True}, {"trap": "x"}, {"trap": 5}, {"fuel": -1}, {"fuel": 1.5}, {"more": 1},
        {"exit_code": None}, {"exit_code": None, "trap": "x" * 65}, {"exit_code": None, "trap": "\x1b"},
        {"wall_ms": 1 << 63}, {"memory_bytes": None},
    ],
)  # fmt: skip
def test_a_report_has_exactly_its_form(change: dict[str, object]) -> None:
    good = json.loads(Report(0, None, 5).encode())
    assert Report.decode(json.dumps(good).encode()) == Report(0, None, 5)
    with pytest.raises(ValueError):  # noqa: PT011
        Report.decode(json.dumps(good | change).encode())
    with pytest.raises(ValueError):  # noqa: PT011
        Report.decode(b" " * MAX_REPORT + json.dumps(good).encode())


class Module:
    """The emulator, asked directly."""

    emulated = True

    def __init__(self) -> None:
        identity = Identity.random()
        chain = Chain(make_root(datetime.now(UTC)), module_id=identity.module_id)
        self.emulator = NsmEmulator(BootState(None, identity), chain, clock=lambda: datetime.now(UTC))

    def ask(self, request: nsm.Request) -> nsm.Response:
        return nsm.demand(nsm.decode_response(self.emulator.answer(nsm.encode_request(request))))


@pytest.fixture
def attestor() -> Attestor:
    return Attestor(Module())


def ask(attestor: Attestor, *request: object) -> object:
    return answer_request(attestor, cbor2.dumps(list(request)))


def test_an_attestor_takes_one_policy_in_its_life(attestor: Attestor) -> None:
    ask(attestor, "take_policy", POLICY)
    with pytest.raises(PolicyRegisterTaken):
        ask(attestor, "take_policy", b"another")


def test_an_attestor_on_a_used_module_takes_none() -> None:
    module = Module()
    Attestor(module).take_policy(POLICY)
    with pytest.raises(PolicyRegisterTaken):
        Attestor(module).take_policy(POLICY)
    state = module.ask(nsm.DescribePcr(POLICY_PCR))
    assert isinstance(state, nsm.PcrState)
    assert state.lock


def test_an_attestor_gives_no_evidence_before_policy_and_key(attestor: Attestor) -> None:
    evidence = ("session", bytes(32)), ("receipt", bytes(32))
    for request in (*evidence, ("set_key", b"key")):
        with pytest.raises(ValueError):  # noqa: PT011
            ask(attestor, *request)
    ask(attestor, "take_policy", POLICY)
    for request in evidence:
        with pytest.raises(ValueError):  # noqa: PT011
            ask(attestor, *request)
    ask(attestor, "set_key", b"key")
    assert isinstance(ask(attestor, "session", bytes(32)), bytes)
    with pytest.raises(ValueError):  # noqa: PT011
        ask(attestor, "set_key", b"another")


@pytest.mark.parametrize(
    "request_",
    [
        ["session", b"short"], ["session", bytes(33)], ["session", "text"], ["session"], ["session", bytes(32), b"x"],
        ["receipt", bytes(31)], ["attest", b"", b"", b""], ["time", 1], [], {"session": bytes(32)}, "session", None,
    ],
)  # fmt: skip
def test_an_attestor_answers_typed_requests_alone(attestor: Attestor, request_: object) -> None:
    attestor.take_policy(POLICY)
    attestor.set_key(b"key")
    with pytest.raises(ValueError):  # noqa: PT011
        answer_request(attestor, cbor2.dumps(request_))


def test_every_refusal_has_a_slug_of_its_own_and_constant_bytes() -> None:
    classes = [
        value for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ApiError) and value not in (ApiError, errors.BrokenHttp)
    ]  # fmt: skip
    assert len({value.slug for value in classes}) == len(classes) == 12
    assert all(value.body() == value.body() for value in classes)
    assert errors.NotAvailable().body() == errors.NotAvailable.body()
