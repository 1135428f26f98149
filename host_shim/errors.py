# SPDX-License-Identifier: MIT
"""What can go wrong on the host: the machine lacks something, or the isolate died."""

from typing import ClassVar

from attestation.errors import EXIT_ISOLATE, EnvironmentLacks, UsageError, VeracruzError


class NoQemu(EnvironmentLacks):
    """There is no QEMU for the image's architecture on the PATH, or it does not run."""

    slug = "no-qemu"
    cure = "Install QEMU: on Debian, apt install qemu-system-x86, or qemu-system-arm for an image for aarch64."


class QemuTooOld(EnvironmentLacks):
    """QEMU's version lacks what an isolate needs."""

    slug = "qemu-too-old"
    cure = "Install QEMU 7.2 or later (Debian 12 has it)."


class NoNitroMachine(NoQemu):
    """No QEMU here has the machine nitro-enclave."""

    slug = "no-nitro-machine"
    cure = "Build one by scripts/build_qemu, or name a QEMU 9.2 or later that has the machine with --qemu."


class ImageOfAnotherMachine(UsageError):
    """The image's kernel is for another processor than this isolate has."""

    slug = "image-of-another-machine"
    cure = "Build the image for x86-64, or run it on a machine of its own architecture."


class NoNitro(EnvironmentLacks):
    """There is neither nitro-cli nor a QEMU with the nitro accelerator, or no Nitro Enclaves device."""

    slug = "no-nitro"
    cure = "Run on an EC2 instance started with enclaves enabled, with aws-nitro-enclaves-cli installed."


class NitroCliFailed(EnvironmentLacks):
    """nitro-cli refused a command, or answered in another form than its source tells."""

    slug = "nitro-cli-failed"
    cure = "Read nitro-cli's own words in the message; `nitro-cli explain --error-code E..` tells more of its code."


class NoKvm(EnvironmentLacks):
    """KVM was asked for and does not work on this machine."""

    slug = "no-kvm"
    cure = "Use --accel tcg, which is slower, or give this user access to /dev/kvm."


class NotEnoughMemory(EnvironmentLacks):
    """The machine has less memory than the isolate is to have, or the isolate less than its image needs."""

    slug = "not-enough-memory"
    cure = "Give the isolate less memory, or run it where there is more; the message tells both amounts."


class CannotListen(EnvironmentLacks):
    """The address that participants are to reach cannot be had: in use, not permitted, not this machine's."""

    slug = "cannot-listen"
    cure = "Choose another --listen address or port, or stop what listens there."


class MalformedEndpoint(UsageError):
    """An endpoint is not of the form ADDRESS:PORT, unix:PATH or vsock:CID:PORT."""

    slug = "malformed-endpoint"
    cure = "Write ADDRESS:PORT, [IPV6]:PORT, unix:PATH or vsock:CID:PORT."


class NoSuchHost(EnvironmentLacks):
    """A name given on the command line does not resolve here."""

    slug = "no-such-host"
    cure = "Give an address instead of a name, or see why this machine's resolver does not know it."


class BadActivation(EnvironmentLacks):
    """The sockets that systemd is to hand over are not there, or are not of the kind that is needed."""

    slug = "bad-activation"
    cure = "Let the .socket unit have ListenStream= and Accept=no, and the service no --listen but systemd."


class MalformedProxyHeader(VeracruzError):
    """A load balancer's introduction of its client is not of the PROXY protocol's version 2."""

    slug = "malformed-proxy-header"
    cure = "Let the load balancer send PROXY protocol version 2, or leave --accept-proxy out."


class MalformedEgress(UsageError):
    """A rule of what an isolate may reach is not PORT=HOST:PORT, or two of them want one port."""

    slug = "malformed-egress"
    cure = "Write each as PORT=HOST:PORT: the isolate's port of its parent, then the one place that it leads to."


class UnsafeState(EnvironmentLacks):
    """A file of ours in the state directory is damaged, or others than its owner could have touched it."""

    slug = "unsafe-state"
    cure = "Look at the file named; remove it, or take write permission from others."


class NameTaken(EnvironmentLacks):
    """An isolate of this name runs already."""

    slug = "name-taken"
    cure = "Choose another --name, or stop the isolate: veracruz enclave stop NAME."


class NoSuchIsolate(UsageError):
    """No isolate of this name is known, or it does not run."""

    slug = "no-such-isolate"
    cure = "List the names: veracruz enclave list --all."


class IsolateDied(VeracruzError):
    """The isolate ended by itself, or a process of the host that it needs did."""

    slug = "isolate-died"
    exit_code = EXIT_ISOLATE
    repeats: ClassVar[bool] = False  # whether a new start would end in the same way
    cure = "Read its console: veracruz enclave console NAME."


class IsolateHalted(IsolateDied):
    """The isolate refused to go on and said why with an event code."""

    slug = "isolate-halted"
    cure = "Act on the reason in the message: an isolate halts rather than serve under a doubt."


class IsolateRefused(IsolateHalted):
    """The isolate halted over its policy, its image or the root that the policy demands: it would do so again."""

    slug = "isolate-refused"
    cure = "Act on the reason in the message; the same image and policy end in the same way each time."
    repeats = True


class ImageDoesNotBoot(IsolateDied):
    """The image's kernel, ramdisks or /init cannot run here, as the kernel's own words tell."""

    slug = "image-does-not-boot"
    cure = "Compare the file with its source (veracruz image describe FILE.eif), and build or fetch it again."
    repeats = True


class LaunchRefused(IsolateDied):
    """What starts the isolate refused to: it lacks memory, processors, a device or a permission."""

    slug = "launch-refused"
    cure = "Act on the reason in the message: it comes from nitro-cli's first error, which brought the others about."
    repeats = True


class GuestOutOfMemory(IsolateDied):
    """The isolate's own memory did not suffice."""

    slug = "guest-out-of-memory"
    cure = "Give the isolate more memory with --memory, at least four times its image's size."
    repeats = True


class IsolateKilled(IsolateDied):
    """A process of the isolate was ended by SIGKILL: by the kernel's OOM killer, or by somebody on this machine."""

    slug = "isolate-killed"
    cure = "See whether the machine ran out of memory: dmesg names what the OOM killer ended."


class IsolateSilent(IsolateDied):
    """The isolate did not come up within its time."""

    slug = "isolate-silent"
    cure = "Give it more time or memory, or look where it stopped: veracruz enclave console NAME."
