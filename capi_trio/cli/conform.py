"""`capi conform URL`: whether a gateway's answers are what its protocols say. Works on any gateway, not only capi."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from capi_core.conformance import Severity
from capi_core.protocols.kinds import Protocol
from capi_trio.cli.options import json_option, refuse
from capi_trio.conform import GATEWAY, run_probes
from capi_trio.upstream import Secret, UpstreamClient, UpstreamTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capi_trio.conform import Result

__all__ = ["conform_command", "read_key"]

_MAX_KEY_BYTES: Final = 8192


class _Broken(msgspec.Struct):
    rule: str
    severity: str
    event: int | None
    path: str
    message: str


class _Line(msgspec.Struct):
    protocol: str
    probe: str
    violations: list[_Broken]
    unreachable: str | None


@click.command("conform")
@click.argument("url")
@click.option("--model", required=True, help="A model that the gateway serves.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice([protocol.value for protocol in Protocol]),
    help="Which to test; may be given several times. Default: all three.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with the key to send; without it none is sent.",
)
@json_option
def conform_command(url: str, model: str, protocols: tuple[str, ...], key_file: Path | None, as_json: bool) -> None:
    """Hold the gateway at URL (up to and including /v1) to the protocols' grammars.

    A few short requests are sent, which may cost money there. Exit code 1 when a rule is broken that clients rely on,
    or a request got no answer; 2 when none did.
    """
    key = None if key_file is None else read_key(key_file)
    base = url.rstrip("/")
    targets = {name: UpstreamTarget(name, base, key, anthropic=anthropic) for anthropic, name in GATEWAY.items()}
    wanted = [Protocol(name) for name in protocols] or list(Protocol)
    results = trio.run(_ask, targets, wanted, model)
    click.echo(msgspec.json.encode([_line(result) for result in results]) if as_json else _table(results))
    if all(result.unreachable is not None for result in results):
        refuse(f"{base} gave no answer")
    if any(_failed(result) for result in results):
        raise click.exceptions.Exit(1)


async def _ask(targets: dict[str, UpstreamTarget], protocols: Sequence[Protocol], model: str) -> list[Result]:
    async with UpstreamClient(targets) as client:
        return await run_probes(client, protocols, model)


def _failed(result: Result) -> bool:
    """A rule that is broken without harm to clients is no failure."""
    return result.unreachable is not None or any(one.severity is Severity.MUST for one in result.violations)


def read_key(path: Path) -> Secret:
    """The key in a file; ends the process when there is none."""
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES + 1).decode("ascii").strip()
    except (OSError, UnicodeError):
        key = ""
    if not key or len(key) > _MAX_KEY_BYTES or not key.isprintable() or " " in key:
        refuse(f"{path} does not hold a key: one line of visible ASCII characters")
    return Secret(key)


def _line(result: Result) -> _Line:
    broken = [_Broken(v.rule, v.severity.value, v.event, v.path, v.message) for v in result.violations]
    return _Line(result.protocol.value, result.probe, broken, result.unreachable)


def _table(results: list[Result]) -> str:
    lines = []
    for result in results:
        said = f"no answer: {result.unreachable}" if result.unreachable else "ok"
        if result.violations:
            said = f"{len(result.violations)} broken"
        lines.append(f"{result.protocol.value:<10} {result.probe:<14} {said}")
        for broken in result.violations:
            where = "end" if broken.event is None else f"event {broken.event}"
            path = f" {broken.path}" if broken.path else ""
            lines.append(f"    {broken.severity.value:<6} {broken.rule} ({where}{path}): {broken.message}")
    return "\n".join(lines)
