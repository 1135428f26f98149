# SPDX-License-Identifier: MIT
"""Container images on disk, read without a daemon, as enclave images."""
