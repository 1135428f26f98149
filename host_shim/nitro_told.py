# SPDX-License-Identifier: MIT
"""What nitro-cli's error codes mean for who ran it, and the next command (src/common/document_errors.rs, E00 to E60).

Of several codes the first is the cause: whatever goes wrong in an enclave's process, the command that started it ends
with E39, "process connection failure", since it got no answer (users meet it as the only one in their logs).
"""

from __future__ import annotations

import re

ALLOCATOR = "/etc/nitro_enclaves/allocator.yaml"
RESTART = "sudo systemctl restart nitro-enclaves-allocator"
DEVICE = "/dev/nitro_enclaves"
NO_DEVICE = (
    "this machine has no Nitro Enclaves device",
    "start the EC2 instance with enclaves enabled (--enclave-options Enabled=true), then: sudo modprobe nitro_enclaves",
)
NO_PERMISSION = (f"this user may not open {DEVICE}", "sudo usermod -aG ne $USER, then log in anew")
NO_ANSWER = (
    "the enclave's process ended without an answer",
    "sudo tail /var/log/nitro_enclaves/nitro_enclaves.log; is nitro-enclaves-allocator active?",
)
IOCTL = (
    "sudo dmesg | grep -i nitro; one enclave's memory and CPUs may be another's already: nitro-cli describe-enclaves"
)

CODES: dict[str, tuple[str, str]] = {
    "E03": ("nitro-cli did not take a number that it was given", "see the command in supervisor.log"),
    "E05": ("nitro-cli could not start the enclave's process", "ulimit -u; free -m"),
    "E06": ("nitro-cli could not start the enclave's process", "ulimit -u; free -m"),
    "E07": (
        "nitro-cli cannot read its directory of sockets",
        "ls -ld /run/nitro_enclaves: it belongs to the group ne",
    ),
    "E11": (
        "nitro-cli cannot reach an enclave's process: it belongs to another user, or is gone",
        "sudo nitro-cli describe-enclaves",
    ),
    "E18": ("nitro-cli's log belongs to another user", "sudo chown root:ne /var/log/nitro_enclaves/nitro_enclaves.log"),
    "E19": ("nitro-cli cannot open a file that it needs", f"ls -l {DEVICE} /var/log/nitro_enclaves IMAGE.eif"),
    "E20": ("a CPU was named twice", "see the command in supervisor.log"),
    "E21": ("a CPU is not in the pool of the enclaves", f"set cpu_pool in {ALLOCATOR}, then: {RESTART}"),
    "E22": (
        "fewer CPUs are set aside for enclaves than --cpus asks",
        f"raise cpu_count in {ALLOCATOR}, then: {RESTART}",
    ),
    "E25": ("no huge pages of a size that enclaves take", f"{RESTART}; grep -i huge /proc/meminfo"),
    "E26": (
        "the enclave has too little memory for its image (four times its size is the least)",
        "more with --memory MIB",
    ),
    "E27": (
        "fewer huge pages are set aside for enclaves than --memory asks",
        f"raise memory_mib in {ALLOCATOR}, then: {RESTART}; grep -i hugepages_free /proc/meminfo",
    ),
    "E28": ("the driver gave no enclave", IOCTL),
    "E29": ("the enclaves' driver refused a call", IOCTL),
    "E30": ("the enclaves' driver refused to say where the image goes", IOCTL),
    "E31": (
        "the enclaves' driver refused the memory: its huge pages must be of one NUMA node, the CPUs' own",
        f"{RESTART}; {IOCTL}",
    ),
    "E32": (
        "the enclaves' driver refused a CPU: whole cores are needed, both threads of each",
        "an even --cpus; " + IOCTL,
    ),
    "E33": ("the enclaves' driver did not start the enclave: its CID is taken, or it lacks memory or CPUs", IOCTL),
    "E34": ("the image does not fit into the machine's memory", "--memory MIB"),
    "E35": (
        "nitro-cli's own reader found the image damaged, or huge pages are missing",
        "veracruz image describe IMAGE.eif",
    ),
    "E36": (
        "the enclave did not greet on port 9000 in time: its init died, or another program has the port",
        "run it once with --debug-mode, and read: veracruz enclave console NAME",
    ),
    "E38": NO_ANSWER,
    "E39": NO_ANSWER,
    "E41": NO_ANSWER,
    "E42": ("the huge pages could not be mapped", f"{RESTART}; grep -i hugepages_free /proc/meminfo"),
    "E44": ("the console cannot be reached: the enclave was not started in debug mode", "--debug-mode"),
    "E51": ("nitro-cli wants a home", "set HOME or NITRO_CLI_ARTIFACTS"),
    "E56": ("nitro-cli cannot write its log", "ls -ld /var/log/nitro_enclaves: the group ne may write there"),
    "E58": ("nitro-cli did not take the enclave's name", "see the command in supervisor.log"),
    "E59": (
        "the image's signature or its certificate does not hold (its dates count)",
        "veracruz image describe IMAGE.eif",
    ),
}
PASSES = frozenset({"E36", "E38", "E39", "E41"})  # another start may go better
CODE = re.compile(r"\[ (E\d\d) \]")
UNKNOWN = "nitro-cli failed with an error that we do not know"


def tell_code(code: str) -> tuple[str, str]:
    """Return what a code means and what to do."""
    return CODES.get(code, (UNKNOWN, f"nitro-cli explain --error-code {code}"))
