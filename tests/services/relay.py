"""Carry bytes between a TCP port on loopback and a Unix socket: `python relay.py FROM TO [FROM TO …]`.

An address is `tcp:PORT` (always 127.0.0.1) or `unix:PATH`. Ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys


async def serve(source: str, target: str) -> asyncio.Server:
    """Accept at `source`, connect to `target`."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, _, place = target.partition(":")
        try:
            opening = (
                asyncio.open_unix_connection(place)
                if kind == "unix"
                else asyncio.open_connection("127.0.0.1", place)
            )
            far_reader, far_writer = await opening
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    kind, _, place = source.partition(":")
    if kind == "unix":
        return await asyncio.start_unix_server(accept, place)
    return await asyncio.start_server(accept, "127.0.0.1", int(place))


async def main(addresses: list[str]) -> None:
    """All pairs, until standard input ends."""
    servers = [await serve(*pair) for pair in zip(addresses[::2], addresses[1::2], strict=True)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.close()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the one side ends."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the other side hung up
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
