# SPDX-License-Identifier: MIT
"""Evidence of a booted image: what must verify does, and everything else is refused with its own slug."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Scene
from .machines import World, copy_source

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def evidence(scene: Scene) -> tuple[Path, dict[str, str]]:
    out = scene.world.directory / "evidence.cbor"
    done = scene.world.run("attest", "fetch", "--isolate", scene.enclave.endpoint, "--out", out, "--json")
    return out, done.json


def options(scene: Scene, answer: dict[str, str]) -> dict[str, str | Path]:
    """Return all that a relying party can demand of the evidence; each test changes one."""
    return {
        "--measurements": scene.image.with_suffix(".json"), "--policy": scene.policy, "--root": scene.world.root,
        "--nonce": answer["nonce"], "--public-key": answer["public_key"],
    }  # fmt: skip


def words(chosen: dict[str, str | Path]) -> list[str | Path]:
    return [word for pair in chosen.items() for word in pair]


def test_verifies_against_the_partys_own_files(scene: Scene, evidence: tuple[Path, dict[str, str]]) -> None:
    document, answer = evidence
    done = scene.world.run("attest", "verify", document, *words(options(scene, answer)), "--json").json
    assert done["verdict"] == "verified-development"
    own = json.loads(scene.image.with_suffix(".json").read_text())["Measurements"]
    assert {name: done["Measurements"][name] for name in ("PCR0", "PCR1", "PCR2")} == {
        name: own[name] for name in ("PCR0", "PCR1", "PCR2")
    }


@pytest.mark.parametrize(
    ("option", "value", "slug"),
    [
        ("--root", "aws", "untrusted-chain"),
        ("--nonce", "00" * 32, "nonce-mismatch"),
        ("--public-key", "3059301306072a8648ce3d020106082a8648ce3d030107034200" + "04" + "11" * 64, "key-mismatch"),
        ("--measurements", "other.json", "measurement-mismatch"),
    ],
)
def test_refuses_another_root_nonce_key_or_image(
    scene: Scene, evidence: tuple[Path, dict[str, str]], option: str, value: str, slug: str
) -> None:
    document, answer = evidence
    if option == "--measurements":
        table = json.loads(scene.image.with_suffix(".json").read_text())
        table["Measurements"]["PCR1"] = "ab" * 48
        (scene.world.directory / value).write_text(json.dumps(table))
    chosen = {**options(scene, answer), option: value}
    if option == "--measurements":  # the policy names its own image, and both must hold
        del chosen["--policy"]
    done = scene.world.run("attest", "verify", document, *words(chosen), "--json", expect=1)
    assert done.json["verdict"] == "refused"
    assert done.json["slug"] == slug


def test_refuses_a_foreign_development_root(
    scene: Scene, evidence: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Another host's root has the same name and another key."""
    from datetime import UTC, datetime

    from host_shim.dev_pki import open_root

    document, answer = evidence
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path))
        foreign = open_root(lambda: datetime.now(UTC)).path
    chosen = {**options(scene, answer), "--root": foreign}
    done = scene.world.run("attest", "verify", document, *words(chosen), "--json", expect=1)
    assert done.json["slug"] == "untrusted-chain"


def test_refuses_a_document_with_one_bit_changed(
    scene: Scene, evidence: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    document, answer = evidence
    raw = bytearray(document.read_bytes())
    raw[-1] ^= 1  # of the signature
    (tmp_path / "changed").write_bytes(raw)
    chosen = words(options(scene, answer))
    done = scene.world.run("attest", "verify", tmp_path / "changed", *chosen, "--json", expect=1)
    assert done.json["slug"] == "bad-signature"


def test_every_fetch_has_its_own_nonce_and_document(scene: Scene, evidence: tuple[Path, dict[str, str]]) -> None:
    done = scene.world.run("attest", "fetch", "--isolate", scene.enclave.endpoint, "--json").json
    assert done["nonce"] != evidence[1]["nonce"]
    assert done["public_key"] == evidence[1]["public_key"]


def test_a_changed_runtime_has_other_measurements_and_is_refused(scene: Scene, tmp_path: Path) -> None:
    """One byte of our Python differs: it builds and boots, PCR1 stays, and nobody who checks trusts it."""
    source = copy_source(tmp_path / "source")
    main = source / "enclave_image/runtime/main.py"
    text = main.read_text()
    assert text.count(" serving.check_image(") == 1
    main.write_text(text.replace(" serving.check_image(", "#serving.check_image("))  # else it halts by itself
    other = World(tmp_path / "other", source)
    other.environment["XDG_STATE_HOME"] = scene.world.environment["XDG_STATE_HOME"]  # the same host and root
    forged = other.build("forged")
    ours, theirs = (json.loads(path.with_suffix(".json").read_text())["Measurements"] for path in (scene.image, forged))
    assert theirs["PCR1"] == ours["PCR1"]
    assert theirs["PCR0"] != ours["PCR0"]
    assert theirs["PCR2"] != ours["PCR2"]
    with scene.world.enclave(forged, scene.policy) as enclave:
        out = tmp_path / "forged.cbor"
        nonce = scene.world.run("attest", "fetch", "--isolate", enclave.endpoint, "--out", out, "--json").json["nonce"]
        done = scene.world.run(
            "attest", "verify", out, "--measurements", scene.image.with_suffix(".json"), "--policy", scene.policy,
            "--root", scene.world.root, "--nonce", nonce, "--json", expect=1,
        )  # fmt: skip
        assert done.json["slug"] == "measurement-mismatch"
        table = tmp_path / "table.csv"
        table.write_text("secret")
        sent = scene.world.party(
            "alice", "send", enclave, scene.policy, table, "/input/alice/table.csv", "--new-isolate", expect=1,
            measurements=scene.image.with_suffix(".json"),
        )  # fmt: skip
        assert sent.slug == "measurement-mismatch"
