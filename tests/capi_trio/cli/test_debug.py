"""`capi debug`."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from capi_core import __version__
from capi_trio.cli import main


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    version: str
    python: str
    platform: str
    libraries: dict[str, str]
    data_dir: str
    config_file: str
    config: str
    server: str


def facts(data_dir: Path) -> _Facts:
    result = CliRunner().invoke(main, ["debug", "--data-dir", str(data_dir), "--json"])
    assert result.exit_code == 0
    return msgspec.json.decode(result.stdout, type=_Facts)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (None, "unusable: "),
        ("{", "unusable: "),
        ('{"strict": 1}', "unusable: $.strict"),
        ("{}", "fine: 0 upstreams, 0 aliases, 0 warnings"),
        ('{"upstreams": {"d": {"kind": "demo"}}, "x": 1}', "fine: 1 upstreams, 0 aliases, 1 warnings"),
    ],
)
def test_it_tells_what_runs_and_how_the_configuration_is(tmp_path: Path, text: str | None, state: str) -> None:
    """A configuration that cannot be used is a finding here, not a failure."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    told = facts(tmp_path)
    assert told.version == __version__
    assert told.config.startswith(state)
    assert (told.data_dir, told.config_file) == (str(tmp_path), f"{tmp_path}/config.json")
    assert {"trio", "hypercorn", "h11", "httpx"} <= told.libraries.keys()
    assert told.server == "none runs on this data directory"
    assert told.python.partition(" ")[2]


def test_people_get_the_same_as_text(tmp_path: Path) -> None:
    told = facts(tmp_path)
    result = CliRunner().invoke(main, ["debug", "--data-dir", str(tmp_path)])
    assert result.exit_code == 0
    for fact in (told.version, told.python, told.platform, told.data_dir, told.config, *told.libraries.values()):
        assert fact in result.stdout


def test_no_key_is_told(tmp_path: Path) -> None:
    upstream = {"kind": "openai", "base_url": "https://up.test/v1", "api_key_env": "CAPI_TEST_KEY"}
    (tmp_path / "config.json").write_bytes(msgspec.json.encode({"upstreams": {"up": upstream}}))
    result = CliRunner(env={"CAPI_TEST_KEY": "sk-secret"}).invoke(main, ["debug", "--data-dir", str(tmp_path)])
    assert "sk-secret" not in result.output
