# SPDX-License-Identifier: MIT
"""The way out: a parent's port leads to one named address, where the operator allowed it, and nowhere else."""
