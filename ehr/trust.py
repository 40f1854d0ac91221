"""Whose certificates a connection is secured by: the public authorities, and those of this machine."""

from __future__ import annotations

import ssl
from functools import lru_cache

import certifi


def new_context() -> ssl.SSLContext:
    """TLS 1.2 or later, host names checked; a hospital installs its own authority on this machine."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@lru_cache(maxsize=1)
def trusted() -> ssl.SSLContext:
    """The one context of all HTTP clients; read once."""
    return new_context()
