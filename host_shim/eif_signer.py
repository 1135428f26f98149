# SPDX-License-Identifier: MIT
"""Who signed an image, for PCR8 of the emulated NSM.

As QEMU's loader, the emulator takes the certificate's fingerprint and does not verify the signature: that is the work
of the image's own tools, and PCR0 is what the signature covers.
"""

from enclave_image.eif_tool.signature_section import signer_of

__all__ = ["signer_of"]
