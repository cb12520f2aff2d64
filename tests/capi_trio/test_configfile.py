"""The configuration file, and the keys that it only names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from capi_core.config import Config, ConfigError, UpstreamConfig
from capi_trio.configfile import default_data_dir, load, upstream_targets

KEY: Final = "sk-upstream-key"
URL: Final = "https://up.test/v1"


def with_env(name: str = "KEY") -> UpstreamConfig:
    return UpstreamConfig(kind="openai", base_url=URL, api_key_env=name)


def with_file(name: str = "key.txt") -> UpstreamConfig:
    return UpstreamConfig(kind="openai", base_url=URL, api_key_file=name)


def key_of(upstream: UpstreamConfig, environ: Mapping[str, str], base_dir: Path = Path()) -> str:
    targets = upstream_targets(Config(upstreams={"up": upstream}), environ, base_dir=base_dir, demo_urls={})
    key = targets["up"].api_key
    assert key is not None
    return key.reveal()


def refusal(upstream: UpstreamConfig, environ: Mapping[str, str], base_dir: Path = Path()) -> tuple[str, str]:
    """Path and message of the one problem that there is."""
    with pytest.raises(ConfigError) as raised:
        key_of(upstream, environ, base_dir)
    (problem,) = raised.value.problems
    return problem.path, problem.message


def key_file(folder: Path, text: bytes = KEY.encode(), *, mode: int = 0o600) -> Path:
    path = folder / "key.txt"
    path.write_bytes(text)
    path.chmod(mode)
    return path


# -- where things live ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environ", [{}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative/path"}])
def test_data_lives_in_the_users_home(environ: Mapping[str, str]) -> None:
    assert default_data_dir(environ) == Path.home() / ".local" / "share" / "capi"


def test_data_lives_where_xdg_says() -> None:
    assert default_data_dir({"XDG_DATA_HOME": "/srv/data"}) == Path("/srv/data/capi")


# -- the file ------------------------------------------------------------------------------------------------------


def test_a_file_is_read_with_its_warnings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"strict": true, "nouveau": 1}')
    config, warnings = load(path)
    assert config.strict
    assert [warning.path for warning in warnings] == ["$.nouveau"]


@pytest.mark.parametrize(
    ("make", "text"),
    [(lambda path: None, "there is no such file"), (lambda path: path.mkdir(), "cannot be read: Is a directory")],
    ids=["missing", "directory"],
)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, make: object, text: str) -> None:
    assert callable(make)
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(ConfigError) as raised:
        load(path)
    (problem,) = raised.value.problems
    assert problem.path == str(path)
    assert text in problem.message


def test_a_file_with_several_problems_tells_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"strict": 1, "limits": {"grace_s": -1}, "upstreams": {"a": {"kind": "no"}}}')
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert [problem.path for problem in raised.value.problems] == ["$.limits.grace_s", "$.strict", "$.upstreams.a.kind"]


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment() -> None:
    assert key_of(with_env(), {"KEY": KEY}) == KEY
    assert key_of(with_env(), {"KEY": f" {KEY}\n"}) == KEY


def test_a_key_that_is_not_in_the_environment_is_a_problem() -> None:
    path, message = refusal(with_env("NO_SUCH"), {})
    assert path == "$.upstreams.up.api_key_env"
    assert message == "the environment variable NO_SUCH is not set"


@pytest.mark.parametrize("text", [KEY, f"{KEY}\n", f"\r\n {KEY}\t\r\n"])
def test_a_key_comes_from_a_file(tmp_path: Path, text: str) -> None:
    path = key_file(tmp_path, text.encode())
    assert key_of(with_file(), {}, tmp_path) == KEY
    assert key_of(with_file(str(path)), {}, Path("/nowhere")) == KEY


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o620, 0o602, 0o601, 0o610, 0o644, 0o777])
def test_a_key_file_that_others_have_a_part_in_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode=mode)
    where, message = refusal(with_file(), {}, tmp_path)
    assert where == "$.upstreams.up.api_key_file"
    assert message == f"others can read {path}; run: chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_file_of_its_owner_is_read(tmp_path: Path, mode: int) -> None:
    key_file(tmp_path, mode=mode)
    assert key_of(with_file(), {}, tmp_path) == KEY


def test_the_mode_that_counts_is_the_files_not_the_links(tmp_path: Path) -> None:
    path = key_file(tmp_path, mode=0o644)
    (tmp_path / "link").symlink_to(path)
    assert "chmod 600" in refusal(with_file("link"), {}, tmp_path)[1]


def test_a_key_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    where, message = refusal(with_file(), {}, tmp_path)
    assert where == "$.upstreams.up.api_key_file"
    assert message == f"{tmp_path}/key.txt cannot be read: No such file or directory"


def test_a_directory_is_no_key_file(tmp_path: Path) -> None:
    (tmp_path / "key.txt").mkdir()
    assert "cannot be read" in refusal(with_file(), {}, tmp_path)[1]


@pytest.mark.parametrize("text", ["", " \n", "two words", "two\nlines", "sk-\u00e9", "sk-\x7f", "sk-\x1b[0m", "a\tb"])
@pytest.mark.parametrize("upstream", [with_file(), with_env()], ids=["file", "environment"])
def test_what_is_no_key_is_not_sent_as_one(tmp_path: Path, text: str, upstream: UpstreamConfig) -> None:
    """And is not shown either."""
    key_file(tmp_path, text.encode())
    where, message = refusal(upstream, {"KEY": text}, tmp_path)
    assert where.startswith("$.upstreams.up.api_key_")
    assert message == "this does not hold a key: one line of visible ASCII characters"


def test_a_file_that_holds_more_than_a_key_is_not_cut_to_one(tmp_path: Path) -> None:
    key_file(tmp_path, b"x" * 8192)
    assert key_of(with_file(), {}, tmp_path) == "x" * 8192
    key_file(tmp_path, b"x" * 8193)
    assert "holds more than a key" in refusal(with_file(), {}, tmp_path)[1]


def test_bytes_that_are_no_text_are_no_key(tmp_path: Path) -> None:
    key_file(tmp_path, b"sk-\xff\xfe")
    assert "does not hold a key" in refusal(with_file(), {}, tmp_path)[1]


# -- targets -------------------------------------------------------------------------------------------------------


def test_each_upstream_has_its_address_and_its_patience(tmp_path: Path) -> None:
    config = Config(
        upstreams={
            "a": UpstreamConfig(kind="openai", base_url="https://a.test/v1/", connect_timeout_s=3),
            "demo": UpstreamConfig(kind="demo"),
        }
    )
    targets = upstream_targets(config, {}, base_dir=tmp_path, demo_urls={"demo": "http://127.0.0.1:1/v1"})
    assert [(name, target.name, target.base_url) for name, target in targets.items()] == [
        ("a", "a", "https://a.test/v1"),
        ("demo", "demo", "http://127.0.0.1:1/v1"),
    ]
    assert targets["a"].connect_timeout_s == 3
    assert targets["a"].api_key is None


def test_every_missing_key_is_told_at_once(tmp_path: Path) -> None:
    config = Config(
        upstreams={"a": with_env("NO_A"), "fine": with_env(), "b": with_file("no-b"), "c": with_env("NO_C")}
    )
    with pytest.raises(ConfigError) as raised:
        upstream_targets(config, {"KEY": KEY}, base_dir=tmp_path, demo_urls={})
    assert [problem.path for problem in raised.value.problems] == [
        "$.upstreams.a.api_key_env",
        "$.upstreams.b.api_key_file",
        "$.upstreams.c.api_key_env",
    ]
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("plant", ["fifo", "directory", "link to a fifo"])
def test_what_is_no_regular_file_is_refused_at_once_and_never_waited_for(tmp_path: Path, plant: str) -> None:
    path = tmp_path / "key.txt"
    if plant == "directory":
        path.mkdir(0o700)
    else:
        os.mkfifo(tmp_path / "fifo" if "link" in plant else path, 0o600)
    if "link" in plant:
        path.symlink_to(tmp_path / "fifo")
    where, message = refusal(with_file(), {}, tmp_path)
    assert where == "$.upstreams.up.api_key_file"
    assert f"{path} cannot be read" in message


def test_a_key_file_may_be_a_link_as_orchestrators_mount_it(tmp_path: Path) -> None:
    key_file(tmp_path).rename(tmp_path / "mounted")
    (tmp_path / "key.txt").symlink_to("mounted")
    assert key_of(with_file(), {}, tmp_path) == KEY
