# SPDX-License-Identifier: MIT
"""What can go wrong on the host: the machine lacks something, or the isolate died."""

from attestation.errors import EXIT_ISOLATE, EnvironmentLacks, UsageError, VeracruzError


class NoQemu(EnvironmentLacks):
    """There is no QEMU for x86-64 on the PATH, or it does not run."""

    slug = "no-qemu"


class QemuTooOld(EnvironmentLacks):
    """QEMU's version lacks what an isolate needs."""

    slug = "qemu-too-old"


class NoKvm(EnvironmentLacks):
    """KVM was asked for and does not work on this machine."""

    slug = "no-kvm"


class NotEnoughMemory(EnvironmentLacks):
    """The machine has less memory than the isolate is to have, or the isolate less than its image needs."""

    slug = "not-enough-memory"


class CannotListen(EnvironmentLacks):
    """The address that participants are to reach cannot be had: in use, not permitted, not this machine's."""

    slug = "cannot-listen"


class MalformedEndpoint(UsageError):
    """An endpoint is neither HOST:PORT nor unix:PATH."""

    slug = "malformed-endpoint"


class UnsafeState(EnvironmentLacks):
    """A file of ours in the state directory is damaged, or others than its owner could have touched it."""

    slug = "unsafe-state"


class NameTaken(EnvironmentLacks):
    """An isolate of this name runs already."""

    slug = "name-taken"


class NoSuchIsolate(UsageError):
    """No isolate of this name is known, or it does not run."""

    slug = "no-such-isolate"


class IsolateDied(VeracruzError):
    """The isolate ended by itself, or a process of the host that it needs did."""

    slug = "isolate-died"
    exit_code = EXIT_ISOLATE


class IsolateHalted(IsolateDied):
    """The isolate refused to go on and said why with an event code."""

    slug = "isolate-halted"


class IsolateSilent(IsolateDied):
    """The isolate did not come up within its time."""

    slug = "isolate-silent"
