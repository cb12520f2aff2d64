"""`capi start` and `capi demo`, as far as they refuse; tests/e2e runs them for real."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from capi_core.aliases import Catalog, UpstreamModels
from capi_trio.cli import main
from capi_trio.cli.run import _tell_demo, _tell_demo_json
from capi_trio.service import Running


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "127.0.0.1.example.com", "127.0.0.999", ""])  # noqa: S104
@pytest.mark.parametrize("command", ["start", "demo"])
def test_only_loopback_addresses_are_listened_on(tmp_path: Path, command: str, host: str) -> None:
    done = CliRunner().invoke(main, [command, "--host", host, "--data-dir", str(tmp_path), "--port", "0"])
    assert done.exit_code == 2
    assert "will not listen" in done.output


def test_start_without_a_usable_configuration_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["start", "--data-dir", str(tmp_path)])
    assert (done.exit_code, "no such file" in done.output) == (2, True)
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(main, ["start", "--data-dir", str(tmp_path)])
    assert (done.exit_code, "names no upstream" in done.output) == (2, True)


def test_a_data_directory_that_cannot_be_made_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["demo", "--data-dir", str(tmp_path / "file" / "below"), "--port", "0"])
    assert done.exit_code == 1
    assert "--data-dir" in done.output


RUNNING = Running(
    "127.0.0.1",
    4242,
    {"demo": "http://127.0.0.1:5/v1"},
    lambda: Catalog(upstreams=(UpstreamModels("demo", {"m": b""}),)),
)


def test_the_line_for_programs_has_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    _tell_demo_json(RUNNING, data_dir=Path("/d"))
    line = json.loads(capsys.readouterr().out)
    assert line == {
        "url": "http://127.0.0.1:4242",
        "provider_url": "http://127.0.0.1:5/v1",
        "models": ["m"],
        "api_key": None,
        "admin_key": None,
        "data_dir": "/d",
    }


def test_the_snippets_for_people_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    _tell_demo(RUNNING, data_dir=Path("/d"))
    text = capsys.readouterr().out
    python = text.partition("pip install openai):\n\n")[2]
    ast.parse("\n".join(line.removeprefix("  ") for line in python.splitlines()))
    assert "http://127.0.0.1:4242/v1/chat/completions" in text


def test_an_ipv6_address_is_bracketed_in_the_url() -> None:
    assert Running("::1", 1, {}, Catalog).url == "http://[::1]:1"
