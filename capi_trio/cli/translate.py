"""`capi translate`: one request, answer or stream from one protocol into another, with what was lost on the way.

It is what the gateway itself does, without a gateway: for people who want to know what an upstream will get.
"""

from __future__ import annotations

import sys
from typing import Final

import click
import msgspec

from capi_core.errors import ProtocolError
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.target import Target
from capi_core.tool_names import ToolNames
from capi_core.translation import Translation
from capi_trio.cli.options import refuse

__all__ = ["translate_command"]

_MAX_EVENT_BYTES: Final = 64 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024
_PROTOCOLS: Final = click.Choice([protocol.value for protocol in Protocol])


class _Line(msgspec.Struct):
    change: str
    path: str
    note: str


class _Report(msgspec.Struct):
    result: str
    fidelity: str
    ledger: list[_Line]


@click.command("translate")
@click.option("--from", "source", type=_PROTOCOLS, required=True, help="The protocol of what is read.")
@click.option("--to", "target", type=_PROTOCOLS, required=True, help="The protocol to write.")
@click.option(
    "--what",
    type=click.Choice(["request", "answer", "stream"]),
    default="request",
    show_default=True,
    help="A client's request, an upstream's whole answer, or its event stream.",
)
@click.option("--model", help="The model's name in the result.  [default: a request's own, else `model`]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with the result and the ledger.")
def translate_command(source: str, target: str, what: str, model: str | None, as_json: bool) -> None:
    """Translate standard input to standard output; what is not exact goes to standard error."""
    ledger = Ledger()
    data = sys.stdin.buffer.read()
    try:
        if what == "request":
            result = _request(data, Protocol(source), Protocol(target), model, ledger)
        else:
            translation = _translation(Protocol(source), Protocol(target), model or "model", ledger)
            result = _stream(data, translation) if what == "stream" else translation.whole(data).body
    except ProtocolError as error:
        where = "" if error.param is None else f" (at {error.param})"
        refuse(f"{error.code}: {error}{where}")
    if as_json:
        lines = [_Line(entry.change.value, entry.path, entry.note) for entry in ledger]
        report = _Report(result.decode("utf-8", "replace"), ledger.header(), lines)
        click.echo(msgspec.json.encode(report))
        return
    click.echo(result, nl=what != "stream")
    for entry in ledger:
        click.echo(f"{entry.change.value:<12} {entry.path}: {entry.note}", err=True)
    click.echo(f"fidelity: {ledger.header()}", err=True)


def _request(data: bytes, source: Protocol, target: Protocol, model: str | None, ledger: Ledger) -> bytes:
    request = CODECS[source].read(data)
    conversation = CODECS[source].decode_request(request.document, ledger)
    return CODECS[target].encode_request(conversation, Target(model or request.model), ledger).body


def _translation(source: Protocol, target: Protocol, model: str, ledger: Ledger) -> Translation:
    envelope = Envelope(request_id="translated", model=model)
    return Translation(CODECS[source], CODECS[target], envelope, ledger, ToolNames())


def _stream(data: bytes, translation: Translation) -> bytes:
    """Raises `ProtocolError` when the stream is cut or is not in its protocol."""
    machine = translation.stream(max_event_bytes=_MAX_EVENT_BYTES)
    out = []
    for at in range(0, len(data), _READ_BYTES):
        out.append(machine.receive_data(data[at : at + _READ_BYTES]))
        if machine.failure is not None:
            raise machine.failure
    out.append(machine.finish())
    if machine.failure is not None:
        raise machine.failure
    return b"".join(out)
