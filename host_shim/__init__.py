# SPDX-License-Identifier: MIT
"""The untrusted host: starts an isolate and relays bytes to it, never sees a plaintext."""
