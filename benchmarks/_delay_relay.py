"""A TCP relay that holds every byte back for a while: the propagation delay of a link, which `tc` cannot shape everywhere.

``python _delay_relay.py HOST:PORT SECONDS`` passes on what comes to a free port of 127.0.0.1, which it prints. A byte that is
waiting does not keep those behind it from coming: the delay takes nothing from the rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time

BLOCK = 1 << 16
# More than any link here has under way: what is held back must not look like a full link.
MOST_BLOCKS = 4096


async def main() -> None:
    """Serve until killed."""
    host, _, port = sys.argv[1].rpartition(":")
    delay_s = float(sys.argv[2])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        for one in (writer, far_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(delayed(reader, far_writer, delay_s), delayed(far_reader, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


async def delayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass one direction on."""
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_BLOCKS)

    async def take() -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(BLOCK):
                await held.put((time.monotonic() + delay_s, block))
        await held.put((time.monotonic() + delay_s, b""))

    async def give() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                due_s, block = await held.get()
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
                if not block:
                    break
                writer.write(block)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            writer.close()

    await asyncio.gather(take(), give())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
