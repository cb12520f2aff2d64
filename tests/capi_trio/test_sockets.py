"""The two things that trio's streams do not offer, on a real loopback connection."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from capi_trio.sockets import TLSTransport, close_with_reset, send_now


async def connected() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return client, await listener.accept()


async def read_all(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def test_what_the_kernel_takes_is_sent_without_a_checkpoint() -> None:
    client, server = await connected()
    async with client, server:
        with trio.testing.assert_no_checkpoints():
            assert send_now(server, b"hello") == 5
        assert await client.receive_some() == b"hello"


async def test_a_full_socket_takes_nothing() -> None:
    client, server = await connected()
    async with client, server:
        while send_now(server, b"x" * 65536):
            pass
        assert send_now(server, b"x") == 0


async def test_other_streams_take_nothing_at_once() -> None:
    left, _right = trio.testing.memory_stream_pair()
    assert send_now(left, b"hello") == 0


async def test_a_closed_or_broken_socket_is_told_apart() -> None:
    client, server = await connected()
    await close_with_reset(client)
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        send_now(server, b"x")
    await server.aclose()
    with pytest.raises(trio.ClosedResourceError):
        send_now(server, b"x")
    await close_with_reset(server)  # closing twice is harmless


async def test_closing_with_reset_drops_what_was_not_taken() -> None:
    client, server = await connected()
    async with client:
        while send_now(server, b"x" * 65536):
            pass
        await close_with_reset(server)
        with pytest.raises(trio.BrokenResourceError):
            await read_all(client)


async def test_a_tls_stream_has_no_half_close_and_is_otherwise_the_same() -> None:
    inner, peer = trio.testing.memory_stream_pair()
    stream = TLSTransport(inner)  # type: ignore[arg-type] # any stream with the same methods
    await stream.send_all(b"hello")
    await stream.wait_send_all_might_not_block()
    await stream.send_eof()
    assert await peer.receive_some() == b"hello"
    await peer.send_all(b"world")
    assert await stream.receive_some(10) == b"world"
    await stream.aclose()
    assert await peer.receive_some() == b""
