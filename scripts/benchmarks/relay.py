# SPDX-License-Identifier: MIT
"""Throughput, processor time, round trip and memory of the relay beside socat's and haproxy's, on loopback."""

# Debian packages: haproxy socat

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attestation.console import say
from host_shim.children import python_command
from host_shim.listen import Listener, TcpEndpoint, parse_endpoint

LOAD = [sys.executable, str(Path(__file__).parents[1] / "relay_load.py")]
LIMIT = 180  # seconds for one measurement
TICKS = os.sysconf("SC_CLK_TCK")
SOCAT_BUFFER = 256 * 1024  # bytes; its default of 8 KiB is slower
HAPROXY = """
global
    maxconn 4096
    tune.pipesize 1048576
defaults
    mode tcp
    maxconn 4096
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    {options}
listen bench
    bind 127.0.0.1:{port}
    server inside unix@{target}
"""


@dataclass(slots=True)
class Peer:
    """One way to reach the server, and what was measured on it."""

    name: str
    address: str
    pid: int | None = None
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, figure: float) -> None:
        """Keep a figure."""
        self.figures.setdefault(what, []).append(figure)

    def middle(self, what: str) -> float:
        """Return the median of a figure."""
        return statistics.median(self.figures[what])

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used, its children's included."""
        if self.pid is None:
            return 0.0
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(stat.parent.name) == self.pid or int(fields[1]) == self.pid:  # its own, or its parent's
                    own = int(stat.parent.name) == self.pid
                    total += sum(map(int, fields[11:15] if own else fields[11:13]))
        return total / TICKS


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process and end it."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            process.wait(10)


def wait_for_port(port: int) -> None:
    """Wait until somebody listens."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}")


@contextlib.contextmanager
def peers(folder: Path) -> Iterator[tuple[int, dict[str, Peer]]]:
    """Start the server and every relay before it; give the server's pid and the peers."""
    target, direct = folder / "inside", free_port()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            running([*LOAD, "serve", f"unix:{target}", f"tcp:{direct}"], stdout=subprocess.PIPE)
        )
        assert server.stdout is not None
        server.stdout.readline()
        found = {"direct": Peer("direct", f"tcp:{direct}")}
        listener = stack.enter_context(Listener(parse_endpoint("127.0.0.1:0")))
        assert isinstance(listener.endpoint, TcpEndpoint)
        command = python_command(
            "host_shim.relay", "--listen-fd", str(listener.fileno()), "--target", str(target),
            "--max-connections", "4096",
        )  # fmt: skip
        ours = stack.enter_context(running(command, pass_fds=[listener.fileno()]))
        found["ours"] = Peer("ours", f"tcp:{listener.endpoint.port}", ours.pid)
        for name, start in (
            ("socat", socat_command), ("haproxy", haproxy_command), ("haproxy_splicing", haproxy_splicing_command)
        ):  # fmt: skip
            if shutil.which(name.partition("_")[0], path=PATH) is None:
                continue
            port = free_port()
            process = stack.enter_context(running(start(port, target, folder)))
            wait_for_port(port)
            found[name] = Peer(name, f"tcp:{port}", process.pid)
        for peer in found.values():  # whatever it does once is done
            load("ping", peer.address, "100")
        yield server.pid, found


PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


def socat_command(port: int, target: Path, folder: Path) -> list[str]:
    """Return socat with a process a connection and a large buffer."""
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=1024"
    return [str(shutil.which("socat", path=PATH)), "-b", str(SOCAT_BUFFER), listen, f"UNIX-CONNECT:{target}"]


def haproxy_command(port: int, target: Path, folder: Path) -> list[str]:
    """Return haproxy as it is unless told otherwise: it copies, with a thread a processor."""
    return _haproxy(port, target, folder / "haproxy.cfg", "")


def haproxy_splicing_command(port: int, target: Path, folder: Path) -> list[str]:
    """Return haproxy told to splice, with large pipes: then it makes the same system calls as ours."""
    return _haproxy(port, target, folder / "haproxy-splicing.cfg", "option splice-request\n    option splice-response")


def _haproxy(port: int, target: Path, config: Path, options: str) -> list[str]:
    config.write_text(HAPROXY.format(port=port, target=target, options=options))
    return [str(shutil.which("haproxy", path=PATH)), "-q", "-db", "-f", str(config)]


def load(*words: str) -> float:
    """Run one load to its end; return what it measured."""
    done = subprocess.run([*LOAD, *words], capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise SystemExit(f"load {' '.join(words)}: {done.stderr.strip()}")
    return float(done.stdout)


def measure_carrying(peer: Peer, what: str, streams: int, size: int) -> None:
    """Carry `size` bytes in and as many out; note MB/s and processor seconds a GB."""
    before = peer.cpu()
    seconds = sum(load(way, peer.address, str(streams), str(size)) for way in ("up", "down"))
    time.sleep(0.1)  # processes that end are counted by their parents
    peer.note(what, 2 * size / 1e6 / seconds)
    peer.note(f"{what}_cpu", (peer.cpu() - before) / (2 * size / 1e9))


def measure_round_trip(peer: Peer, server: int, count: int) -> None:
    """Note the microseconds of a round trip, with all processes on one processor.

    Left to itself the scheduler spreads them in one run and not in the next, and waking another processor of a virtual
    machine takes longer than any relay.
    """
    processors = os.sched_getaffinity(0)
    tasks = [int(task.name) for pid in (server, peer.pid) if pid for task in Path(f"/proc/{pid}/task").iterdir()]
    try:
        for task in (0, *tasks):
            os.sched_setaffinity(task, {min(processors)})
        peer.note("rtt_us", 1e6 * load("ping", peer.address, str(count)))
    finally:
        for task in (0, *tasks):
            os.sched_setaffinity(task, processors)


def measure_idle(peer: Peer, count: int) -> float:
    """Return the MiB that a relay holds with `count` idle connections."""
    with running([*LOAD, "idle", peer.address, str(count)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the idle connections did not come up")
        status = Path(f"/proc/{peer.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def ratio(found: dict[str, Peer], what: str, other: str) -> float | None:
    """Return ours divided by another's; None where that one is not here."""
    if other not in found:
        return None
    return round(found["ours"].middle(what) / found[other].middle(what), 2)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="scripts/bench relay", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=5, help="of each, interleaved; medians are shown (default 5)")
    parser.add_argument("--mib", type=int, default=1024, help="carried each way in one measurement (default 1024)")
    parser.add_argument("--streams", type=int, default=100, help="the many at once (default 100)")
    parser.add_argument("--pings", type=int, default=3000, help="of one measurement (default 3000)")
    parser.add_argument("--idle", type=int, default=2000, help="connections (default 2000)")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    size = args.mib << 20
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="veracruz-bench-") as folder, peers(Path(folder)) as (server, found):
        for number in range(args.rounds):
            for peer in found.values():
                measure_carrying(peer, "one", 1, size)
                measure_carrying(peer, "hundred", args.streams, size)
                measure_round_trip(peer, server, args.pings)
            shown = {name: round(peer.figures["one"][-1]) for name, peer in found.items()}
            say(f"round {number + 1}: one stream, MB/s: {shown}")
        idle_mib = measure_idle(found["ours"], args.idle)
    ratios = {
        "one_vs_socat": ratio(found, "one", "socat"),
        "one_vs_haproxy": ratio(found, "one", "haproxy"),
        "one_vs_direct": ratio(found, "one", "direct"),
        "hundred_vs_socat": ratio(found, "hundred", "socat"),
        "hundred_vs_haproxy": ratio(found, "hundred", "haproxy"),
        "cpu_vs_socat": ratio(found, "one_cpu", "socat"),
        "rtt_vs_socat": ratio(found, "rtt_us", "socat"),
        "idle_mib_2000": round(idle_mib, 1),
    }
    context: dict[str, Any] = {
        "rounds": args.rounds, "mib_each_way": args.mib, "streams": args.streams, "idle_connections": args.idle,
        "one_vs_haproxy_splicing": ratio(found, "one", "haproxy_splicing"),
        "hundred_vs_haproxy_splicing": ratio(found, "hundred", "haproxy_splicing"),
        "one_cpu_vs_haproxy_splicing": ratio(found, "one_cpu", "haproxy_splicing"),
        "cpu_vs_haproxy": ratio(found, "one_cpu", "haproxy"),
        "hundred_cpu_vs_socat": ratio(found, "hundred_cpu", "socat"),
        "hundred_cpu_vs_haproxy": ratio(found, "hundred_cpu", "haproxy"),
        "rtt_vs_haproxy": ratio(found, "rtt_us", "haproxy"),
        "medians": {
            name: {what: round(peer.middle(what), 3) for what in peer.figures} for name, peer in found.items()
        },
        "all_one": {name: [round(one) for one in peer.figures["one"]] for name, peer in found.items()},
        "all_hundred": {name: [round(one) for one in peer.figures["hundred"]] for name, peer in found.items()},
        "units": "one, hundred: MB/s; *_cpu: processor seconds a GB; rtt_us: us, median of 64-byte round trips, "
        "all on one processor",
        "missing": [f"{name} is not installed" for name in ("socat", "haproxy") if name not in found],
        "host_cpus": os.cpu_count(), "python": sys.version.split()[0],
        "load": [round(before[0], 1), round(os.getloadavg()[0], 1)],
    }  # fmt: skip
    if args.json:
        print(json.dumps({"bench": "relay", "ratios": ratios, "context": context}, indent=2))
    else:
        for name, value in ratios.items():
            print(f"{name:20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
