# SPDX-License-Identifier: MIT
"""What can go wrong when an image is built or read."""

from attestation.errors import EXIT_BUILD, EXIT_ENVIRONMENT, EXIT_USAGE, VeracruzError


class MalformedEif(VeracruzError):
    """The bytes are no enclave image file that a hypervisor would boot; the place is named."""

    slug = "malformed-eif"
    exit_code = EXIT_USAGE


class MalformedConfig(VeracruzError):
    """`image.toml` or `enclave.lock` is not of its form; the place is named."""

    slug = "malformed-config"
    exit_code = EXIT_USAGE


class InputUnavailable(VeracruzError):
    """A locked input is in no cache and no mirror serves it whole."""

    slug = "input-unavailable"
    exit_code = EXIT_ENVIRONMENT


class InputMismatch(VeracruzError):
    """An input's bytes are not those that the lock names."""

    slug = "input-mismatch"
    exit_code = EXIT_BUILD


class NoSandbox(VeracruzError):
    """This machine allows neither a user namespace nor, to root, a chroot."""

    slug = "no-sandbox"
    exit_code = EXIT_ENVIRONMENT


class NoSpace(VeracruzError):
    """The file system has too little room for the build."""

    slug = "no-space"
    exit_code = EXIT_ENVIRONMENT


class BuildFailed(VeracruzError):
    """A step of the build failed, or its log shows that it only seemed to succeed."""

    slug = "build-failed"
    exit_code = EXIT_BUILD


class ArchiveUntrusted(VeracruzError):
    """The package archive's index is not signed by the archive's keys, or not the file that it signed."""

    slug = "archive-untrusted"
    exit_code = EXIT_BUILD
