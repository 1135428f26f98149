# SPDX-License-Identifier: MIT
"""What runs inside the isolate. Measured into the image: keep it small."""
