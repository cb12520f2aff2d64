"""The command line as a whole: every command is there, says what it is for, and has its version."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from capi_core import __version__
from capi_trio.cli import main


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"capi, version {__version__}\n"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert main.commands[name].get_short_help_str()


def test_an_unknown_option_is_refused_not_guessed() -> None:
    """A prefix of an option is not the option: a mistyped safety switch must not be taken for another."""
    assert CliRunner().invoke(main, ["start", "--hos", "127.0.0.1"]).exit_code == 2
    assert CliRunner().invoke(main, ["demo", "--js"]).exit_code == 2
