"""Where a request comes from: one rule for the audit trail, the lock of sign-ins and the count of refusals.

Behind a proxy the connection is the proxy's, and X-Forwarded-For says whose it was there. That header counts
only when the connection comes from one of TRUSTED_PROXIES, and only its last hop does: that one the proxy
wrote down itself; the others came with the request and can be invented.
"""

from __future__ import annotations

import logging
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from django.conf import settings
from django.http import HttpRequest

logger = logging.getLogger(__name__)
_told: set[str] = set()  # networks whose header was not believed: each is named once
MOST_TOLD = 20


def address_of(request: HttpRequest) -> str:
    """The caller's address; "" where the server does not know it."""
    peer = str(request.META.get("REMOTE_ADDR") or "")
    hops = str(request.META.get("HTTP_X_FORWARDED_FOR", ""))
    if not hops or not settings.TRUSTED_PROXIES:
        return peer
    if not _is_trusted(peer):
        _tell(peer)
        return peer
    last = _address(hops.rpartition(",")[2])
    return str(last) if last is not None else peer


def network_of(address: str) -> str:
    """What one caller may be taken to hold: the address, of IPv6 its /64."""
    found = _address(address)
    if found is None:
        return address[:64]
    return str(ip_network(f"{found}/64", strict=False)) if found.version == 6 else str(found)


def lock_address(request: HttpRequest) -> str | None:
    """What sign-ins are locked by, besides the name that was typed (AXES_CLIENT_IP_CALLABLE).

    Of IPv6 the first address of its /64: whoever holds one of those holds them all.
    """
    return network_of(address_of(request)).partition("/")[0] or None


def _is_trusted(peer: str) -> bool:
    found = _address(peer)
    if found is None:
        return not peer  # a Unix socket has no address, and only this machine reaches it
    return any(found in network for network in settings.TRUSTED_PROXIES)


def _address(said: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: bare, [IPv6], or with a port; None for anything else."""
    text = said.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _tell(peer: str) -> None:
    """Somebody's header is not believed: if that is the proxy, everybody is one caller until it is."""
    network = network_of(peer)
    if network in _told or len(_told) >= MOST_TOLD:
        return
    _told.add(network)
    logger.warning(
        "X-Forwarded-For from %s is not believed: if that is your proxy, name it in TRUSTED_PROXIES; "
        "until then everybody who comes through it counts as one caller",
        network,
    )
