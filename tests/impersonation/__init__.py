# SPDX-License-Identifier: MIT
"""Impersonation at a recording relay: whoever is not who they must be is refused, and learns nothing."""
