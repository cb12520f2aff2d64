"""What the commands share: where files are, and how a refusal ends the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import pytest

from capi_core.config import ConfigError, ConfigProblem
from capi_trio.cli.options import config_path, fail, load_config, refuse, refuse_config

if TYPE_CHECKING:
    from pathlib import Path


def test_the_configuration_is_in_the_data_directory_unless_named(tmp_path: Path) -> None:
    assert config_path(tmp_path, None) == tmp_path / "config.json"
    assert config_path(tmp_path, tmp_path / "x") == tmp_path / "x"


def test_a_usable_configuration_is_loaded_and_its_warnings_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"upstreams": {"a": {"kind": "demo"}}, "novelty": 1}')
    assert list(load_config(path).upstreams) == ["a"]
    assert "$.novelty" in capsys.readouterr().err


def test_an_unusable_one_ends_the_process_with_every_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"upstreams": {"a": {"kind": "x"}}, "limits": {"grace_s": -1}}')
    with pytest.raises(click.exceptions.Exit) as ended:
        load_config(path)
    assert ended.value.exit_code == 2
    told = capsys.readouterr().err
    assert "$.upstreams.a.kind" in told
    assert "$.limits.grace_s" in told


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit) as ended:
        refuse("no")
    assert ended.value.exit_code == 2
    with pytest.raises(click.exceptions.Exit) as ended:
        fail("broken")
    assert ended.value.exit_code == 1
    with pytest.raises(click.exceptions.Exit) as ended:
        refuse_config(tmp_path, ConfigError((ConfigProblem("$.a", "is wrong"),)))
    assert ended.value.exit_code == 2
    assert "$.a: is wrong" in capsys.readouterr().err
