# SPDX-License-Identifier: MIT
"""What an isolate may reach: PORT=HOST:PORT, one place a port; and which of a name's addresses are taken.

Whoever answers for a name could send the isolate's bytes anywhere, so a name leads to addresses of the Internet alone;
with `,private` to those of a private network too (a VPC's endpoint for KMS has one). An address that is written out was
chosen by the operator, and is taken as it stands. The host itself and its link (where cloud machines have their
metadata service) are never reached by a name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from enclave_image.runtime.wire import PORT_API, PORT_EVENTS, PORT_HEARTBEAT, PORT_NSM, PORT_POLICY

from ..errors import MalformedEgress

RESERVED = frozenset((PORT_API, PORT_HEARTBEAT, PORT_POLICY, PORT_NSM, PORT_EVENTS))
MAX_RULES = 32
MAX_NAME = 253  # RFC 1035 3.1, as text
LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"{LABEL}(\.{LABEL})*", re.ASCII | re.IGNORECASE)
FORM = "PORT=HOST:PORT or PORT=[IPV6]:PORT, or with ,private after it"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Rule:
    """What one port of the parent leads to."""

    port: int  # vsock port that the isolate dials
    host: str  # a name, resolved afresh for each connection, or an address
    target: int  # TCP port there
    private: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.port}={host}:{self.target}{',private' if self.private else ''}"

    @property
    def literal(self) -> Address | None:
        """The address, where the rule names one instead of a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def refuses(self, address: Address) -> str | None:
        """Return why an address that the name led to is not taken; None if it is."""
        if self.literal is not None:
            return None if address == self.literal else "not the rule's address"
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        address = mapped or address
        for wrong, what in (
            (address.is_unspecified, "unspecified"),
            (address.is_loopback, "this host's own"),
            (address.is_link_local, "of the link"),
            (address.is_multicast, "multicast"),
        ):
            if wrong:
                return f"the address is {what}"
        if address.is_global:
            return None
        if _is_private_network(address):
            return None if self.private else "the address is private, and the rule does not end in ,private"
        return "the address is reserved"


_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)  # RFC 1918, 6598, 4193


def _is_private_network(address: Address) -> bool:
    return any(address in network for network in _PRIVATE if network.version == address.version)


def parse_rule(text: str) -> Rule:
    """Parse one rule; raise MalformedEgress."""
    body, comma, word = text.partition(",")
    if comma and word != "private":
        raise MalformedEgress("an egress rule ends in an unknown word", expected="private", actual=word)
    port, equals, rest = body.partition("=")
    host, colon, target = rest.rpartition(":")
    if not equals or not colon:
        raise MalformedEgress("no egress rule", expected=FORM, actual=text)
    rule = Rule(_port(port, text), _host(host, text), _port(target, text), private=bool(comma))
    if rule.port in RESERVED:
        raise MalformedEgress(
            f"port {rule.port} is the shim's own", expected=f"none of {', '.join(map(str, sorted(RESERVED)))}",
            actual=text,
        )  # fmt: skip
    return rule


def parse_rules(texts: Sequence[str]) -> tuple[Rule, ...]:
    """Parse all rules; raise MalformedEgress if one is malformed, there are too many, or two have one port."""
    if len(texts) > MAX_RULES:
        raise MalformedEgress("too many egress rules", expected=f"at most {MAX_RULES}", actual=len(texts))
    rules = tuple(parse_rule(text) for text in texts)
    seen: dict[int, Rule] = {}
    for rule in rules:
        if rule.port in seen:
            raise MalformedEgress(
                "two egress rules have one port", expected="a port of its own for each",
                actual=f"{seen[rule.port]} and {rule}",
            )  # fmt: skip
        seen[rule.port] = rule
    return rules


def _port(text: str, rule: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 0xFFFF):
        raise MalformedEgress("an egress rule's port is out of range", expected="1 to 65535", actual=rule)
    return int(text)


def _host(text: str, rule: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as error:
            raise MalformedEgress("no IPv6 address in the brackets", expected=FORM, actual=rule) from error
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    if len(text) > MAX_NAME or not NAME.fullmatch(text) or text.replace(".", "").isdecimal():
        raise MalformedEgress("no host in an egress rule", expected=FORM, actual=rule)
    return text.lower()
