"""`capi models`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
import pytest
import structlog
import trio
from click.testing import CliRunner, Result

from capi_trio.cli import main, models
from capi_trio.upstream import UpstreamClient
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply


class Run(Protocol):
    def __call__(self, config: object, *arguments: str, reply: Reply | Exception | None = None) -> Result: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command with a configuration, before an upstream that answers as given."""

    def run(config: object, *arguments: str, reply: Reply | Exception | None = None) -> Result:
        upstream = FakeUpstream(reply or fakes.json_reply({"data": [{"id": "m-1"}, {"id": "m-2"}]}))
        monkeypatch.setattr(models, "UpstreamClient", partial(UpstreamClient, transport=upstream))
        (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
        return CliRunner().invoke(main, ["models", "--data-dir", str(tmp_path), *arguments])

    yield run
    structlog.reset_defaults()


UP = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
CONFIG = {
    "upstreams": {"up": UP},
    "models": {"fast": {"upstream": "m-1"}, "off": {"upstream": "m-2", "enabled": False}},
}


def test_it_tells_each_model_and_where_it_leads(run: Run) -> None:
    result = run(CONFIG)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "MODEL  LEADS TO",
        "fast   up: m-1   (alias)",
        "m-1    up: m-1",
        "m-2    up: m-2",
    ]


def test_programs_get_json(run: Run) -> None:
    result = run(CONFIG, "--json")
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout) == [
        {"model": "fast", "upstream": "up", "upstream_model": "m-1", "alias": True},
        {"model": "m-1", "upstream": "up", "upstream_model": "m-1", "alias": False},
        {"model": "m-2", "upstream": "up", "upstream_model": "m-2", "alias": False},
    ]


def test_ctrl_c_while_an_upstream_is_asked_shows_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a nursery it comes as a group of one."""
    for error in (KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])):

        async def interrupted(*_: object, raised: BaseException = error) -> None:
            await trio.lowlevel.checkpoint()
            raise raised

        monkeypatch.setattr(models, "_ask", interrupted)
        result = run(CONFIG)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Aborted!" in result.stderr
        assert "Traceback" not in result.output


def test_a_strict_gateway_has_its_aliases_only(run: Run) -> None:
    assert [row["model"] for row in msgspec.json.decode(run({**CONFIG, "strict": True}, "--json").stdout)] == ["fast"]


def test_an_upstream_that_cannot_be_asked_is_told(run: Run) -> None:
    """Its aliases can still be called."""
    result = run(CONFIG, reply=httpx.ConnectError("x"))
    assert result.exit_code == 1, "there is no other"
    assert "fast   up: m-1   (alias)" in result.stdout
    assert "m-2" not in result.stdout
    assert "model_list_unavailable" in result.stderr
    assert "unreachable: ConnectError" in result.stderr


def test_one_upstream_that_answers_is_enough(run: Run) -> None:
    listed = {**UP, "models": ["m-9"]}
    result = run({"upstreams": {"up": UP, "listed": listed}}, reply=httpx.ConnectError("x"))
    assert (result.exit_code, "m-9" in result.stdout) == (0, True)


def test_nothing_to_call_is_told_with_a_way_out(run: Run) -> None:
    result = run({})
    assert result.exit_code == 0
    assert result.stdout.startswith("No model can be called. Add an upstream")
    assert run({}, "--json").stdout == "[]\n"


def test_a_demo_upstream_cannot_be_asked_from_here(run: Run) -> None:
    result = run({"upstreams": {"demo": {"kind": "demo"}}})
    assert (result.exit_code, result.stdout) == (2, "")
    assert "GET /v1/models" in result.stderr


def test_copilots_seats_are_not_asked_from_here_and_the_others_are(run: Run) -> None:
    result = run({"upstreams": {"gh": {"kind": "copilot"}, "up": UP}})
    assert result.exit_code == 0
    assert "gh is not asked" in result.stderr
    assert "m-1" in result.stdout


def test_a_missing_key_is_refused(run: Run) -> None:
    result = run({"upstreams": {"up": {**UP, "api_key_env": "CAPI_TEST_NO_SUCH_KEY"}}})
    assert (result.exit_code, result.stdout) == (2, "")
    assert "CAPI_TEST_NO_SUCH_KEY is not set" in result.stderr


def test_a_bad_configuration_is_refused(run: Run) -> None:
    result = run({"strict": 1})
    assert result.exit_code == 2
    assert "$.strict" in result.stderr
