# SPDX-License-Identifier: MIT
"""Programs for isolates, each with its source, data and expected results."""
