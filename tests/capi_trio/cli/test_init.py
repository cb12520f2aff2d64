"""The command as a whole."""

import pytest
from click.testing import CliRunner

from capi_core import __version__
from capi_trio.cli import main


def test_it_says_its_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"capi, version {__version__}\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_it_tells_its_commands(flag: str) -> None:
    result = CliRunner().invoke(main, [flag])
    assert result.exit_code == 0
    commands = {line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.strip()}
    assert {"start", "demo", "models", "config", "debug"} <= commands


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_tells_what_it_does(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert main.commands[command].get_short_help_str()


def test_an_unknown_option_is_refused_not_guessed() -> None:
    """A prefix of an option is not the option: a mistyped safety switch must not be taken for another."""
    assert CliRunner().invoke(main, ["start", "--hos", "127.0.0.1"]).exit_code == 2
    assert CliRunner().invoke(main, ["demo", "--js"]).exit_code == 2


def test_a_command_that_is_none_is_a_fault_of_usage() -> None:
    result = CliRunner().invoke(main, ["strat"])
    assert result.exit_code == 2
    assert "No such command 'strat'" in result.stderr
