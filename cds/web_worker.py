"""The worker of the web server: uvicorn under gunicorn, sharing connections out evenly.

`gunicorn -k cds.web_worker.Worker cds.asgi:application`

Whoever wakes first takes every connection that waits: asyncio and uvloop accept until there is none left. An
EHR, or a proxy before us, opens a few connections at once and keeps them; so often one process held all of
them, and the others, with their processor cores, none. Here a process takes one connection at a time, and
waits the longer before the next, the more it holds: so the one that holds fewest is first.

And a process ends with its master. gunicorn's own kinds of worker look whether it is still there; uvicorn's
does not, and where the master was killed (out of memory, say) its workers kept the port and served old code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import uvloop
from uvicorn_worker import UvicornWorker

logger = logging.getLogger("uvicorn.error")
PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.003  # for each connection held; at most
SIGN_OF_LIFE_S = 1.0  # between two, and between two looks for the master
OUT_OF_FILES_S = 1.0  # asyncio waits as long when the system lets nothing be accepted


class Worker(UvicornWorker):
    """`UvicornWorker` on a `Loop`; the address of a connection stays that of who connected.

    What a proxy says in X-Forwarded-For is read in one place (`cds.audit.callers`), X-Forwarded-Proto by
    Django. uvicorn would read both from a proxy on this machine, and nobody could tell later who had said it.
    """

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **UvicornWorker.CONFIG_KWARGS,
        "loop": "cds.web_worker:Loop",
        "proxy_headers": False,
        "timeout_notify": SIGN_OF_LIFE_S,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The master kills who takes longer than this to end; without a master nobody would.
        self.config.timeout_graceful_shutdown = self.cfg.graceful_timeout

    async def callback_notify(self) -> None:
        """Tell the master that we live; without one, end as if it had said so."""
        await super().callback_notify()
        if os.getppid() != self.ppid:
            self.log.error("the master of this worker is gone: it ends")
            signal.raise_signal(signal.SIGTERM)


class Loop(uvloop.Loop):
    """uvloop, whose servers on a given socket take one connection at a time."""

    async def create_server(self, factory: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As asyncio's. `sock`, `ssl` and `backlog` are what uvicorn gives under gunicorn."""
        if args or options.keys() - {"sock", "ssl", "backlog"} or options.get("sock") is None:
            return await super().create_server(factory, *args, **options)
        return Server(self, factory, options["sock"], options.get("ssl"))


class Server:
    """Accepts on a socket that is bound and listens already."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, factory: Callable[[], Any], sock: socket.socket, ssl: Any
    ) -> None:
        self.sockets = (sock,)
        self._loop, self._factory, self._ssl = loop, factory, ssl
        self._held = set[asyncio.BaseTransport]()
        self._begun = set[asyncio.Task[None]]()
        sock.setblocking(False)
        self._accepting = loop.create_task(self._accept(sock))

    def close(self) -> None:
        """Take no more. Connections go on; the socket stays open: others accept on it too."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Until nothing is accepted any more."""
        await asyncio.wait({self._accepting})

    async def _accept(self, sock: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(sock)
            except ConnectionAbortedError:
                continue  # gone before we came
            except OSError:
                logger.exception("no connection can be accepted just now")
                await asyncio.sleep(OUT_OF_FILES_S)
                continue
            task = self._loop.create_task(self._begin(connection))  # a TLS handshake keeps nobody waiting
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)
            self._held = {one for one in self._held if not one.is_closing()}
            await asyncio.sleep(min(PAUSE_S * (1 + len(self._held)), LONGEST_PAUSE_S))

    async def _begin(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        except OSError:
            pass  # no TCP: a Unix socket
        try:
            transport, _ = await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._ssl)
        except (OSError, asyncio.CancelledError):  # no handshake, or the end
            connection.close()
        else:
            self._held.add(transport)
