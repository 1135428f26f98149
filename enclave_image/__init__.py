# SPDX-License-Identifier: MIT
"""Build the enclave image; hold what runs inside it (`runtime`)."""
