"""`capi models`: which names lead where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from capi_trio.cli import main

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """{
    "upstreams": {"lab": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "models": ["big", "small"]}},
    "models": {"fast": {"upstream": "small"}, "off": {"upstream": "big", "enabled": false}}
}"""


def run(tmp_path: Path, text: str, *arguments: str) -> Result:
    (tmp_path / "config.json").write_text(text)
    return CliRunner().invoke(main, ["models", "--data-dir", str(tmp_path), *arguments])


def test_aliases_come_first_and_disabled_ones_not_at_all(tmp_path: Path) -> None:
    rows = json.loads(run(tmp_path, CONFIG, "--json").stdout)
    assert [(row["model"], row["upstream_model"], row["alias"]) for row in rows] == [
        ("fast", "small", True),
        ("big", "big", False),
        ("small", "small", False),
    ]


def test_the_table_is_for_people(tmp_path: Path) -> None:
    lines = run(tmp_path, CONFIG).stdout.splitlines()
    assert lines[0].split() == ["MODEL", "LEADS", "TO"]
    assert lines[1].split() == ["fast", "lab:", "small", "(alias)"]


def test_nothing_to_call_says_what_to_do(tmp_path: Path) -> None:
    assert "Add an upstream" in run(tmp_path, "{}").stdout


def test_an_upstream_that_does_not_answer_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, '{"upstreams": {"lab": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}}}')
    assert done.exit_code == 0
    assert "model_list_unavailable" in done.stderr


def test_the_demo_provider_and_missing_keys_are_refused_with_the_reason(tmp_path: Path) -> None:
    demo = run(tmp_path, '{"upstreams": {"d": {"kind": "demo"}}}')
    assert (demo.exit_code, "capi demo" in demo.output) == (2, True)
    keyless = '{"upstreams": {"a": {"kind": "openai", "base_url": "https://h/v1", "api_key_file": "missing"}}}'
    assert run(tmp_path, keyless).exit_code == 2
