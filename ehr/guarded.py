"""Connections to registered servers only: every address a name leads to is looked at when it is connected to.

A name that was checked and then re-bound to another address (DNS rebinding) gains nothing. No redirects are
followed and no proxy of the environment is used by whoever uses this transport as `guarded_client` does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import typing
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx

from ehr.addresses import check_resolved
from ehr.errors import Refused
from ehr.trust import trusted

T = typing.TypeVar("T")
# Looking up a name cannot be broken off, so it has threads of its own: the end of an event loop waits for its
# default ones, and a name server that is silent would hold a call long after its time was over.
_lookups = ThreadPoolExecutor(8, thread_name_prefix="lookup")


def run(work: Coroutine[typing.Any, typing.Any, T]) -> T:
    """Wait for `work`; also where an event loop already runs in this thread (then in a thread of its own)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()


FEW = httpx.Limits(max_connections=100, max_keepalive_connections=20)


class Kept:
    """Connections that outlive a call, for calls too short to shake hands anew each time.

    They belong to an event loop, which runs in a thread of its own and is shared by all calls of a process.
    An address is looked at when it is connected to; a connection that nobody uses is closed after IDLE_S.
    Whoever uses them brings headers and cookies of their own (an httpx client a call, which is not closed).
    """

    IDLE_S = 30.0

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), 0

    def run(self, work: Callable[[httpx.AsyncHTTPTransport], Coroutine[typing.Any, typing.Any, T]]) -> T:
        """Wait for `work`, which may use the connections of this process."""
        with self._lock:
            if self._pid != os.getpid():  # a process that was forked begins with none
                self._loop = asyncio.new_event_loop()
                # as many as are asked for: calls bound that, and one slow server must not hold up another
                limits = httpx.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=self.IDLE_S
                )
                self._transport = guarded_transport(limits)
                threading.Thread(target=self._loop.run_forever, name="kept", daemon=True).start()
                self._pid = os.getpid()
        return asyncio.run_coroutine_threadsafe(work(self._transport), self._loop).result()


def guarded_transport(limits: httpx.Limits = FEW) -> httpx.AsyncHTTPTransport:
    """httpx's transport, connecting only to addresses that were looked at at that very moment.

    httpx has no door for a network backend of one's own, so its pool's is replaced; a test shows that it is
    asked.
    """
    transport = httpx.AsyncHTTPTransport(verify=trusted(), trust_env=False, limits=limits)
    transport._pool._network_backend = GuardedNetwork()
    return transport


def guarded_connections() -> httpx.HTTPTransport:
    """The same for a client that waits by itself, such as `FhirClient`."""
    transport = httpx.HTTPTransport(verify=trusted(), trust_env=False)
    transport._pool._network_backend = GuardedSockets()
    return transport


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Resolves a name, checks every address it leads to, and connects to one of those."""

    def __init__(self) -> None:
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[typing.Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect. Raises httpcore.ConnectError for a name that leads nowhere we may go."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(_lookups, _look_up, host, port)
            address = _allowed(host, found)
        except (OSError, UnicodeError, Refused) as error:
            raise httpcore.ConnectError(type(error).__name__) from error
        return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As the pool asks."""
        await asyncio.sleep(seconds)


class GuardedSockets(httpcore.NetworkBackend):
    """The same, one thing after the other."""

    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[typing.Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect. Raises httpcore.ConnectError as above, ConnectTimeout for a name server that is silent."""
        try:
            address = _allowed(host, _lookups.submit(_look_up, host, port).result(timeout))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(type(error).__name__) from error
        except (OSError, UnicodeError, Refused) as error:
            raise httpcore.ConnectError(type(error).__name__) from error
        return self._plain.connect_tcp(address, port, timeout, local_address, socket_options)

    def sleep(self, seconds: float) -> None:
        """As the pool asks."""
        time.sleep(seconds)


def _look_up(host: str, port: int) -> list[str]:
    return [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _allowed(host: str, addresses: list[str]) -> str:
    """The first of the addresses, once every one of them may be called. Raises Refused."""
    for address in addresses:
        check_resolved(host, address)
    return addresses[0]
