# SPDX-License-Identifier: MIT
"""What `scripts/bench vsock` is made of: the other backend, the guests, the fake driver's clock."""
