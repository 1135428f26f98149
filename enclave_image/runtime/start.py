# SPDX-License-Identifier: MIT
"""The first Python in an image: /init starts it as root with an empty environment, isolated mode and no site module."""

from __future__ import annotations

import gc
import os
import sys

SITE_PACKAGES = "/usr/lib/python3/dist-packages"
APPLICATION = "/app"
DIRECTORY = "/run/veracruz"


def start() -> None:
    """Silence the console before anything can speak, then live one life."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.path += [APPLICATION, SITE_PACKAGES]
    gc.disable()  # nothing to collect while modules load; `main` turns it on again
    from pathlib import Path

    from enclave_image.runtime.main import main
    from enclave_image.runtime.nsm_port import DEVICE
    from enclave_image.runtime.surroundings import Surroundings
    from enclave_image.runtime.transport import Vsock

    main(Surroundings(Vsock(), DEVICE, Path(DIRECTORY), is_image=True, is_root=True))


if __name__ == "__main__":
    try:
        start()
    finally:
        os._exit(0)  # daemon threads and finalisers have no say: /init powers off
