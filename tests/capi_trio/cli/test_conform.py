"""`capi conform`."""

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
from capi_trio.cli import conform, main
from capi_trio.upstream import UpstreamClient
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply
from tests.support.streams import answer_stream

URL = "http://127.0.0.1:9/v1"
STREAM = Reply([answer_stream(kinds.Protocol.CHAT)])
ERROR = fakes.json_reply({"error": {"message": "no such model", "type": "x", "param": None, "code": "y"}}, 404)
GOOD = [STREAM, STREAM, STREAM, ERROR]


class Run(Protocol):
    def __call__(self, *arguments: str, replies: list[Reply | Exception]) -> tuple[Result, FakeUpstream]: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command before a gateway that answers as given."""

    def run(*arguments: str, replies: list[Reply | Exception]) -> tuple[Result, FakeUpstream]:
        gateway = FakeUpstream(*replies)
        monkeypatch.setattr(conform, "UpstreamClient", partial(UpstreamClient, transport=gateway))
        return CliRunner().invoke(main, ["conform", URL, "--model", "m-1", *arguments]), gateway

    yield run
    structlog.reset_defaults()


CHAT = ("--protocol", "chat")


def test_a_gateway_without_a_fault_passes(run: Run) -> None:
    result, gateway = run(*CHAT, replies=[*GOOD])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "chat       text           ok",
        "chat       usage          ok",
        "chat       tool           ok",
        "chat       unknown model  ok",
    ]
    assert {asked.url for asked in gateway.asked} == {f"{URL}/chat/completions"}
    assert all(asked.header(b"authorization") == [] for asked in gateway.asked)


def test_without_a_choice_all_protocols_are_tested(run: Run) -> None:
    result, gateway = run(replies=[*GOOD])
    assert result.exit_code == 1, "one stream cannot be three protocols'"
    assert {line.split()[0] for line in result.stdout.splitlines() if line[0] != " "} == {
        "chat",
        "responses",
        "messages",
    }
    assert len(gateway.asked) == 10


def test_what_is_broken_is_told_where(run: Run) -> None:
    events = answer_stream(kinds.Protocol.CHAT).split(b"\n\n")
    cut = b"\n\n".join([*events[:4], b""])
    result, _ = run(*CHAT, replies=[Reply([cut]), *GOOD[1:]])
    assert result.exit_code == 1
    assert result.stdout.startswith("chat       text           2 broken\n    must   chat-unfinished (end")
    assert "    should chat-done (end): " in result.stdout


def test_what_clients_tolerate_is_told_and_is_no_failure(run: Run) -> None:
    """A chunk's `object` is of no interest to a client."""
    odd = Reply([answer_stream(kinds.Protocol.CHAT).replace(b'"object": "chat.completion.chunk"', b'"object": "x"', 1)])
    result, _ = run(*CHAT, replies=[odd, *GOOD[1:]])
    assert result.exit_code == 0
    assert "chat       text           1 broken\n    should chat-object (event 0" in result.stdout


def test_programs_get_json(run: Run) -> None:
    result, _ = run(*CHAT, "--json", replies=[fakes.json_reply({}, 500), httpx.ConnectError("x"), *GOOD[2:]])
    assert result.exit_code == 1
    lines = msgspec.json.decode(result.stdout)
    assert [line["probe"] for line in lines] == ["text", "usage", "tool", "unknown model"]
    assert lines[0] == {
        "protocol": "chat",
        "probe": "text",
        "violations": [
            {
                "rule": "probe-status",
                "severity": "must",
                "event": None,
                "path": "",
                "message": "a legal request is answered with 200, not with 500",
            }
        ],
        "unreachable": None,
    }
    assert (lines[1]["violations"], lines[1]["unreachable"]) == ([], "ConnectError")


def test_one_request_without_an_answer_is_a_failure(run: Run) -> None:
    result, _ = run(*CHAT, replies=[httpx.ReadError("x"), *GOOD[1:]])
    assert result.exit_code == 1
    assert "chat       text           no answer: ReadError\nchat       usage          ok" in result.stdout


def test_a_gateway_that_is_not_there_is_told(run: Run) -> None:
    result, _ = run(*CHAT, replies=[httpx.ConnectError("x")])
    assert result.exit_code == 2
    assert f"{URL} gave no answer" in result.stderr


def test_the_key_is_sent_as_each_protocols_clients_do(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-secret\n")
    result, gateway = run("--key-file", str(file), "--protocol", "chat", "--protocol", "messages", replies=[*GOOD])
    credentials = {
        (asked.url.rpartition("/")[2], *asked.header(b"authorization"), *asked.header(b"x-api-key"))
        for asked in gateway.asked
    }
    assert credentials == {("completions", b"Bearer sk-secret"), ("messages", b"sk-secret")}
    assert "sk-secret" not in result.output


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"two\nlines", b"\xff", "\u00e9".encode(), b"x" * 9000])
def test_a_file_without_a_key_is_refused(run: Run, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    result, gateway = run("--key-file", str(file), replies=[STREAM])
    assert (result.exit_code, gateway.asked) == (2, [])
    assert "does not hold a key" in result.stderr


def test_a_key_that_cannot_be_read_is_refused(run: Run, tmp_path: Path) -> None:
    result, _ = run("--key-file", str(tmp_path / "gone"), replies=[STREAM])
    assert result.exit_code == 2


def test_a_trailing_slash_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeUpstream(*GOOD)
    monkeypatch.setattr(conform, "UpstreamClient", partial(UpstreamClient, transport=gateway))
    result = CliRunner().invoke(main, ["conform", f"{URL}/", "--model", "m", *CHAT])
    assert (result.exit_code, gateway.asked[0].url) == (0, f"{URL}/chat/completions")


def test_an_address_that_is_none_is_told() -> None:
    result = CliRunner().invoke(main, ["conform", "no-scheme", "--model", "m", *CHAT])
    assert result.exit_code == 2
    assert "no answer: UnsupportedProtocol" in result.stdout
