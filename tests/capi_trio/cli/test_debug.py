"""`capi debug`: facts for whoever helps, and no secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from click.testing import CliRunner

from capi_core import __version__
from capi_trio.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_debug_tells_versions_paths_and_the_state_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"upstreams": {"a": {"kind": "demo"}}}')
    done = CliRunner().invoke(main, ["debug", "--data-dir", str(tmp_path), "--json"])
    facts = json.loads(done.stdout)
    assert facts["version"] == __version__
    assert facts["config"] == "fine: 1 upstreams, 0 aliases, 0 warnings"
    assert facts["libraries"]["hypercorn"] == "0.18.0"


def test_a_broken_configuration_does_not_keep_debug_from_telling(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["debug", "--data-dir", str(tmp_path)])
    assert done.exit_code == 0
    assert "unusable" in done.stdout


def test_no_key_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPI_TEST_KEY", "sk-very-secret")
    (tmp_path / "config.json").write_text(
        '{"upstreams": {"a": {"kind": "openai", "base_url": "https://h/v1", "api_key_env": "CAPI_TEST_KEY"}}}'
    )
    done = CliRunner().invoke(main, ["debug", "--data-dir", str(tmp_path), "--json"])
    assert "very-secret" not in done.output
