# SPDX-License-Identifier: MIT
"""The NSM's wire form: each message both ways, the encodings of nsm-api, refusals."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation import nsm
from attestation.errors import MalformedNsm, NsmRefused

_field = st.none() | st.binary(max_size=1024)
_index = st.integers(0, 0xFFFF)
REQUESTS: st.SearchStrategy[nsm.Request] = st.one_of(
    st.just(nsm.DescribeNsm()),
    st.just(nsm.GetRandom()),
    st.builds(nsm.DescribePcr, _index),
    st.builds(nsm.ExtendPcr, _index, st.binary(max_size=512)),
    st.builds(nsm.LockPcr, _index),
    st.builds(nsm.LockPcrs, _index),
    st.builds(nsm.Attest, _field, _field, _field),
)
_register = st.binary(min_size=48, max_size=48)
RESPONSES: st.SearchStrategy[nsm.Response] = st.one_of(
    st.builds(
        nsm.NsmDescription,
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
        st.text(max_size=40),
        st.just(32),
        st.lists(st.integers(0, 31), max_size=32).map(tuple),
        st.just("SHA384"),
    ),
    st.builds(nsm.Random, st.binary(max_size=256)),
    st.builds(nsm.PcrState, st.booleans(), _register),
    st.builds(nsm.Extended, _register),
    st.just(nsm.Locked()),
    st.just(nsm.RangeLocked()),
    st.builds(nsm.Document, st.binary(max_size=8192)),
    st.sampled_from(nsm.ErrorCode).map(nsm.Refused),
)


@given(REQUESTS)
def test_a_request_is_read_as_it_was_written(request: nsm.Request) -> None:
    assert nsm.decode_request(nsm.encode_request(request)) == request


@given(RESPONSES)
def test_an_answer_is_read_as_it_was_written(response: nsm.Response) -> None:
    assert nsm.decode_response(nsm.encode_response(response)) == response


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (nsm.DescribeNsm(), "DescribeNSM"),
        (nsm.GetRandom(), "GetRandom"),
        (nsm.DescribePcr(16), {"DescribePCR": {"index": 16}}),
        (nsm.ExtendPcr(16, b"data"), {"ExtendPCR": {"index": 16, "data": b"data"}}),
        (nsm.LockPcr(16), {"LockPCR": {"index": 16}}),
        (nsm.LockPcrs(32), {"LockPCRs": {"range": 32}}),
        (nsm.Attest(nonce=b"n"), {"Attestation": {"user_data": None, "nonce": b"n", "public_key": None}}),
    ],
)
def test_requests_have_the_form_of_nsm_api(request_: nsm.Request, value: Any) -> None:
    assert cbor2.loads(nsm.encode_request(request_)) == value


def test_an_index_below_24_has_the_width_that_qemu_demands() -> None:
    assert nsm.encode_request(nsm.DescribePcr(16)) == b"\xa1\x6bDescribePCR\xa1\x65index\x10"


OTHER_REQUESTS: list[Any] = [
    None,
    7,
    [],
    {},
    "Unknown",
    "DescribePCR",
    {"DescribeNSM": {}},
    {"DescribePCR": {"index": 1}, "LockPCR": {"index": 1}},
    {7: {"index": 1}},
    {"DescribePCR": {}},
    {"DescribePCR": {"index": -1}},
    {"DescribePCR": {"index": 1 << 16}},
    {"DescribePCR": {"index": True}},
    {"DescribePCR": {"index": "1"}},
    {"ExtendPCR": {"index": 1}},
    {"Attestation": {"user_data": 1, "nonce": None, "public_key": None}},
]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(cbor2.dumps("DescribeNSM") + b"\0", id="trailing byte"),
        pytest.param(cbor2.dumps("x" * 0x1000), id="too long"),
        *(pytest.param(cbor2.dumps(value), id=repr(value)[:60]) for value in OTHER_REQUESTS),
    ],
)
def test_other_requests_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedNsm):
        nsm.decode_request(raw)


@pytest.mark.parametrize(
    "value",
    [
        "Unknown",
        {"Error": "Success"},
        {"Error": None},
        {"DescribePCR": {"lock": 1, "data": bytes(48)}},
        {"DescribePCR": {"lock": True, "data": bytes(32)}},
        {"Attestation": {"document": "text"}},
        {"DescribeNSM": {"digest": "SHA384"}},
        {"GetRandom": {"random": None}},
    ],
    ids=repr,
)
def test_other_answers_are_refused(value: Any) -> None:
    with pytest.raises(MalformedNsm):
        nsm.decode_response(cbor2.dumps(value))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(raw: bytes) -> None:
    for decode in (nsm.decode_request, nsm.decode_response):
        try:
            decode(raw)
        except MalformedNsm:
            continue


def test_an_error_of_the_module_is_raised_where_an_answer_is_demanded() -> None:
    with pytest.raises(NsmRefused, match="ReadOnlyIndex"):
        nsm.demand(nsm.Refused(nsm.ErrorCode.READ_ONLY_INDEX))
    assert nsm.demand(nsm.Locked()) == nsm.Locked()


def test_random_bytes_are_not_shown() -> None:
    assert "secret" not in repr(nsm.Random(b"secret"))
