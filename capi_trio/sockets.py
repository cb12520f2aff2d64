"""What trio's socket streams do not offer: a send without a turn of the scheduler, and a close that drops the rest."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

import trio
from typing_extensions import override

if TYPE_CHECKING:
    from trio.abc import AsyncResource

__all__ = ["TLSTransport", "close_with_reset", "send_now"]


class TLSTransport(trio.abc.HalfCloseableStream):
    """A TLS stream where a half-closeable one is asked for. TLS has no half-close: `send_eof` does nothing."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def do_handshake(self) -> None:
        await self._stream.do_handshake()

    @override
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    @override
    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    @override
    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    @override
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


def send_now(stream: AsyncResource, data: bytes) -> int:
    """Hands over what the kernel takes at once; returns how many bytes that was. 0 for anything but a socket.

    trio's own `send_all` gives way to other tasks on every call, which costs more than the system call. The caller must
    be the only sender, and must reach a checkpoint elsewhere. Raises `trio.BrokenResourceError` when the peer is gone,
    `trio.ClosedResourceError` when the stream was closed here.
    """
    if not isinstance(stream, trio.SocketStream):
        return 0
    descriptor = stream.socket.fileno()
    if descriptor < 0:
        raise trio.ClosedResourceError("this socket was already closed")
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise trio.BrokenResourceError(str(error.strerror)) from error


async def close_with_reset(stream: AsyncResource) -> None:
    """Closes at once. What the peer has not taken is dropped (RST), not kept in the kernel."""
    if isinstance(stream, trio.SocketStream):
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)
