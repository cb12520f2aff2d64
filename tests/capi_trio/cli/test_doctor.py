"""`capi doctor`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
import pytest
import structlog
from click.testing import CliRunner, Result

from capi_core.protocols import kinds
from capi_trio.cli import doctor, main
from capi_trio.client_setup import Client
from capi_trio.upstream import UpstreamClient
from tests.support.answers import model_list, refusal, streamed
from tests.support.fakes import FakeUpstream, Reply

CHAT = kinds.Protocol.CHAT
STREAM = Reply([streamed(CHAT)])
LIST, WRONG = model_list("m-1"), refusal(CHAT, 401, "invalid_api_key")
GOOD: list[Reply | Exception] = [LIST, WRONG, STREAM]
"""From then on everything is answered with the stream: no tool is called, nothing can be left."""
PROBES = ["auth", "models", "stream", "tools", "thinking", "abort", "count_tokens", "keepalive", "tokens"]


class Run(Protocol):
    def __call__(self, *arguments: str, replies: list[Reply | Exception]) -> tuple[Result, FakeUpstream]: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command before a gateway that answers as given."""
    monkeypatch.delenv("CAPI_API_KEY", raising=False)

    def run(*arguments: str, replies: list[Reply | Exception]) -> tuple[Result, FakeUpstream]:
        gateway = FakeUpstream(*replies)
        monkeypatch.setattr(doctor, "UpstreamClient", partial(UpstreamClient, transport=gateway))
        return CliRunner().invoke(main, ["doctor", *arguments]), gateway

    yield run
    structlog.reset_defaults()


OPENCODE = ("opencode", "--model", "m-1")


def test_each_probe_has_a_line_and_its_advice_another(run: Run) -> None:
    result, gateway = run(*OPENCODE, replies=[*GOOD])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if not line.lstrip().startswith("->")]
    assert [line.split()[:2] for line in lines] == [["chat", probe] for probe in PROBES]
    assert lines[0] == "chat       auth          ok       the key is accepted, a wrong one is refused with 401"
    assert lines[6] == "chat       count_tokens  skipped  this client does not have tokens counted"
    assert "chat       tools         warn     first event 0." in result.stdout
    assert "\n                          -> agents need a model that calls tools" in result.stdout
    assert {asked.url.rpartition("/v1/")[0] for asked in gateway.asked} == {"http://127.0.0.1:4141"}


@pytest.mark.parametrize("client", Client)
def test_every_client_can_be_seen_to(run: Run, client: Client) -> None:
    result, _ = run(
        client.value, "--model", "m-1", "--url", "http://gateway.test/v1/", replies=[httpx.ConnectError("x")]
    )
    assert result.exit_code == 1
    assert "auth          fail     no whole answer: ConnectError" in result.stdout
    voices = 3 if client is Client.ENV else 1
    assert result.stdout.count("start the gateway, or name its address with --url") == voices


def test_programs_get_json(run: Run) -> None:
    result, _ = run(*OPENCODE, "--json", replies=[*GOOD])
    assert result.exit_code == 0
    lines = {line["probe"]: line for line in msgspec.json.decode(result.stdout)}
    assert list(lines) == PROBES
    stream = lines["stream"]
    assert stream.pop("first_event_ms") >= 0
    assert stream.pop("events") > 2
    assert stream.pop("seen").startswith("first event 0.")
    assert stream == {
        "protocol": "chat",
        "probe": "stream",
        "verdict": "ok",
        "advice": None,
        "status": 200,
        "request_id": None,
        "tokens": {"uncached_input": 5, "cache_read": None, "cache_write": None, "output": 4, "reasoning": None},
        "rules": [],
    }
    assert lines["auth"]["tokens"] is None


def test_a_failure_is_exit_code_1_and_told_in_json_too(run: Run) -> None:
    cut = Reply([streamed(CHAT)[:200]])
    result, _ = run(*OPENCODE, "--json", replies=[LIST, WRONG, cut])
    assert result.exit_code == 1
    stream = msgspec.json.decode(result.stdout)[2]
    assert (stream["verdict"], "chat-unfinished" in stream["rules"]) == ("fail", True)
    assert "capi conform" in stream["advice"]


def test_nothing_of_an_answer_is_printed(run: Run) -> None:
    refused: list[Reply | Exception] = [LIST, WRONG, refusal(CHAT, 500, "SECRET code")]
    for replies in ([*GOOD], refused):
        for form in ((), ("--json",)):
            output = run(*OPENCODE, *form, replies=replies)[0].output
            assert "Hello" not in output
            assert "SECRET" not in output


def test_the_key_comes_from_the_file_or_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(*arguments: str) -> bytes:
        result, gateway = run(*OPENCODE, *arguments, replies=[*GOOD])
        assert "sk-cap" not in result.output
        return gateway.asked[0].header(b"authorization")[0]

    file = tmp_path / "key"
    file.write_text("sk-cap-file\n")
    assert sent() == b"Bearer none"
    assert sent("--key-file", str(file)) == b"Bearer sk-cap-file"
    monkeypatch.setenv("CAPI_API_KEY", "sk-cap-env\n")
    assert sent() == b"Bearer sk-cap-env"
    assert sent("--key-file", str(file)) == b"Bearer sk-cap-file", "what was named wins"


@pytest.mark.parametrize("key", ["two words", "h\u00e9", "a\nb", "a\x07"])
def test_what_is_no_key_is_refused(run: Run, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPI_API_KEY", key)
    result, gateway = run(*OPENCODE, replies=[*GOOD])
    assert (result.exit_code, gateway.asked) == (2, [])
    assert "$CAPI_API_KEY does not hold a key" in result.stderr
    assert key not in result.output


@pytest.mark.parametrize(
    "arguments",
    [("opencode",), ("nothing", "--model", "m"), ("--model", "m"), (*OPENCODE, "--key-file", "/nowhere/key")],
)
def test_a_command_that_says_too_little_is_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    result, gateway = run(*arguments, replies=[*GOOD])
    assert (result.exit_code, gateway.asked) == (2, [])


def test_an_address_that_is_none_is_a_failure() -> None:
    result = CliRunner().invoke(main, ["doctor", *OPENCODE, "--url", "no-scheme"])
    assert result.exit_code == 1
    assert "no whole answer: UnsupportedProtocol" in result.stdout
