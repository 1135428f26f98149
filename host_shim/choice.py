# SPDX-License-Identifier: MIT
"""From the options of `enclave run` to the isolates to try, in order."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attestation.errors import UsageError
from enclave_image.runtime.wire import PORT_API

from .isolate import Evidence, Isolate

if TYPE_CHECKING:
    from enclave_image.eif import Eif

KINDS = ("qemu", "qemu-nitro", "nitro", "process")
NO_MODULE = "this host reads the isolate's memory, and no security module is in it: it can show no evidence"
NITRO_CPUS = 2  # a Nitro enclave takes whole cores, and a core has two threads


@dataclass(frozen=True, slots=True)
class Choice:
    """What to try, and whom to tell what worked; nothing is known of the size of a `process`."""

    isolates: Sequence[Isolate]
    works: Callable[[Isolate], None] = lambda isolate: None
    memory_mib: int | None = None
    cpus: int | None = None


def choose_isolates(args: argparse.Namespace, stack: contextlib.ExitStack) -> Choice:
    """Return what to try; what it opened is closed by `stack`. Raise UsageError or what the machine lacks."""
    if args.instance_id is not None:
        from .qemu_nitro import Parent

        Parent(None, args.instance_id)  # of its form, whatever takes it
    if args.isolate == "process":
        from .process import ProcessIsolate

        return Choice([ProcessIsolate()])
    if args.image is None:
        raise UsageError("an image is needed", hint="veracruz image build --out FILE.eif")
    match args.isolate:
        case "qemu":
            return _choose_qemu(args, stack)
        case "qemu-nitro":
            return _choose_qemu_nitro(args, stack)
    return _choose_nitro(args)


def _choose_qemu(args: argparse.Namespace, stack: contextlib.ExitStack) -> Choice:
    from .accel import Accel, KvmVerdict
    from .accel_probe import try_accelerator
    from .qemu import BootFiles, Machine, QemuIsolate, check_memory, choose_accelerators, find_qemu
    from .vhost_user.host import demand_host

    demand_host()
    image = _load_image(args)
    files = stack.enter_context(BootFiles(image))
    qemu, architecture = find_qemu(args.qemu, files.hardware), files.hardware.architecture
    machine = _machine(args, Machine)
    check_memory(machine, image.size)
    verdict = KvmVerdict(qemu.banner)
    accelerators = choose_accelerators(
        args.accel, verdict, lambda: try_accelerator(qemu, Accel.KVM, architecture=architecture) is None,
        architecture=architecture,
    )  # fmt: skip
    isolates = [
        QemuIsolate(
            qemu,
            files,
            machine,
            accel,
            tentative=tentative,
            debug_mode=args.debug_mode,
            port=port_of(args),
            **_without_policy(args),
        )
        for accel, tentative in accelerators
    ]
    return Choice(isolates, _remember(verdict, isolates), machine.memory_mib, machine.cpus)


def _choose_qemu_nitro(args: argparse.Namespace, stack: contextlib.ExitStack) -> Choice:
    from .accel import Accel, KvmVerdict
    from .accel_probe import try_accelerator
    from .hardware import check_kernel
    from .qemu import Machine, SealedFile, check_memory, choose_accelerators
    from .qemu_nitro import Parent, QemuNitroIsolate, find_qemu_nitro
    from .vhost_user.host import demand_host

    if args.debug_mode:
        raise UsageError(
            "QEMU's nitro-enclave machine has no debug mode: its registers are never zeroed",
            hint="leave --debug-mode out",
        )
    demand_host()
    qemu = find_qemu_nitro(args.qemu)
    image = _load_image(args)
    check_kernel(image)
    machine = _machine(args, Machine)
    check_memory(machine, image.size)
    file = SealedFile("image", [args.image.read_bytes()])
    stack.callback(file.close)
    verdict = KvmVerdict(qemu.banner)
    accelerators = choose_accelerators(args.accel, verdict, lambda: try_accelerator(qemu, Accel.KVM) is None)
    parent = Parent(args.role, args.instance_id)
    isolates = [
        QemuNitroIsolate(
            qemu, file, image.measurements, machine, accel, parent, tentative=tentative, port=port_of(args)
        )
        for accel, tentative in accelerators
    ]
    return Choice(isolates, _remember(verdict, isolates), machine.memory_mib, machine.cpus)


def _choose_nitro(args: argparse.Namespace) -> Choice:
    from .eif_signer import signer_of
    from .nitro import NitroIsolate, check_nitro_memory, find_launcher

    if args.role is not None or args.instance_id is not None:
        raise UsageError(
            "on Nitro the role and the instance are this instance's own", hint="leave --role and --instance-id out"
        )
    image = _load_image(args)
    memory = args.memory or check_nitro_memory(None, image.size)
    check_nitro_memory(memory, image.size)
    cpus = args.cpus or NITRO_CPUS
    isolate = NitroIsolate(
        launcher=find_launcher(args.nitro_cli, args.qemu),
        image=args.image.absolute(),
        measured=image.measurements,
        signer=signer_of(image.signature),
        memory_mib=memory,
        cpus=cpus,
        cid=args.enclave_cid,
        debug_mode=args.debug_mode,
        port=port_of(args),
    )
    return Choice([isolate], memory_mib=memory, cpus=cpus)


def _load_image(args: argparse.Namespace) -> Eif:
    from enclave_image.eif import load_eif

    from .image_origin import check_origin

    image = load_eif(args.image)
    check_origin(image, policy=not args.no_policy)
    return image


def port_of(args: argparse.Namespace) -> int:
    """Return the isolate's port that is relayed to."""
    port: int | None = args.port
    return PORT_API if port is None else port


def _without_policy(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is so of a `qemu` isolate where no module of ours waits for it."""
    return {"evidence": Evidence.NONE, "caution": NO_MODULE} if args.no_policy else {}


def _machine(args: argparse.Namespace, kind: Any) -> Any:
    default = kind()
    return kind(args.memory or default.memory_mib, args.cpus or default.cpus)


def _remember(verdict: Any, isolates: Sequence[Any]) -> Callable[[Isolate], None]:
    tried = any(isolate.tentative for isolate in isolates)
    return lambda isolate: verdict.write(isolate.accel == "kvm") if tried else None
