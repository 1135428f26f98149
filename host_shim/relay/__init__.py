# SPDX-License-Identifier: MIT
"""Carries bytes between participants and the isolate, in a process of its own, and looks at none of them."""
