# SPDX-License-Identifier: MIT
"""The host's verbs that look: `veracruz enclave list` and `describe`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.console import emit, warn
from attestation.errors import EXIT_OK, escape

from .board import look_at
from .record import Record, Stage
from .relay.counters import Counters
from .state import RELAY_COUNTERS, Damaged, Isolates

SHORT_HASH = 12  # characters of the policy's hash in a list
NOTE = 60  # characters of a reason in a list


def summary_of(record: Record) -> dict[str, Any]:
    """Return what every verb's JSON tells of an isolate."""
    return {
        "name": record.name,
        "endpoint": record.endpoint,
        "isolate": record.isolate,
        "accel": record.accel,
        "evidence": record.evidence,
        "pid": record.supervisor.pid if record.supervisor else None,
        "policy": record.policy,
        "root": record.root,
        "image": record.image,
        "started": record.started,
        "uptime_s": uptime(record),
        "restarts": record.restarts,
        "stage": record.stage.value,
        "reason": record.reason,
        "Measurements": record.measurements,
    }


def list_isolates(args: argparse.Namespace) -> int:
    """Print this user's isolates: those that live or were lost, and those whose state cannot be read."""
    isolates = Isolates()
    records = [one for one in isolates.all() if args.all or one.stage.live or one.stage is Stage.LOST]
    damaged = isolates.damaged()
    rows: list[tuple[str, ...]] = [("NAME", "STAGE", "ISOLATE", "ACCEL", "ENDPOINT", "UP", "POLICY", "NOTE")]
    rows += [_row(record) for record in records]
    rows += [(one.name, "damaged", "-", "-", "-", "-", "-", one.problem) for one in damaged]
    emit(
        args,
        {"isolates": [summary_of(record) for record in records], "damaged": [_tell(one) for one in damaged]},
        table(rows),
    )
    for one in damaged:
        warn(f"the state of {one.name} cannot be read; to mend it: {one.cure}")
    return EXIT_OK


def _row(record: Record) -> tuple[str, ...]:
    seconds = uptime(record)
    note = (record.reason or "").partition("\n")[0]
    if record.stage is Stage.SERVING and record.restarts:
        note = f"{record.restarts} died before it, the last: {record.died}"
    return (
        record.name,
        record.stage.value,
        record.isolate,
        record.accel or "-",
        record.endpoint,
        "-" if seconds is None else span(seconds),
        record.policy[:SHORT_HASH] if record.policy else "none",
        note if len(note) <= NOTE else note[: NOTE - 3] + "...",
    )


def _tell(damaged: Damaged) -> dict[str, Any]:
    return {
        "name": damaged.name,
        "problem": damaged.problem,
        "cure": damaged.cure,
        "pid": damaged.supervisor.pid if damaged.supervisor else None,
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def uptime(record: Record, at: datetime | None = None) -> float | None:
    """Return for how many seconds an isolate has served, or been starting; None if it does not live."""
    if not record.stage.live:
        return None
    try:
        begin = datetime.fromisoformat(record.served or record.started)
        return max(0.0, ((at or datetime.now(UTC)) - begin).total_seconds())
    except (ValueError, TypeError):  # a time of another form, or without a zone
        return None


def span(seconds: float) -> str:
    """Return a duration as people say it: two units at most."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{whole} s"


def describe_isolate(args: argparse.Namespace) -> int:
    """Print all that is known of an isolate."""
    isolates = Isolates()
    record = isolates.find(args.name)
    directory = isolates.directory(record.name)
    known: dict[str, Any] = {
        **summary_of(record),
        "memory_mib": record.memory_mib,
        "cpus": record.cpus,
        "debug_mode": record.debug,
        "served": record.served,
        "ended": record.ended,
        "restart": record.restart,
        "died": record.died,
        "processes": _processes(record),
        "port": record.port,
        "traffic": _traffic(directory / RELAY_COUNTERS, record),
        "sockets": record.sockets,
        "state": str(directory / "state.json"),
        "console": str(directory / "console.log"),
        "log": str(directory / "supervisor.log"),
        "enclave": _enclave(record),
    }
    emit(args, known, "\n".join(_lines(known)))
    return EXIT_OK


def _traffic(counters: Path, record: Record) -> dict[str, int] | None:
    """Return what the relay counted since this isolate came up; None before it has."""
    told = look_at(counters, Counters)
    if told is None:
        return None
    return {
        "open": told.open if record.stage.live else 0, "accepted": told.accepted, "refused": told.refused,
        "bytes_in": told.bytes_in, "bytes_out": told.bytes_out,
    }  # fmt: skip


def _processes(record: Record) -> list[dict[str, Any]]:
    found = [("supervisor", record.supervisor)] if record.supervisor else []
    roles = record.roles + ("process",) * (len(record.children) - len(record.roles))
    found += list(zip(roles, record.children, strict=False))
    return [{"role": role, "pid": process.pid, "alive": process.alive} for role, process in found if process]


def _enclave(record: Record) -> dict[str, Any] | None:
    """Return what nitro-cli says of the enclave now."""
    if record.outside is None:
        return None
    from .nitro_cli import NitroCli

    told: dict[str, Any] = {"name": record.outside.name, "cid": record.outside.cid, "tool": record.outside.tool}
    try:
        enclave = NitroCli(record.outside.tool).find(record.outside.name)
    except Exception as error:
        return {**told, "state": None, "problem": escape(error)}
    return {**told, "id": enclave.id if enclave else None, "state": enclave.state if enclave else "gone"}


def _lines(known: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in known.items():
        match value:
            case None | [] | False:
                continue
            case dict() if key == "Measurements":
                lines += [f"{name:<12}{text}" for name, text in value.items() if name.startswith("PCR")]
            case dict():
                lines.append(f"{key:<12}" + ", ".join(f"{name} {text}" for name, text in value.items()))
            case list():
                lines += [
                    f"{'process' if not index else '':<12}{one['pid']} {one['role']}{'' if one['alive'] else ' (gone)'}"
                    for index, one in enumerate(value)
                ]
            case float():
                lines.append(f"{'uptime':<12}{span(value)}")
            case str():
                first, *rest = value.split("\n")
                lines += [f"{key:<12}{first}", *(f"{'':<12}{line}" for line in rest)]
            case _:
                lines.append(f"{key.removesuffix('_mib'):<12}{value}{' MiB' if key.endswith('_mib') else ''}")
    return lines
