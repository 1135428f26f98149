# SPDX-License-Identifier: MIT
"""Two retailers learn together which brand a customer will choose."""
