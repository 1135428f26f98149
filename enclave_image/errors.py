# SPDX-License-Identifier: MIT
"""What can go wrong when an image is built or read."""

from attestation.errors import EXIT_BUILD, EXIT_ENVIRONMENT, EXIT_USAGE, VeracruzError


class MalformedEif(VeracruzError):
    """The bytes are no enclave image file that a hypervisor would boot; the place is named."""

    slug = "malformed-eif"
    exit_code = EXIT_USAGE
    cure = "Get or build the image again; a file that was cut or re-packed does not boot."


class MalformedConfig(VeracruzError):
    """`image.toml` or `enclave.lock` is not of its form; the place is named."""

    slug = "malformed-config"
    exit_code = EXIT_USAGE
    cure = "Correct image.toml at the place named; enclave.lock is written by veracruz image lock only."


class InputUnavailable(VeracruzError):
    """A locked input is in no cache and no mirror serves it whole."""

    slug = "input-unavailable"
    exit_code = EXIT_ENVIRONMENT
    cure = "Check network and mirrors (image.toml); snapshots keep what a mirror has dropped."


class InputMismatch(VeracruzError):
    """An input's bytes are not those that the lock names."""

    slug = "build-input-mismatch"
    exit_code = EXIT_BUILD
    cure = "Do not build: the mirror serves other bytes than were locked. Try another mirror; else lock anew."


class ToolMismatch(VeracruzError):
    """The lock names another version of veracruz than the one that runs."""

    slug = "tool-mismatch"
    exit_code = EXIT_ENVIRONMENT
    cure = "Check out the version that the lock names, or make the lock this version's: veracruz image lock --write."


class CacheInUse(VeracruzError):
    """A build is using the cache, so nothing is removed from it."""

    slug = "cache-in-use"
    exit_code = EXIT_ENVIRONMENT
    cure = "Wait for the build that the message tells of, and run this again."


class NoSandbox(VeracruzError):
    """This machine allows neither a user namespace nor, to root, a chroot."""

    slug = "no-sandbox"
    exit_code = EXIT_ENVIRONMENT
    cure = "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or run as root."


class NoSpace(VeracruzError):
    """The file system has too little room for the build."""

    slug = "no-space"
    exit_code = EXIT_ENVIRONMENT
    cure = "Free the space that the message names, or move the cache: XDG_CACHE_HOME."


class BuildFailed(VeracruzError):
    """A step of the build failed, or its log shows that it only seemed to succeed."""

    slug = "build-failed"
    exit_code = EXIT_BUILD
    cure = "Read the log lines above the message. The same lock builds everywhere: report what differs here."


class ArchiveUntrusted(VeracruzError):
    """The package archive's index is not signed by the archive's keys, or not the file that it signed."""

    slug = "archive-untrusted"
    exit_code = EXIT_BUILD
    cure = "Do not lock: the index is not what the archive signed. Check mirror, suite and keyring."


class MalformedRamdisk(VeracruzError):
    """A ramdisk is no archive that the kernel would unpack, or passes a limit; the place is named."""

    slug = "malformed-ramdisk"
    exit_code = EXIT_USAGE
    cure = "Get or build the image again. What passes a limit is not looked into: extract without --files."


class BadImageSignature(VeracruzError):
    """The signature is not the certificate's over this image's PCR0."""

    slug = "bad-image-signature"
    cure = "Do not rely on the signature: sign again with the key of the certificate that you name."


class SigningRefused(VeracruzError):
    """An image is not signed with this certificate and key: dates, curve, or they are no pair."""

    slug = "signing-refused"
    cure = "Name a certificate that is valid now, of a P-256, P-384 or P-521 key, and its own private key."


class SignerFailed(VeracruzError):
    """The command that was to sign ended with an error, too late or with something else than a signature."""

    slug = "signer-failed"
    exit_code = EXIT_ENVIRONMENT
    cure = "Run the command by hand on the file of --to-be-signed: it has to print one ECDSA signature and exit with 0."


class MalformedContainer(VeracruzError):
    """The container image on disk is not of its form, hostile, or passes a limit; the place is named."""

    slug = "malformed-container"
    exit_code = EXIT_USAGE
    cure = "Save the image again (docker save, skopeo copy). What is refused would not mean the same to every reader."


class ContainerMismatch(VeracruzError):
    """Bytes of the container image are not those that its manifest or configuration names."""

    slug = "container-mismatch"
    exit_code = EXIT_BUILD
    cure = "Do not build: the files were damaged or changed. Fetch or save the image again."


class UnfitContainer(VeracruzError):
    """The container image is sound, but cannot run in this enclave image; the reason is named."""

    slug = "unfit-container"
    exit_code = EXIT_USAGE
    cure = "Change the container image as the message says, or choose another of its platforms."
