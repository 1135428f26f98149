# SPDX-License-Identifier: MIT
"""The relying party side: what evidence and policy are, how they are checked, how to talk to an attested isolate.

Who only verifies documents starts at `attestation.verifier.verify`; docs/verify-evidence.md lists what to import.
"""
