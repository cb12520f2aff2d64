"""`capi config`."""

import json
from pathlib import Path
from typing import Final

import msgspec
import pytest
from click.testing import CliRunner, Result

from capi_core.config import Config, parse
from capi_trio.cli import main
from capi_trio.storage.audit_log import read_lines

KEY: Final = "sk-upstream-key"


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env).invoke(main, ["config", *arguments])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    upstream = {"kind": "openai", "base_url": "https://up.test/v1", "api_key_env": "CAPI_TEST_KEY"}
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode({"upstreams": {"up": upstream}, "models": {"fast": {"upstream": "m"}}}))
    return path


def test_a_good_configuration_is_fine(config_file: Path) -> None:
    result = run("check", "--data-dir", str(config_file.parent), env={"CAPI_TEST_KEY": KEY})
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{config_file} is fine: 1 upstreams, 1 aliases\n"


def test_a_key_that_is_missing_is_found_before_anything_runs(config_file: Path) -> None:
    result = run("check", "--config", str(config_file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "$.upstreams.up.api_key_env: the environment variable CAPI_TEST_KEY is not set" in result.stderr


def test_a_key_file_is_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    upstream = {"kind": "openai", "base_url": "https://up.test/v1", "api_key_file": "key.txt"}
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode({"upstreams": {"up": upstream}}))
    (tmp_path / "key.txt").write_text(KEY)
    (tmp_path / "key.txt").chmod(0o640)
    result = run("check", "--config", str(path))
    assert result.exit_code == 2
    assert f"chmod 600 {tmp_path}/key.txt" in result.stderr
    (tmp_path / "key.txt").chmod(0o600)
    assert run("check", "--config", str(path)).exit_code == 0


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_bad_configuration_is_refused_with_every_problem(tmp_path: Path, command: str) -> None:
    (tmp_path / "config.json").write_text('{"strict": 1, "version": 2}')
    result = run(command, "--data-dir", str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "$.strict" in result.stderr
    assert "$.version" in result.stderr


@pytest.mark.parametrize("command", ["check", "show"])
def test_no_configuration_is_refused(tmp_path: Path, command: str) -> None:
    result = run(command, "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "there is no such file; docs/configuration.md shows one" in result.stderr


def test_what_is_shown_is_the_configuration_with_its_defaults_and_no_secret(config_file: Path) -> None:
    result = run("show", "--config", str(config_file), env={"CAPI_TEST_KEY": KEY})
    assert result.exit_code == 0
    shown, warnings = parse(result.stdout.encode())
    assert shown == parse(config_file.read_bytes())[0]
    assert warnings == ()
    assert '"grace_s": 30.0' in result.stdout
    assert KEY not in result.output


def test_the_schema_is_json_schema() -> None:
    result = run("schema")
    assert result.exit_code == 0
    schema = msgspec.json.decode(result.stdout, type=dict[str, object])
    assert "$defs" in schema
    for member in msgspec.structs.fields(Config):
        assert f'"{member.name}"' in result.stdout


def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Result:
    """`capi config edit` with a sed program for an editor."""
    monkeypatch.setenv("VISUAL", f"sed -i '{program}'")
    return CliRunner().invoke(main, ["config", "edit", "--data-dir", str(tmp_path / "data")])


def test_edit_takes_the_place_of_the_file_as_a_whole_and_is_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = edit(tmp_path, monkeypatch, 's/"strict": false/"strict": true/')
    assert (done.exit_code, "was changed" in done.output) == (0, True), done.output
    path = tmp_path / "data" / "config.json"
    assert json.loads(path.read_text())["strict"] is True
    assert path.stat().st_mode & 0o777 == 0o600
    (line,) = read_lines(tmp_path / "data")
    row = json.loads(line)
    assert (row["action"], row["before"]["strict"], row["after"]["strict"]) == ("config.edit", False, True)


def test_a_bad_edit_changes_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(tmp_path, monkeypatch, "s/x/x/")
    before = (tmp_path / "data" / "config.json").read_bytes()
    done = edit(tmp_path, monkeypatch, 's/"strict": false/"strict": 7/')
    assert (done.exit_code, "$.strict" in done.output) == (2, True)
    assert (tmp_path / "data" / "config.json").read_bytes() == before
    assert list(read_lines(tmp_path / "data")) == []


def test_an_edit_that_changes_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing was changed" in edit(tmp_path, monkeypatch, "s/x/x/").output
