"""What the tests of the commands that change something share: how one is run, with or without a terminal."""

from __future__ import annotations

import io
import sys
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
import pytest
from attrs import field, frozen
from click.testing import CliRunner, Result
from typing_extensions import override

from capi_trio.cli import main
from capi_trio.keyring import KeyView

__all__ = ["Capi"]

_NAMES: Final = count()
_DATABASE: Final = "CAPI_DATABASE"  # whoever runs the tests may have one, which is not for them


class _Terminal(io.StringIO):
    """A standard output that somebody looks at."""

    @override
    def isatty(self) -> bool:
        return True


@frozen
class Capi:
    """The command line over one data directory, which need not exist yet."""

    directory: Path
    _files: Path = field(init=False)

    @_files.default
    def _beside(self) -> Path:
        return self.directory.parent

    def run(self, *arguments: str) -> Result:
        """Runs a command whose output is no terminal."""
        return CliRunner(env={_DATABASE: None}).invoke(main, [*arguments, "--data-dir", str(self.directory)])

    def output(self, *arguments: str) -> str:
        """What a command prints that must succeed."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def refused(self, *arguments: str, code: int = 2) -> str:
        """Why a command is refused (exit code 2) or fails (1); it prints nothing else, and no key."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.startswith("capi: ")
        assert "sk-cap-" not in result.stderr
        return result.stderr.removeprefix("capi: ").rstrip("\n")

    def on_terminal(self, *arguments: str) -> str:
        """What a command that must succeed prints on a terminal."""
        terminal = _Terminal()
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv(_DATABASE, raising=False)
            patched.setattr(sys, "stdout", terminal)
            code = main.main([*arguments, "--data-dir", str(self.directory)], "capi", standalone_mode=False)
        assert not code
        return terminal.getvalue()

    def new_key(self, *arguments: str) -> tuple[KeyView, str]:
        """Runs a command that makes a key; returns how it is shown, and its text."""
        path = self._files / f"key-{next(_NAMES)}.txt"
        shown = self.output(*arguments, "--key-file", str(path), "--json")
        return msgspec.json.decode(shown, type=KeyView), path.read_text().strip()

    def all_keys(self) -> list[KeyView]:
        """All keys, newest first."""
        return msgspec.json.decode(self.output("keys", "list", "--json"), type=list[KeyView])

    def audited(self) -> list[str]:
        """The actions of the audit log."""
        lines = self.output("audit", "tail", "-n", "1000").splitlines()
        return [str(msgspec.json.decode(line, type=dict[str, object])["action"]) for line in lines]
