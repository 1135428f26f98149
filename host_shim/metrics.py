# SPDX-License-Identifier: MIT
"""What is going on, as Prometheus reads it: gathered afresh at each question from what isolates leave on disk.

Nothing of this asks an isolate or its supervisor anything, so a supervisor that hangs is seen, and one that is asked
often is not slowed. Names and numbers alone: no address of a participant, no policy's text, no path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .board import look_at
from .nsm_emulator import ModuleCounters
from .record import Record, Stage
from .relay.counters import Counters
from .state import MODULE_COUNTERS, RELAY_COUNTERS, Isolates

REFUSALS = ("source", "proxy", "target", "late")  # relay.counters: refused_*
ENDS = ("finished", "broken", "cut_idle", "cut_drain")


@dataclass(frozen=True, slots=True)
class Sight:
    """One isolate as it is now; the counters of one that does not live are its last boot's."""

    record: Record
    relay: Counters | None
    module: ModuleCounters | None


def look(isolates: Isolates) -> Sequence[Sight]:
    """Return every isolate of this user."""
    sights = []
    for record in isolates.all():
        directory = isolates.directory(record.name)
        relay = look_at(directory / RELAY_COUNTERS, Counters)
        sights.append(Sight(record, relay, look_at(directory / MODULE_COUNTERS, ModuleCounters)))
    return sights


def healthy(record: Record) -> bool:
    """Whether participants can connect, as far as this host knows."""
    alive = record.supervisor is not None and record.supervisor.alive
    return record.stage is Stage.SERVING and alive and all(child.alive for child in record.children)


class Gatherer(Collector):
    """The families of metrics, gathered when they are asked for."""

    def __init__(self, isolates: Isolates) -> None:
        self._isolates = isolates

    def collect(self) -> Iterable[Metric]:
        """Yield every family."""
        sights = look(self._isolates)
        yield from _states(sights)
        yield from _traffic(sights)
        yield from _module(sights)
        damaged = len(self._isolates.damaged())
        yield GaugeMetricFamily("veracruz_damaged_records", "Isolates whose state cannot be read", value=damaged)


def _states(sights: Sequence[Sight]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "veracruz_isolate_up", "1 where participants can connect", labels=["name", "isolate", "accel", "evidence"]
    )
    stage = GaugeMetricFamily("veracruz_isolate_stage", "1 for the stage that it is in", labels=["name", "stage"])
    since = GaugeMetricFamily("veracruz_isolate_started_seconds", "When it was started, Unix time", labels=["name"])
    restarts = CounterMetricFamily("veracruz_isolate_restarts", "Isolates that died before it", labels=["name"])
    for sight in sights:
        record = sight.record
        up.add_metric([record.name, record.isolate, record.accel or "", record.evidence], float(healthy(record)))
        for one in Stage:
            stage.add_metric([record.name, one.value], float(record.stage is one))
        if (at := _unix(record.started)) is not None:
            since.add_metric([record.name], at)
        restarts.add_metric([record.name], record.restarts)
    yield from (up, stage, since, restarts)


def _unix(text: str) -> float | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _traffic(sights: Sequence[Sight]) -> Iterator[Metric]:
    accepted = CounterMetricFamily("veracruz_connections", "Connections accepted", labels=["name"])
    opened = GaugeMetricFamily("veracruz_connections_open", "Connections open now", labels=["name"])
    moved = CounterMetricFamily("veracruz_relayed_bytes", "Bytes relayed", labels=["name", "direction"])
    refused = CounterMetricFamily("veracruz_connections_refused", "Never reached it", labels=["name", "reason"])
    ended = CounterMetricFamily("veracruz_connections_ended", "How they ended", labels=["name", "how"])
    short = CounterMetricFamily("veracruz_descriptor_shortages", "Waits for a descriptor or memory", labels=["name"])
    for sight in sights:
        name, relay = sight.record.name, sight.relay
        if relay is None:
            continue
        accepted.add_metric([name], relay.accepted)
        opened.add_metric([name], relay.open if sight.record.stage.live else 0)
        moved.add_metric([name, "in"], relay.bytes_in)
        moved.add_metric([name, "out"], relay.bytes_out)
        for reason in REFUSALS:
            refused.add_metric([name, reason], getattr(relay, f"refused_{reason}"))
        for how in ENDS:
            ended.add_metric([name, how], getattr(relay, how))
        short.add_metric([name], relay.short_of_descriptors)
    yield from (accepted, opened, moved, refused, ended, short)


def _module(sights: Sequence[Sight]) -> Iterator[Metric]:
    requests = CounterMetricFamily("veracruz_nsm_requests", "Requests to the emulated NSM", labels=["name"])
    documents = CounterMetricFamily("veracruz_evidence_served", "Attestation documents given", labels=["name"])
    refused = CounterMetricFamily("veracruz_nsm_refused", "Requests answered by an error", labels=["name"])
    for sight in sights:
        if sight.module is not None:
            requests.add_metric([sight.record.name], sight.module.requests)
            documents.add_metric([sight.record.name], sight.module.documents)
            refused.add_metric([sight.record.name], sight.module.refused)
    yield from (requests, documents, refused)


def exposition(isolates: Isolates) -> bytes:
    """Return all metrics in Prometheus's text form."""
    registry = CollectorRegistry()
    registry.register(Gatherer(isolates))
    return generate_latest(registry)
