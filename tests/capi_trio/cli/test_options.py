"""What several commands share."""

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from capi_core.config import Config, ConfigError, ConfigProblem
from capi_trio.cli.options import (
    config_option,
    config_path,
    data_dir_option,
    fail,
    json_option,
    load_config,
    refuse,
    refuse_config,
)


@click.command()
@data_dir_option
@config_option
@json_option
def show(data_dir: Path, config_file: Path | None, as_json: bool) -> None:
    click.echo(f"{data_dir} {config_path(data_dir, config_file)} {as_json}")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "/xdg/capi /xdg/capi/config.json False"),
        (["--data-dir", "/d"], "/d /d/config.json False"),
        (["--config", "/c/x.json", "--json"], "/xdg/capi /c/x.json True"),
        (["--config", "/c/x.json", "--data-dir", "/d"], "/d /c/x.json False"),
    ],
)
def test_the_configuration_is_in_the_data_directory_unless_it_is_named(arguments: list[str], wanted: str) -> None:
    result = CliRunner(env={"XDG_DATA_HOME": "/xdg"}).invoke(show, arguments)
    assert (result.exit_code, result.output) == (0, wanted + "\n")


def test_a_directory_is_no_file_and_a_file_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["--config", str(tmp_path)], ["--data-dir", str(tmp_path / "file")]):
        result = CliRunner().invoke(show, arguments)
        assert result.exit_code == 2
        assert "Invalid value" in result.stderr


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def loading(path: Path) -> None:
    assert isinstance(load_config(path), Config)
    click.echo("loaded")


def test_warnings_are_told_and_do_not_stop_anything(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"new": 1}')
    result = CliRunner().invoke(loading, [str(path)])
    assert (result.exit_code, result.stdout) == (0, "loaded\n")
    assert result.stderr.startswith(f"warning: {path}: $.new: this version does not know this member")


def test_a_configuration_that_cannot_be_used_is_refused_with_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"strict": 1, "limits": {"grace_s": -1}}')
    result = CliRunner().invoke(loading, [str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    first, *problems, last = result.stderr.splitlines()
    assert first == f"capi: {path} cannot be used:"
    assert [line.split(":")[0] for line in problems] == ["  $.limits.grace_s", "  $.strict"]
    assert last.endswith("capi config check")


@pytest.mark.parametrize(("end", "code"), [(refuse, 2), (fail, 1)])
def test_an_end_has_its_code_and_its_reason(
    capsys: pytest.CaptureFixture[str], end: Callable[[str], None], code: int
) -> None:
    with pytest.raises(click.exceptions.Exit) as raised:
        end("because")
    assert raised.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "capi: because\n" in captured.err


def test_a_refused_configuration_ends_the_process_as_refused() -> None:
    error = ConfigError((ConfigProblem("$.a", "bad"),))
    with pytest.raises(click.exceptions.Exit) as raised:
        refuse_config(Path("x"), error)
    assert raised.value.exit_code == 2
