# SPDX-License-Identifier: MIT
"""The same registers, another boot: what a launcher can do with a measured image, and how it ends.

PCR0-2 are hashes of concatenations: they fix neither where the kernel, the command line and the first ramdisk end, nor
what a launcher appends to the command line. So each such boot must halt, behave as the image does, or be refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from attestation.measurements import Measurements, dump_measurements
from enclave_image.config import cache_dir
from enclave_image.eif import Eif, SectionType, read_eif, write_eif
from enclave_image.initramfs import File, write_cpio
from enclave_image.runtime.wire import Event

from .conftest import Scene
from .rig import Guest, boot
from .test_life import pcr16

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

NOT_THE_LINE = "init: halt: the command line is not the one measured"
NO_INIT = "Kernel panic - not syncing: No working init found"
PYTHON_SPEAKS = "Python 3."


def parts(image: Eif) -> tuple[bytes, bytes, list[bytes]]:
    return bytes(image.kernel), image.cmdline, [bytes(ramdisk) for ramdisk in image.ramdisks]


def make(kernel: bytes, cmdline: bytes, ramdisks: list[bytes], metadata: bytes = b"{}") -> bytes:
    return write_eif(
        [
            (SectionType.KERNEL, kernel), (SectionType.CMDLINE, cmdline), (SectionType.METADATA, metadata),
            *((SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks),
        ]
    )  # fmt: skip


def on_rig(
    scene: Scene, image: Eif, body: Callable[[Guest], Coroutine[Any, Any, None]], *, words: bytes = b""
) -> Measurements:
    """Boot any image under the shared policy; return what the module says it is."""

    async def run() -> Measurements:
        state = Path(scene.world.environment["XDG_STATE_HOME"]) / "veracruz"
        async with boot(image, policy=scene.policy.read_bytes(), state=state, words=words) as guest:
            await body(guest)
            return guest.measurements

    return asyncio.run(run())


async def dies_early(guest: Guest, *ends: str) -> None:
    """Nothing of ours has run but /init, at most, and nobody was dialled."""
    await guest.wait_for_console(*ends, "init: ready", PYTHON_SPEAKS)
    assert any(end in guest.console for end in ends), guest.console
    assert "init: ready" not in guest.console
    assert PYTHON_SPEAKS not in guest.console
    assert guest.host.dialled == []


SPLITS = ("kernel takes of the command line", "command line takes of the kernel", "ramdisk takes of the command line",
          "command line takes of the ramdisk")  # fmt: skip


def split(image: Eif, name: str) -> Eif:
    """Return the same bytes in the same order, with one boundary moved."""
    kernel, cmdline, ramdisks = parts(image)
    match name:
        case "kernel takes of the command line":
            first, second = cmdline.split(b" ", 1)
            return read_eif(make(kernel + first + b" ", second, ramdisks))
        case "command line takes of the kernel":
            tail = kernel[kernel.rindex(b"\0") + 1 :]  # a NUL would end the line for every loader
            assert 0 < len(tail) < 64
            return read_eif(make(kernel[: -len(tail)], tail + cmdline, ramdisks))
        case "ramdisk takes of the command line":
            first, last = cmdline.rsplit(b" ", 1)
            return read_eif(make(kernel, first, [b" " + last + ramdisks[0], *ramdisks[1:]]))
        case "command line takes of the ramdisk":
            head = ramdisks[0][: min(ramdisks[0].index(b"\0"), 4)]
            assert head
            return read_eif(make(kernel, cmdline + head, [ramdisks[0][len(head) :], *ramdisks[1:]]))
    raise AssertionError(name)


def test_no_boundary_can_be_moved_so_that_the_line_stays_whole(scene: Scene) -> None:
    """What stands beside the command line would have to begin or end with a space, or to end with a NUL."""
    kernel, cmdline, ramdisks = parts(read_eif(scene.image.read_bytes()))
    assert kernel[-1:] not in (b" ", b"\0")
    assert ramdisks[0][:1] not in (b" ", b"\0", b"\n")
    whole = kernel + cmdline + b"".join(ramdisks)
    assert whole.count(cmdline) == 1


@pytest.mark.parametrize("name", SPLITS)
def test_a_resplit_image_with_the_same_registers_halts(scene: Scene, name: str) -> None:
    image = read_eif(scene.image.read_bytes())
    other = split(image, name)
    assert other.measurements == image.measurements
    assert other.cmdline != image.cmdline

    async def body(guest: Guest) -> None:
        await dies_early(guest, NOT_THE_LINE if "kernel" in name else NO_INIT)

    assert on_rig(scene, other, body) == image.measurements


def test_bytes_moved_between_the_ramdisks_boot_alike_and_change_the_measurements(scene: Scene, tmp_path: Path) -> None:
    """The kernel sees the same initramfs, PCR0 is the same; PCR1 and PCR2 are not, and the isolate halts for that."""
    image = read_eif(scene.image.read_bytes())
    kernel, cmdline, (first, second) = parts(image)
    moved = make(kernel, cmdline, [first[:-100], first[-100:] + second], image.metadata or b"{}")
    other = read_eif(moved).measurements
    assert other.pcr0 == image.measurements.pcr0
    assert other.pcr1 != image.measurements.pcr1
    assert other.pcr2 != image.measurements.pcr2
    path = tmp_path / "moved.eif"
    path.write_bytes(moved)
    done = scene.world.run("enclave", "run", path, "--policy", scene.policy, "--json", expect=5)
    assert done.slug == "isolate-refused"
    assert "the policy does not accept this image" in done.err


def test_an_early_console_that_the_launcher_keeps_halts(scene: Scene) -> None:
    """It would show the kernel's messages for as long as the isolate lives, and has no switch that /init could turn."""

    async def body(guest: Guest) -> None:
        await guest.wait_for_console("init: halt: the kernel keeps its console")
        assert guest.host.dialled == []

    on_rig(scene, read_eif(scene.image.read_bytes()), body, words=b" earlycon=uart8250,io,0x3f8 keep_bootcon")


HARMLESS = (
    b" LD_PRELOAD=/tmp/evil.so LD_LIBRARY_PATH=/tmp PYTHONPATH=/tmp PYTHONSTARTUP=/tmp/evil.py PYTHONINSPECT=1"
    b" SSLKEYLOGFILE=/dev/ttyS0 OPENSSL_CONF=/tmp/evil.cnf init=/usr/bin/python3.13 rdinit=/init single 3 -c exit() -i"
)


def test_variables_init_and_arguments_change_nothing(scene: Scene) -> None:
    """The kernel gives them to /init as environment and arguments, which it drops: all comes up as ever."""
    seen: list[str] = []

    async def body(guest: Guest) -> None:
        await guest.wait_for_event(Event.SERVING)
        evidence = await guest.fetch()
        assert pcr16(evidence.document)
        assert guest.host.events == [Event.ATTESTOR_READY, Event.POLICY_TAKEN, Event.SERVING]
        seen.append(guest.console)

    image = read_eif(scene.image.read_bytes())
    assert on_rig(scene, image, body, words=HARMLESS) == image.measurements
    (console,) = seen
    assert "CLIENT_RANDOM" not in console
    assert "SERVER_HANDSHAKE_TRAFFIC_SECRET" not in console
    plain = scene.world.run("enclave", "console", scene.enclave.name).out
    assert console.replace("\r\n", "\n") == plain


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (b" rdinit=/usr/bin/python3.13", NO_INIT),
        (b" rdinit=/lib64/ld-linux-x86-64.so.2 -- /usr/bin/python3.13 -c print(1)", NO_INIT),
        (b" rdinit=/app/start.pyc init=/usr/bin/python3.13", "Kernel panic - not syncing: Requested init"),
    ],
    ids=["python", "loader", "init-too"],
)
def test_no_word_makes_the_kernel_start_anything_but_init(scene: Scene, words: bytes, end: str) -> None:
    """Nothing in the ramdisk but /init may be executed; /init itself allows the interpreter once it has checked."""

    async def body(guest: Guest) -> None:
        await dies_early(guest, end)

    image = read_eif(scene.image.read_bytes())
    assert on_rig(scene, image, body, words=words) == image.measurements


def test_a_word_that_takes_a_wall_of_the_jail_away_halts(scene: Scene) -> None:
    """Without the memory controller there would be no limit on a job."""

    async def body(guest: Guest) -> None:
        await guest.wait_for_end()
        assert guest.host.events == [Event.ATTESTOR_READY, Event.POLICY_TAKEN, Event.HALT_INTERNAL]

    on_rig(scene, read_eif(scene.image.read_bytes()), body, words=b" cgroup_disable=memory")


INIT_SAYS, SHADOW_SAYS = b"init: ready", b"init: SHADE"


def test_a_later_ramdisk_that_shadows_init_is_refused(scene: Scene, tmp_path: Path) -> None:
    """PCR1 is the same and another /init runs: PCR1 alone proves nothing. A policy of the host's own does not help it.

    Without such a policy the runtime itself halts, as above; a participant's own measurements file settles it.
    """
    image = read_eif(scene.image.read_bytes())
    kernel, cmdline, (first, second) = parts(image)
    init = built_init(first)
    assert init.count(INIT_SAYS) == 1
    aligned = bytes(-(len(first) + len(second)) % 4)  # or the kernel takes it for no archive
    shadow = aligned + write_cpio({"init": File(init.replace(INIT_SAYS, SHADOW_SAYS), executable=True)})
    path = tmp_path / "shadow.eif"
    path.write_bytes(make(kernel, cmdline, [first, second, shadow]))
    forged = read_eif(path.read_bytes()).measurements
    assert forged.pcr1 == image.measurements.pcr1
    assert forged.pcr0 != image.measurements.pcr0
    assert forged.pcr2 != image.measurements.pcr2
    own = json.loads(scene.image.with_suffix(".json").read_text())
    both = tmp_path / "both.json"
    both.write_text(json.dumps([own, dump_measurements(forged)]))
    policy = scene.world.policy("both", both)
    table = tmp_path / "table.csv"
    table.write_text("secret")
    with scene.world.enclave(path, policy) as enclave:
        assert SHADOW_SAYS.decode() in scene.world.run("enclave", "console", enclave.name).out
        refused = scene.world.party(
            "alice", "send", enclave, policy, table, "/input/alice/table.csv", "--new-isolate", expect=1,
            measurements=scene.image.with_suffix(".json"),
        )  # fmt: skip
        assert refused.slug == "measurement-mismatch"


def built_init(ramdisk: bytes) -> bytes:
    """Return /init as it is in a platform's ramdisk, out of the cache of what was built."""
    for entry in (cache_dir() / "built/platform").iterdir():
        if (entry / "ramdisk").is_file() and (entry / "ramdisk").read_bytes() == ramdisk:
            return (entry / "root/init").read_bytes()
    raise AssertionError("the image's platform is not in the cache")
