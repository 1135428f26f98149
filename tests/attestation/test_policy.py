# SPDX-License-Identifier: MIT
"""The policy: one good specimen and a table of mutations, each refused at its place."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.chain import AWS_ROOT_SHA256
from attestation.errors import MalformedInput, MalformedPolicy
from attestation.identity import write_identity
from attestation.limits import MAX_POLICY
from attestation.policy import AWS_ROOT, Right, Rights, RunLimits, StoreLimits, normal_key, normal_path, parse_policy

from .documents import IMAGE, LEAF_USAGE, CertificateForm, from_year_zero, make_certificate
from .parties import PROGRAM, WASM, Parties, dump

Members = dict[str, Any]


def test_reads_every_member_of_the_specimen(parties: Parties) -> None:
    raw = parties.policy()
    policy = parse_policy(raw)
    assert policy.raw == raw
    assert policy.hash == hashlib.sha256(raw).digest()
    assert policy.name == "two retailers"
    assert policy.root is None
    assert policy.images == (IMAGE,)
    assert [party.name for party in policy.participants] == ["alice", "bob"]
    assert policy.participants[0].certificate == parties.alice.certificate
    assert policy.join == ("alice", "bob")
    program = policy.programs[0]
    assert (program.path, program.sha256) == (PROGRAM, hashlib.sha256(WASM).digest())
    assert (program.args, program.env) == (("--rounds", "10"), (("SEED", "1"),))
    assert program.limits == RunLimits(memory_mib=32, wall_s=10, fuel=1_000_000)
    assert dict(policy.pins) == {"/input/model.json": bytes.fromhex("ab" * 32)}
    assert policy.once == ("/input/alice/",)
    assert policy.limits == StoreLimits(storage_mib=8, file_mib=2, jobs=1)
    assert policy.clock is False
    assert policy.lifecycle.not_after == datetime(2027, 1, 1, tzinfo=UTC)
    assert dict(policy.lifecycle.runs) == {PROGRAM: 3}
    assert policy.lifecycle.shutdown == ("alice", "bob")


def test_finds_participants_by_exact_certificate_and_programs_and_pins_by_path(parties: Parties) -> None:
    policy = parse_policy(parties.policy())
    assert policy.participant_of(parties.bob.certificate) is policy.participants[1]
    assert policy.participant_of(parties.mallory.certificate) is None
    assert policy.participant_of(parties.bob.certificate + b"\0") is None
    assert policy.program(PROGRAM) is policy.programs[0]
    assert policy.program("/program/") is None
    assert policy.pin(PROGRAM) == policy.programs[0].sha256
    assert policy.pin("/input/model.json") == bytes.fromhex("ab" * 32)
    assert policy.pin("/input/other.json") is None
    assert policy.freezes("/input/alice/table.csv")
    assert not policy.freezes("/input/bob/table.csv")


def test_gives_defaults_for_what_is_optional(parties: Parties) -> None:
    members = parties.members()
    for key in ("pins", "once", "limits", "clock", "lifecycle"):
        del members[key]
    for key in ("args", "env", "limits"):
        del members["programs"][0][key]
    policy = parse_policy(dump(members))
    assert policy.limits == StoreLimits(64, 16, 1)
    assert policy.programs[0].limits == RunLimits(64, 60, 10_000_000_000)
    assert policy.clock is False
    assert policy.lifecycle.not_after is None
    assert policy.lifecycle.shutdown == policy.join


def test_resolves_aws_to_the_fingerprint_of_the_root_that_ships() -> None:
    assert AWS_ROOT == AWS_ROOT_SHA256


def test_takes_a_root_by_name_or_fingerprint(parties: Parties) -> None:
    assert parse_policy(dump({**parties.members(), "root": "aws"})).root == AWS_ROOT
    assert parse_policy(dump({**parties.members(), "root": "cd" * 32})).root == bytes.fromhex("cd" * 32)


def _set(*path: str | int, to: Any) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        target: Any = members
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        target: Any = members
        for step in path[:-1]:
            target = target[step]
        del target[path[-1]]

    return change


def _copy_participant(members: Members) -> None:
    members["participants"].append({**members["participants"][0], "name": "carol"})


_MUTATIONS: list[tuple[Callable[[Members], None], str]] = [
    (_set("schema", to="veracruz.policy/2"), r"schema: another schema"),
    (_set("schema", to=1), r"schema: another schema"),
    (_drop("schema"), r"a key is missing; expected schema"),
    (_drop("join"), r"a key is missing; expected join"),
    (_set("extra", to=1), r"extra: unknown key"),
    (_set("participants", 0, "admin", to=True), r"participants\[0\]\.admin: unknown key"),
    (_set("name", to=""), r"name: wrong length"),
    (_set("name", to="a\u202eb"), r"name: not printable"),
    (_set("name", to="a\x1b[31m"), r"name: not printable"),
    (_set("name", to="\ud800"), r"name: no Unicode text"),
    (_set("name", to=7), r"name: wrong type; expected a string, got a number"),
    (_set("root", to="azure"), r"root: wrong length; expected 64 hex digits, got 5"),
    (_set("root", to=None), r"root: wrong type"),
    (_set("images", to=[]), r"images: wrong number of elements"),
    (_set("images", 0, "PCR0", to="00" * 48), r"images\[0\]: a zero register"),
    (_set("images", 0, "PCR1", to="ab" * 32), r"images\[0\]\.PCR1: wrong length; expected 96 hex digits, got 64"),
    (_set("images", 0, "PCR2", to="zz" * 48), r"images\[0\]\.PCR2: wrong form; expected 96 hex digits"),
    (_set("images", 0, "PCR3", to="ab" * 48), r"images\[0\]\.PCR3: unknown key"),
    (_drop("images", 0, "PCR2"), r"images\[0\]: a key is missing; expected PCR2"),
    (lambda m: m["images"].append(m["images"][0]), r"images\[1\]: the same image twice"),
    (_set("participants", to=[]), r"participants: wrong number of elements"),
    (_set("participants", to={}), r"participants: wrong type; expected an array, got an object"),
    (_set("participants", 1, "name", to="alice"), r"participants\[1\]\.name: the same name twice"),
    (_set("participants", 0, "name", to="al ice"), r"participants\[0\]\.name: wrong form"),
    (_set("participants", 0, "name", to="alice\n"), r"participants\[0\]\.name: wrong form"),
    (_copy_participant, r"participants\[2\]\.certificate: the same key"),
    (_set("participants", 0, "certificate", to="nothing"), r"participants\[0\]\.certificate: .*exactly one PEM"),
    (_set("participants", 0, "certificate", to=None), r"participants\[0\]\.certificate: wrong type"),
    (lambda m: _double_pem(m), r"participants\[0\]\.certificate: .*exactly one PEM"),
    (lambda m: _key_beside(m), r"participants\[0\]\.certificate: .*exactly one PEM"),
    (_set("participants", 0, "rights", to=[]), r"participants\[0\]\.rights: wrong type"),
    (_set("participants", 0, "rights", "/x/", to=["own"]), r'participants\[0\]\.rights\["/x/"\]\[0\]: no such right'),
    (_set("participants", 0, "rights", "/x/", to=[]), r'rights\["/x/"\]: wrong number of elements'),
    (_set("participants", 0, "rights", "/x/", to="read"), r'rights\["/x/"\]: wrong type'),
    (_set("participants", 0, "rights", "/x/", to=["read", "read"]), r"the same right twice"),
    (_set("participants", 0, "rights", "x/", to=["read"]), r'rights\["x/"\]: .*absolute'),
    (_set("participants", 0, "rights", "/x/../y", to=["read"]), r'rights\["/x/../y"\]: .*no \.\.'),
    (_set("participants", 0, "rights", "/dev/", to=["read"]), r'rights\["/dev/"\]: .*reserved'),
    (_set("join", to=[]), r"join: wrong number of elements"),
    (_set("join", to=["alice", "carol"]), r"join\[1\]: no such participant; expected alice, bob, got carol"),
    (_set("join", to=["alice", "alice"]), r"join\[1\]: the same participant twice"),
    (_set("join", to=[["alice"]]), r"join\[0\]: no such participant"),
    (_set("programs", 0, "path", to="/program/"), r"programs\[0\]\.path: .*does not end in /"),
    (_set("programs", 0, "path", to="/proc/x"), r"programs\[0\]\.path: .*reserved"),
    (lambda m: m["programs"].append(m["programs"][0]), r"programs\[1\]\.path: the same path twice"),
    (
        _set("programs", 0, "sha256", to="ab" * 6),
        r"\[0\]\.sha256: wrong length; expected 64 hex digits, got 12",
    ),
    (_drop("programs", 0, "sha256"), r"programs\[0\]: a key is missing; expected sha256"),
    (_set("programs", 0, "rights", "/x/", to=["execute"]), r"no such right here"),
    (_set("programs", 0, "args", to=["a\0b"]), r"programs\[0\]\.args\[0\]: a NUL"),
    (_set("programs", 0, "args", to="a"), r"programs\[0\]\.args: wrong type"),
    (_set("programs", 0, "env", to={"A=B": "1"}), r'programs\[0\]\.env\["A=B"\]: wrong form'),
    (_set("programs", 0, "env", to={"A": 1}), r"programs\[0\]\.env\.A: wrong type"),
    (
        _set("programs", 0, "limits", "memory_mib", to=True),
        r"memory_mib: wrong type; .* integer, got a boolean",
    ),
    (_set("programs", 0, "limits", "memory_mib", to=1.0), r"memory_mib: wrong type"),
    (_set("programs", 0, "limits", "memory_mib", to=0), r"memory_mib: out of range; expected 1..4096, got 0"),
    (_set("programs", 0, "limits", "threads", to=2), r"programs\[0\]\.limits\.threads: unknown key"),
    (_set("pins", to={"/a/": "ab" * 32}), r'pins\["/a/"\]: .*does not end in /'),
    (_set("pins", to={"/a": "ab"}), r'pins\["/a"\]: wrong length'),
    (_set("pins", to={PROGRAM: "ab" * 32}), r"another hash than the program's"),
    (_set("once", to=["input/"]), r"once\[0\]: .*absolute"),
    (_set("once", to=["/a", "/a"]), r"once: the same place twice"),
    (_set("limits", "jobs", to=0), r"limits\.jobs: out of range"),
    (_set("limits", "file_mib", to=9), r"limits: one file may be larger than all"),
    (_set("clock", to=0), r"clock: wrong type; expected true or false"),
    (_set("lifecycle", "not_after", to="2027-01-01"), r"lifecycle\.not_after: wrong form; expected a UTC time"),
    (_set("lifecycle", "not_after", to="2027-02-30T00:00:00Z"), r"lifecycle\.not_after: no such time"),
    (_set("lifecycle", "not_after", to="2027-01-01T00:00:00+02:00"), r"lifecycle\.not_after: wrong form"),
    (_set("lifecycle", "not_after", to="２027-01-01T00:00:00Z"), r"lifecycle\.not_after: wrong form"),  # noqa: RUF001
    (_set("lifecycle", "runs", to={"/program/other.wasm": 1}), r"lifecycle\.runs.*no such program"),
    (_set("lifecycle", "runs", PROGRAM, to=0), r"lifecycle\.runs.*out of range"),
    (_set("lifecycle", "shutdown", to=[]), r"lifecycle\.shutdown: wrong number"),
    (_set("lifecycle", "shutdown", to=["mallory"]), r"lifecycle\.shutdown\[0\]: no such participant"),
]


def _double_pem(members: Members) -> None:
    members["participants"][0]["certificate"] *= 2


def _key_beside(members: Members) -> None:
    members["participants"][0]["certificate"] += "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(("change", "place"), _MUTATIONS, ids=[place for _, place in _MUTATIONS])
def test_refuses_a_mutation_and_names_its_place(
    parties: Parties, change: Callable[[Members], None], place: str
) -> None:
    members = parties.members()
    change(members)
    with pytest.raises(MalformedPolicy, match=place):
        parse_policy(dump(members))


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"1" * 5000, "no JSON"),
        (b'{"name": NaN}', "no JSON"),
        (b'{"name": 1e999}', "no JSON"),
        (b"{} {}", "no JSON"),
        (b"[]", "wrong type; expected an object, got an array"),
        (b'{"name": 1, "na\\u006de": 2}', 'duplicate key.*"name'),
        (b" " * (MAX_POLICY + 1), "too long"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_json_object(raw: bytes, what: str) -> None:
    with pytest.raises(MalformedPolicy, match=what):
        parse_policy(raw)


def test_refuses_a_duplicate_key_however_deep(parties: Parties) -> None:
    raw = parties.policy().replace(b'"SEED": "1"', b'"SEED": "1", "SEED": "2"')
    with pytest.raises(MalformedPolicy, match="duplicate key"):
        parse_policy(raw)


# Certificates


def _certificate(
    *,
    key: Any = None,
    signer: Any = None,
    issuer: str | None = None,
    ca: bool | None = False,
    hash_: Any = None,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "carol")])
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]) if issuer else subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2030, 1, 1, tzinfo=UTC))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hash_ or hashes.SHA256()
    return builder.sign(signer or key, algorithm).public_bytes(Encoding.PEM).decode()


def _from_year_zero() -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    form = CertificateForm("carol", timedelta(1), timedelta(1), ca=False, usage=LEAF_USAGE, edit=from_year_zero)
    der = make_certificate(form, key=key, issuer_name="carol", issuer_key=key)
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def _usage(*, sign: bool = True, certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, False, False, False, certificates, False, False, False)


@pytest.mark.parametrize(
    ("pem", "what"),
    [
        (_certificate(ca=True), "an authority's"),
        (_certificate(ca=None), "no basic constraints"),
        (_certificate(issuer="dave"), "not self-signed"),
        (_certificate(signer=ec.generate_private_key(ec.SECP256R1())), "its own key did not sign it"),
        (_certificate(key=rsa.generate_private_key(65537, 2048)), "wrong kind of key.*RSA"),
        (_certificate(key=ec.generate_private_key(ec.SECP521R1())), "wrong kind of key.*secp521r1"),
        (_certificate(hash_=hashes.SHA224()), "wrong hash"),
        (_certificate(extensions=((_usage(certificates=True), True),)), "wrong key usage"),
        (_certificate(extensions=((_usage(sign=False), True),)), "wrong key usage"),
        (
            _certificate(extensions=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),)),
            "wrong extended key usage",
        ),
        (
            _certificate(extensions=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True),)),
            "a critical extension",
        ),
        (_from_year_zero(), "no time of validity"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not readable"),
    ],
)
def test_refuses_a_certificate_that_is_no_participants(parties: Parties, pem: str, what: str) -> None:
    members = parties.members()
    members["participants"][1]["certificate"] = pem
    with pytest.raises(MalformedPolicy, match=rf"participants\[1\]\.certificate: .*{what}"):
        parse_policy(dump(members))


@pytest.mark.parametrize(
    "pem",
    [
        _certificate(),
        _certificate(key=ec.generate_private_key(ec.SECP384R1()), hash_=hashes.SHA384()),
        _certificate(key=ed25519.Ed25519PrivateKey.generate()),
        _certificate(extensions=((_usage(), True),)),
        _certificate(extensions=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), True),)),
    ],
)
def test_takes_the_keys_that_tls_can_sign_with(parties: Parties, pem: str) -> None:
    members = parties.members()
    members["participants"][1]["certificate"] = pem
    assert parse_policy(dump(members)).participants[1].name == "bob"


def test_refuses_one_key_under_two_certificates(parties: Parties) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    members = parties.members()
    members["participants"][0]["certificate"] = _certificate(key=key)
    members["participants"][1]["certificate"] = _certificate(key=key, extensions=((_usage(), True),))
    with pytest.raises(MalformedPolicy, match=r"participants\[1\]\.certificate: the same key"):
        parse_policy(dump(members))


def test_refuses_equal_subjects_of_which_openssl_would_find_one(parties: Parties, tmp_path: Path) -> None:
    members = parties.members()
    members["participants"][1]["certificate"] = write_identity("ALICE", tmp_path).certificate_file.read_text()
    with pytest.raises(MalformedPolicy, match=r"participants\[1\]\.certificate: the same subject"):
        parse_policy(dump(members))


# Paths and rights


@pytest.mark.parametrize("path", ["/a", "/a/b.csv", "/a b/c%20", "/" + "a" * 255, "/...", "/input/-x", "/devices"])
def test_takes_a_normal_path(path: str) -> None:
    assert normal_path(path) == path
    assert normal_path(path + "/", directory=True) == path + "/"
    assert normal_key(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "a", "//", "/a//b", "/./a", "/a/.", "/..", "/a/../b", "../a", "/a/", "/a\0", "/a\n", "/\x7f", "/é", "/a\\b",
        "/" + "a" * 256, "/a" * 600, "/a" * 33, "/dev", "/dev/null", "/proc/self", "/tmp/x", "/",
    ],
)  # fmt: skip
def test_refuses_any_other_path(path: str) -> None:
    with pytest.raises(MalformedInput):
        normal_path(path)


@pytest.mark.parametrize("path", ["/a", "//", "/a//", "/../", "/a/./", "/dev/", "/sys/x/"])
def test_refuses_what_is_no_directory(path: str) -> None:
    with pytest.raises(MalformedInput):
        normal_path(path, directory=True)


def test_rights_of_all_matching_keys_add_up() -> None:
    rights = Rights(
        (
            ("/input/", frozenset({Right.LIST})),
            ("/input/alice/", frozenset({Right.READ})),
            ("/input/alice/x", frozenset({Right.WRITE})),
        )
    )
    assert {right for right in Right if rights.allow("/input/alice/x", right)} == {Right.LIST, Right.READ, Right.WRITE}
    assert {right for right in Right if rights.allow("/input/alice/xy", right)} == {Right.LIST, Right.READ}
    assert {right for right in Right if rights.allow("/input/alice", right)} == {Right.LIST}
    assert {right for right in Right if rights.allow("/inputs", right)} == set()


def test_a_right_on_everything_does_not_reach_reserved_places() -> None:
    rights = Rights((("/", frozenset(Right)),))
    assert rights.allow("/anything", Right.READ)
    assert rights.allow("/", Right.LIST)
    for path in ("/dev/null", "/proc", "/tmp/", "/veracruz/x"):
        assert not rights.allow(path, Right.READ)


@settings(max_examples=200)
@given(st.text(alphabet="/.ab\\\0é", max_size=12))
def test_a_normal_path_never_leaves_its_directory(text: str) -> None:
    try:
        path = normal_path(text)
    except MalformedInput:
        return
    assert path.startswith("/")
    assert not {"", ".", ".."} & set(path[1:].split("/"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_mutated_policy_parses_or_is_refused_as_malformed(parties: Parties, data: st.DataObject) -> None:
    raw = bytearray(parties.policy())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        policy = parse_policy(bytes(raw))
    except MalformedPolicy:
        return
    assert policy.hash == hashlib.sha256(raw).digest()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=_JSON)
def test_any_value_in_any_place_parses_or_is_refused_as_malformed(
    parties: Parties, data: st.DataObject, value: Any
) -> None:
    members = parties.members()
    target: Any = members
    while True:
        keys = sorted(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None:
            break
        if not isinstance(target[key], dict | list) or data.draw(st.booleans()):
            target[key] = value
            break
        target = target[key]
    with contextlib.suppress(MalformedPolicy):
        parse_policy(json.dumps(members).encode("utf-8", "surrogatepass"))
