# SPDX-License-Identifier: MIT
"""When another isolate is started after one has died, and what is never tried again."""

from __future__ import annotations

import pytest

from attestation.errors import UsageError
from host_shim.errors import ImageDoesNotBoot, IsolateDied, IsolateHalted, IsolateRefused, IsolateSilent, NoQemu
from host_shim.restart import LONGEST_PAUSE, MOST, SETTLED, RestartPolicy, Restarts

DEATH = IsolateDied("it died")


@pytest.mark.parametrize(
    ("text", "most"), [("never", 0), ("on-failure", None), ("on-failure:1", 1), (f"on-failure:{MOST}", MOST)]
)
def test_a_policy_reads_as_it_is_written(text: str, most: int | None) -> None:
    policy = RestartPolicy.parse(text)
    assert policy.most == most
    assert str(policy) == text


@pytest.mark.parametrize(
    "text", ["", "always", "never:1", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:1e3", "on-failure:²",
             f"on-failure:{MOST + 1}", "on-failure:" + "9" * 5000, "On-failure", "on-failure:1:2"],
)  # fmt: skip
def test_refuses_policies_of_another_form(text: str) -> None:
    with pytest.raises(UsageError, match="--restart"):
        RestartPolicy.parse(text)


def test_never_is_never() -> None:
    assert Restarts(RestartPolicy.parse("never")).next_pause(DEATH, served=1000) is None


def test_pauses_double_up_to_a_limit() -> None:
    restarts = Restarts(RestartPolicy.parse("on-failure"))
    pauses = [restarts.next_pause(DEATH, served=0) for _ in range(2000)]
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert set(pauses[6:]) == {LONGEST_PAUSE}
    assert restarts.total == 2000


def test_a_row_has_a_limit_and_service_ends_it() -> None:
    restarts = Restarts(RestartPolicy.parse("on-failure:2"))
    assert [restarts.next_pause(DEATH, served=SETTLED - 1) for _ in range(3)] == [1, 2, None]
    assert restarts.next_pause(DEATH, served=SETTLED) == 1


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (DEATH, True), (IsolateSilent("x"), True), (IsolateHalted("x"), True),
        (IsolateRefused("x"), False), (ImageDoesNotBoot("x"), False), (NoQemu("x"), False), (UsageError("x"), False),
        (KeyboardInterrupt(), False), (OSError("x"), False),
    ],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error: BaseException, again: bool) -> None:
    pause = Restarts(RestartPolicy(None)).next_pause(error, served=0)
    assert (pause is not None) == again
