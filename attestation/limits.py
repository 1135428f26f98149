# SPDX-License-Identifier: MIT
"""Named limits of what is parsed, each with its unit and source."""

PCR_SIZE = 48  # bytes; SHA-384
PCR_COUNT = 32  # registers; nsm-api DescribeNSM max_pcrs
POLICY_PCR = 16  # the first register that the NSM leaves to the enclave (0..15 are locked at boot)

MAX_DOCUMENT = 16 * 1024  # bytes of a COSE_Sign1; NSM response buffers are 12,288, seen: 7,539
MAX_MODULE_ID = 128  # characters; seen: 39 (`i-` 17 hex digits `-enc` 16 hex digits)
MAX_TIMESTAMP_MS = 253_402_300_799_999  # milliseconds since 1970; the end of the year 9999
MAX_FIELD = 1024  # bytes of user_data, nonce and public_key; CDDL of the AWS specification, seen in real documents
MAX_CERTIFICATE = 1024  # bytes of DER; AWS attestation_process.md
MAX_CABUNDLE = 8  # certificates; seen: always 4
NONCE_SIZE = 32  # bytes; a participant's nonce is exactly this long

NSM_REQUEST_MAX = 0x1000  # bytes; nsm-api src/driver
NSM_RESPONSE_MAX = 0x3000  # bytes; nsm-api src/driver

MAX_POLICY = 1024 * 1024  # bytes; design: port 9001
MAX_MEASUREMENTS_FILE = 1024 * 1024  # bytes of JSON
MAX_CERTIFICATE_PEM = 16 * 1024  # bytes of a PEM file named by a user
