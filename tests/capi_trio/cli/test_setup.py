"""`capi setup`: printed or written, and safe to repeat."""

import json
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capi_trio.cli import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["setup", *arguments])


def test_it_prints_lines_for_the_callers_own_shell(home: Path) -> None:
    result = run("claude-code", "--model", "fast", "--url", "http://127.0.0.1:9/v1/")
    assert result.exit_code == 0
    assert "set -gx ANTHROPIC_BASE_URL 'http://127.0.0.1:9'\n" in result.stdout
    assert list(home.iterdir()) == []


def test_an_unknown_shell_gets_the_plain_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/elvish")
    assert run("env").stdout.startswith("export OPENAI_BASE_URL=")


def test_what_belongs_in_a_file_is_printed_as_a_comment(home: Path) -> None:
    lines = run("codex", "--shell", "cmd").stdout.splitlines()
    assert lines[0] == f"REM In {home}/.codex/config.toml (--write does it):"
    assert 'REM base_url = "http://127.0.0.1:4141/v1"' in lines
    assert lines[-1] == 'set "CAPI_API_KEY=none"'
    assert all(line.startswith("# ") for line in run("opencode").stdout.splitlines())


def test_written_files_are_private_and_keep_what_was_there(home: Path) -> None:
    assert run("claude-code", "--write").exit_code == 0
    settings = home / ".claude/settings.json"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    settings.write_text('{"theme": "dark"}')
    settings.chmod(0o644)
    assert run("claude-code", "--write").stdout == f"Wrote {settings}.\n"
    assert json.loads(settings.read_text())["theme"] == "dark"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o644
    assert run("claude-code", "--write").stdout == f"{settings} is up to date.\n"
    assert [path.name for path in settings.parent.iterdir()] == ["settings.json"]


def test_a_link_stays_a_link(home: Path) -> None:
    real = home / "dotfiles.toml"
    real.write_text("# mine\n")
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").symlink_to(real)
    result = run("codex", "--write", "--key-file", str(home / "key"))
    assert (home / ".codex/config.toml").is_symlink()
    assert tomllib.loads(real.read_text())["model_provider"] == "capi"
    assert result.stdout.endswith(f"set -gx CAPI_API_KEY (cat -- '{home}/key')\n")


def test_a_file_that_cannot_be_used_is_left_alone(home: Path) -> None:
    (home / ".claude").mkdir()
    settings = home / ".claude/settings.json"
    settings.write_text("// mine\n{}")
    result = run("claude-code", "--write")
    assert result.exit_code == 2
    assert "by hand" in result.stderr
    assert settings.read_text() == "// mine\n{}"
    settings.write_bytes(b"\xff")
    assert run("claude-code", "--write").exit_code == 1
    (home / ".codex").write_text("not a directory")
    assert run("codex", "--write").exit_code == 1
    assert run("env", "--write").exit_code == 2
