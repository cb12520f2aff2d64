"""`capi translate`."""

import json

import msgspec
import pytest
from click.testing import CliRunner, Result

from capi_core.conformance import checker_for
from capi_core.protocols.kinds import Protocol
from capi_trio.cli import main
from tests.support.streams import answer_document, answer_stream

REQUEST = json.dumps(
    {"model": "m-1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "seed": 7}
).encode()


def run(data: bytes, source: str, target: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["translate", "--from", source, "--to", target, *arguments], input=data)


def test_a_request_is_translated_and_its_losses_told() -> None:
    result = run(REQUEST, "chat", "messages")
    assert result.exit_code == 0
    document = msgspec.json.decode(result.stdout)
    assert (document["model"], document["max_tokens"]) == ("m-1", 50)
    *lines, last = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["dropped      $.seed"]
    assert last == "fidelity: lossy; n=1"


def test_under_another_name_for_the_model() -> None:
    assert msgspec.json.decode(run(REQUEST, "chat", "responses", "--model", "up").stdout)["model"] == "up"


def test_programs_get_one_document() -> None:
    result = run(REQUEST, "chat", "messages", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    report = msgspec.json.decode(result.stdout)
    assert msgspec.json.decode(report["result"])["max_tokens"] == 50
    assert report["fidelity"] == "lossy; n=1"
    (entry,) = report["ledger"]
    assert (entry["change"], entry["path"], bool(entry["note"])) == ("dropped", "$.seed", True)


@pytest.mark.parametrize("source", Protocol)
@pytest.mark.parametrize("target", Protocol)
def test_an_answer(source: Protocol, target: Protocol) -> None:
    result = run(answer_document(source), source.value, target.value, "--what", "answer")
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout)["model"] == "model"
    assert "fidelity: exact" in result.stderr
    named = run(answer_document(source), source.value, target.value, "--what", "answer", "--model", "own")
    assert msgspec.json.decode(named.stdout)["model"] == "own"


@pytest.mark.parametrize("source", Protocol)
@pytest.mark.parametrize("target", Protocol)
def test_a_stream(source: Protocol, target: Protocol) -> None:
    result = run(answer_stream(source), source.value, target.value, "--what", "stream")
    assert result.exit_code == 0
    checker = checker_for(target)
    checker.receive_data(result.stdout_bytes)
    checker.finish()
    assert checker.violations == ()
    assert result.stdout_bytes.endswith(b"\n\n")
    assert not result.stdout_bytes.endswith(b"\n\n\n"), "not a byte more"


def test_a_long_stream() -> None:
    """Longer than is read at a time."""
    stream = answer_stream(Protocol.CHAT, words=["x" * 50_000] * 3)
    result = run(stream, "chat", "messages", "--what", "stream")
    assert (result.exit_code, result.stdout.count("x" * 50_000)) == (0, 3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (answer_stream(Protocol.CHAT)[:600], "upstream_truncated"),
        (b"data: <html>\n\n" + answer_stream(Protocol.CHAT), "upstream_garbage"),
        (b"", "upstream_truncated"),
    ],
)
def test_a_stream_that_is_none_is_refused(data: bytes, code: str) -> None:
    result = run(data, "chat", "messages", "--what", "stream")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"capi: {code}: " in result.stderr


def test_an_answer_that_is_none_is_refused() -> None:
    result = run(b"<html>", "chat", "messages", "--what", "answer")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "upstream_garbage" in result.stderr


def test_a_request_that_is_none_is_refused_with_its_place() -> None:
    result = run(b'{"model":"m","messages":5}', "chat", "messages")
    assert result.exit_code == 2
    assert "(at messages)" in result.stderr
    assert run(b"", "chat", "messages").exit_code == 2


def test_a_protocol_that_is_none_is_a_fault_of_usage() -> None:
    assert run(REQUEST, "chat", "soap").exit_code == 2
