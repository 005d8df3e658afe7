"""A TCP relay between a device and the edge that a test can cut, stall, slow down or make lie."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator

__all__ = ["Relay", "relayed"]

_BLOCK = 1 << 16


class Relay:
    """Passes bytes on between whoever dials `address` and `upstream`.

    Attributes
    ----------
    refusing
        Take no new connections: they are closed at once.
    stalled
        Pass nothing on; both sides see a network that is silent.
    delay_s
        Hold every block back for so long, each way.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.refusing, self.stalled, self.delay_s = False, False, 0.0
        self.num_connections = 0
        self.uplink_bytes = self.downlink_bytes = 0
        self._corrupt_at: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._stopping = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close every connection now, with a reset, as a network that goes away does."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)

    def corrupt_uplink(self, after_bytes: int) -> None:
        """Flip a bit in the byte that comes so many bytes from now from the device."""
        self._corrupt_at = self.uplink_bytes + after_bytes

    def stop(self) -> None:
        """Close everything."""
        self._stopping = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                device.close()
                continue
            try:
                edge = socket.create_connection(self._upstream)
            except OSError:
                device.close()
                continue
            self.num_connections += 1
            with self._lock:
                self._pairs.add((device, edge))
            threading.Thread(target=self._pass_on, args=(device, edge), daemon=True).start()

    def _pass_on(self, device: socket.socket, edge: socket.socket) -> None:
        for end in (device, edge):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with device, edge, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(device, selectors.EVENT_READ, edge)
            selector.register(edge, selectors.EVENT_READ, device)
            while not self._stopping:
                if self.stalled:
                    time.sleep(0.01)
                    continue
                for key, _ in selector.select(0.1):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    block = source.recv(_BLOCK)
                    if not block:
                        return
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    key.data.sendall(self._count(block, from_device=source is device))
        with self._lock:
            self._pairs.discard((device, edge))

    def _count(self, block: bytes, *, from_device: bool) -> bytes:
        if not from_device:
            self.downlink_bytes += len(block)
            return block
        first, self.uplink_bytes = self.uplink_bytes, self.uplink_bytes + len(block)
        at = self._corrupt_at
        if at is not None and first <= at < self.uplink_bytes:
            self._corrupt_at = None
            altered = bytearray(block)
            altered[at - first] ^= 0x10
            return bytes(altered)
        return block


@contextlib.contextmanager
def relayed(upstream: str) -> Iterator[Relay]:
    """A relay that is gone at the end of the block."""
    relay = Relay(upstream)
    try:
        yield relay
    finally:
        relay.stop()
