"""`capi doctor CLIENT`: whether a client can work with the running gateway, and what to do where it cannot."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from capi_core.usage import Usage
from capi_trio.cli.conform import read_key
from capi_trio.cli.options import json_option, refuse
from capi_trio.client_requests import VOICES
from capi_trio.client_setup import KEY_VARIABLE, Client
from capi_trio.doctor import GATEWAY, Verdict, examine
from capi_trio.upstream import Secret, UpstreamClient, UpstreamTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_trio.client_requests import Voice
    from capi_trio.doctor import Finding

__all__ = ["doctor_command"]

_COLOURS: Final = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.SKIPPED: "bright_black"}


class _Tokens(msgspec.Struct):
    uncached_input: int | None
    cache_read: int | None
    cache_write: int | None
    output: int | None
    reasoning: int | None


class _Line(msgspec.Struct):
    protocol: str
    probe: str
    verdict: str
    seen: str
    advice: str | None
    status: int | None
    request_id: str | None
    first_event_ms: float | None
    events: int | None
    tokens: _Tokens | None
    rules: list[str]


@click.command("doctor")
@click.argument("client", type=click.Choice([client.value for client in Client]))
@click.option("--model", required=True, help="The model or alias that the client uses.")
@click.option("--url", default="http://127.0.0.1:4141", show_default=True, help="Where the gateway is, without /v1.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help=f"File with the client's key.  [default: the key in ${KEY_VARIABLE}, if it is set]",
)
@json_option
def doctor_command(client: str, model: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Ask the running gateway what CLIENT would ask it: its key, model, streams, tools, reasoning, leaving, and more.

    About ten short requests for each protocol that the client speaks, which may cost money. Exit code 1 when one of
    them failed.
    """
    key = _environment_key() if key_file is None else read_key(key_file)
    base = url.rstrip("/").removesuffix("/v1")
    lines: list[_Line] = []
    failed = False

    def tell(voice: Voice, finding: Finding) -> None:
        nonlocal failed
        failed |= finding.verdict is Verdict.FAIL
        if as_json:
            lines.append(_line(voice, finding))
        else:
            click.echo(_text(voice, finding))

    trio.run(_examine, UpstreamTarget(GATEWAY, base), VOICES[Client(client)], key, model, tell)
    if as_json:
        click.echo(msgspec.json.encode(lines))
    if failed:
        raise click.exceptions.Exit(1)


async def _examine(
    target: UpstreamTarget,
    voices: tuple[Voice, ...],
    key: Secret | None,
    model: str,
    tell: Callable[[Voice, Finding], None],
) -> None:
    async with UpstreamClient({GATEWAY: target}) as client:
        for voice in voices:
            await examine(client, voice, key, model, partial(tell, voice))


def _environment_key() -> Secret | None:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        refuse(f"${KEY_VARIABLE} does not hold a key: one word of visible ASCII characters")
    return Secret(key) if key else None


def _text(voice: Voice, finding: Finding) -> str:
    verdict = click.style(f"{finding.verdict.value:<8}", fg=_COLOURS[finding.verdict])
    line = f"{voice.protocol.value:<10} {finding.probe.value:<13} {verdict} {finding.seen}"
    return line if finding.advice is None else f"{line}\n{'':<25} -> {finding.advice}"


def _line(voice: Voice, finding: Finding) -> _Line:
    heard = finding.heard
    usage = None if heard is None else heard.answer.usage
    return _Line(
        voice.protocol.value,
        finding.probe.value,
        finding.verdict.value,
        finding.seen,
        finding.advice,
        None if heard is None else heard.status,
        None if heard is None else heard.request_id,
        None if heard is None or heard.first_event_s is None else round(heard.first_event_s * 1000, 1),
        None if heard is None else heard.events,
        None if usage is None else _tokens(usage),
        [] if heard is None else [*heard.broken, *heard.odd],
    )


def _tokens(usage: Usage) -> _Tokens:
    return _Tokens(usage.uncached_input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)
