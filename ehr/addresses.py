"""Which addresses a client may call (OPERATIONS, SSRF): https, or plain http to loopback; no user names."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from ehr.errors import Refused

Origin = tuple[str, str, int]


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
