"""The running server's control socket: how `capi keys ...` reaches it.

A Unix socket in the data directory, 0600 in 0700, and the peer must be the same user: whoever can reach it could as
well read the database. One JSON line asks, one JSON line answers. While the server runs, it alone writes; a command
finds the socket, or else takes the directory's lock and does its work itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from capi_trio.logs import describe, get_logger
from capi_trio.operations import Answer, Command, Operations, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["SOCKET_NAME", "ask", "serve_control"]

SOCKET_NAME: Final = "control.sock"
_MAX_LINE: Final = 16 * 1024 * 1024
_PEER_S: Final = 30.0  # for the other side to send or to take a line

_COMMAND: Final = msgspec.json.Decoder(Command)
_ANSWER: Final = msgspec.json.Decoder(Answer)


async def serve_control(
    directory: Path, operations: Operations, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves for ever. The caller holds the directory's lock, so a socket that lies there is a dead server's."""
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_umask = os.umask(0o177)
    try:
        with _short_path(directory) as short:
            raw.bind(short)
    finally:
        os.umask(old_umask)
    raw.listen(16)
    raw.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(raw))

    async def handler(stream: trio.SocketStream) -> None:
        async with stream:
            await _serve_one(stream, operations)

    try:
        task_status.started()
        await trio.serve_listeners(handler, [listener])
    finally:
        path.unlink(missing_ok=True)


async def _serve_one(stream: trio.SocketStream, operations: Operations) -> None:
    log = get_logger("control")
    if _peer_uid(stream.socket) not in (os.geteuid(), 0):
        log.warning("control_refused")
        return
    try:
        answer: Answer
        with trio.fail_after(_PEER_S):
            line = await _read_line(stream)
        try:
            command = _COMMAND.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            answer = Refused(f"the server does not understand this command: {error}")
        else:
            # Without a limit: a backup takes its time, and who asked for a change must learn how it ended.
            answer = await operations.run(command)
        with trio.fail_after(_PEER_S):
            await stream.send_all(msgspec.json.encode(answer) + b"\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        return
    except Exception as error:
        log.error("control_failed", **describe(error))


def ask(directory: Path, command: Command) -> Answer | None:
    """Asks the server that runs on this directory; `None` when none does. Blocks. Raises `OSError`."""
    try:
        sent = msgspec.json.encode(command) + b"\n"
    except UnicodeEncodeError:  # a command line can hold any bytes
        return Refused("the command holds bytes that are no UTF-8 text")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(_PEER_S)
    with client:
        try:
            with _short_path(directory) as path:
                client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        client.sendall(sent)
        client.settimeout(None)  # whoever gives up here would not know what was done
        line = b""
        while not line.endswith(b"\n"):
            part = client.recv(65536)
            if not part or len(line) > _MAX_LINE:
                raise OSError("the server broke off its answer; its log says why")
            line += part
    try:
        answer: Answer = _ANSWER.decode(line)
    except msgspec.DecodeError as error:  # a server of another version
        raise OSError(
            f"the server's answer cannot be understood: {error}; restart it, so that both are alike"
        ) from error
    return answer


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = await stream.receive_some(65536)
        if not part or len(line) > _MAX_LINE:
            raise trio.BrokenResourceError("no whole command")
        line += part
    return line


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """A path to the socket that fits the 108 bytes of `sockaddr_un`, however deep the directory lies."""
    if sys.platform != "linux":
        yield str(directory / SOCKET_NAME)
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def _peer_uid(peer: trio.socket.SocketType) -> int:
    if sys.platform != "linux":
        return os.geteuid()
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
