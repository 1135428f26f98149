# SPDX-License-Identifier: MIT
"""Coverage-guided fuzzing of everything that reads untrusted bytes; `scripts/fuzz` is its command."""
