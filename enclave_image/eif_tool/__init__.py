# SPDX-License-Identifier: MIT
"""What looks into enclave image files of anybody, compares them, takes them apart and signs them."""
