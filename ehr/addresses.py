"""Which addresses a client may call (OPERATIONS, SSRF): https, or plain http to loopback; no user names."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from ehr.errors import Refused

Origin = tuple[str, str, int]
# Where clouds tell a machine its secrets, besides link-local addresses: AWS by IPv6, Alibaba, Azure, Oracle.
METADATA = frozenset(
    ipaddress.ip_address(one) for one in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)


def origin_of(url: str) -> Origin:
    """(scheme, host, port) of a URL, the scheme's own port filled in. Raises Refused when it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    except ValueError as error:
        raise Refused("an address that is not a URL") from error
    return parts.scheme, (parts.hostname or "").lower(), port


def check_base_url(url: str, *, allow_http: bool = False) -> Origin:
    """The origin of a server's base URL. Raises Refused when we may not call it.

    allow_http  plain http outside loopback, for a network that is trusted
    """
    origin = scheme, host, _ = origin_of(url)
    if not host or scheme not in ("http", "https") or "@" in urlsplit(url).netloc:
        raise Refused("a base URL is https://host/path, without a user name")
    if scheme == "http" and not allow_http and not _is_loopback(host):
        raise Refused("plain http is refused outside loopback")
    return origin


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_resolved(host: str, address: str) -> None:
    """Refuse an IP address that a registered name must not lead to: it would reach this machine or its cloud.

    host     as registered; written as a loopback address (or localhost) it may lead to loopback
    address  what it resolved to, looked at again at the moment of connecting, so that a name that is
             re-bound after it was checked gains nothing
    raises   Refused for loopback, link-local (169.254.169.254 …), the metadata addresses of clouds,
             multicast, unspecified, reserved, and IPv6 tunnels (6to4, Teredo), which hold an IPv4 address
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.sixtofour is not None or found.teredo is not None:
            raise Refused("the address is a tunnel to another one")
        found = found.ipv4_mapped or found
    if found.is_loopback and _is_loopback(host):
        return
    is_this = found.is_unspecified or (found.version == 4 and found.packed[0] == 0)  # 0.0.0.0/8
    if found.is_loopback or found.is_link_local or found.is_multicast or is_this or found in METADATA:
        raise Refused("the address leads to this machine, or to a network that is not the server's")
    if found.is_reserved:
        raise Refused("the address leads to a reserved network")
