"""`capi config`: what it says, and with which exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from capi_trio.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(tmp_path: Path, text: str, *arguments: str) -> Result:
    (tmp_path / "config.json").write_text(text)
    return CliRunner().invoke(main, ["config", *arguments, "--data-dir", str(tmp_path)])


def test_check_says_that_all_is_fine(tmp_path: Path) -> None:
    done = run(tmp_path, '{"upstreams": {"a": {"kind": "openai", "base_url": "http://127.0.0.1/v1"}}}', "check")
    assert (done.exit_code, "is fine: 1 upstreams, 0 aliases" in done.output) == (0, True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "$"),
        ('{"upstreams": {"a": {"kind": "openai"}}}', "$.upstreams.a.base_url"),
        (
            '{"upstreams": {"a": {"kind": "openai", "base_url": "https://h/v1", "api_key_env": "CAPI_TEST_NO_KEY"}}}',
            "CAPI_TEST_NO_KEY is not set",
        ),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    done = run(tmp_path, text, "check")
    assert done.exit_code == 2
    assert told in done.output


def test_show_prints_the_defaults_too(tmp_path: Path) -> None:
    done = run(tmp_path, '{"upstreams": {"a": {"kind": "demo"}}}', "show")
    assert json.loads(done.output)["limits"]["grace_s"] == 30.0


def test_schema_is_json_schema() -> None:
    done = CliRunner().invoke(main, ["config", "schema"])
    assert done.exit_code == 0
    assert "UpstreamConfig" in json.loads(done.output)["$defs"]
