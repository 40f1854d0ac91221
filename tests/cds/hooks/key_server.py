"""A key set at an address on loopback, which errs where a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class KeyServer:
    """What it answers, and what it was asked.

    keys     the JWK set
    raw      a body instead
    headers  further headers of its answers
    hold     cleared: it says nothing until it is set again
    drip_s   seconds between bytes of the body
    """

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[Any] = []
        self.raw: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hold = threading.Event()
        self.hold.set()
        self.drip_s = 0.0
        self.asked: list[str] = []
        self.is_over = threading.Event()

    def publish(self, *keys: Any) -> None:
        """Offer the public parts of these keys, and no others."""
        self.keys = [key.as_dict(private=False) for key in keys]


@contextmanager
def key_server() -> Iterator[KeyServer]:
    """One that runs as long as the block does."""
    held = KeyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.asked.append(self.path)
            held.hold.wait(20)
            body = orjson.dumps({"keys": held.keys}) if held.raw is None else held.raw
            try:
                self.send_response(held.status)
                for name, value in {"Content-Length": str(len(body)), **held.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for at in range(0, len(body), 1 if held.drip_s else len(body) or 1):
                    self.wfile.write(body[at : at + (1 if held.drip_s else len(body))])
                    if held.drip_s and held.is_over.wait(held.drip_s):
                        return
            except OSError:
                pass  # the caller did not wait

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    held.url = f"http://127.0.0.1:{server.server_port}/keys"
    threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
    try:
        yield held
    finally:
        held.is_over.set()
        held.hold.set()
        server.shutdown()
        server.server_close()
