"""`capi start` and `capi demo`: what they refuse, with which exit code; tests/e2e runs them for real."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from capi_core.aliases import Catalog, UpstreamModels
from capi_core.keys import KeyRecord, Tier
from capi_trio.admission import ALL_ADMITTED, AdmissionOptions
from capi_trio.cli import main, run
from capi_trio.cli.run import _DemoKeys, _tell_demo, _tell_demo_json
from capi_trio.keyring import IssuedKey
from capi_trio.server import BindError
from capi_trio.service import Options, Running
from capi_trio.storage.lock import DirectoryLock
from capi_trio.terminal import NoTerminalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capi_core.config import Config
    from capi_trio.configstore import ConfigStore

ELSEWHERE = ["0.0.0.0", "::", "192.168.1.5", "127.0.0.1.example.com", "127.0.0.999"]  # noqa: S104
RISK = "--i-accept-account-suspension-risk"


class Serving:
    """Stands in for the service: remembers how it would have been run."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.cut = 0
        self.options: Options
        self.config: Config

    async def __call__(
        self,
        config: Config,
        options: Options,
        on_ready: Callable[[Running], None],
        *,
        store: ConfigStore | None = None,
    ) -> int:
        self.config, self.options = config, options
        if self.failure is not None:
            raise self.failure
        return self.cut


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Serving:
    stand_in = Serving()
    monkeypatch.setattr(run, "serve", stand_in)
    return stand_in


def capi(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(tmp_path: Path, *arguments: str | Path) -> Result:
    return capi("start", "--data-dir", tmp_path / "data", "--port", "0", *arguments)


# The gate.


@pytest.mark.parametrize("host", ELSEWHERE)
def test_no_auth_off_loopback_is_refused_with_the_reason(tmp_path: Path, host: str, serving: Serving) -> None:
    done = start(tmp_path, "--host", host, "--no-auth")
    assert done.exit_code == 2
    assert RISK in done.output
    assert not hasattr(serving, "options")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_clear_text_off_loopback_is_refused_with_the_reason(tmp_path: Path, host: str, serving: Serving) -> None:
    for more in ((), ("--no-auth", RISK)):
        done = start(tmp_path, "--host", host, *more)
        assert done.exit_code == 2
        assert "--tls-cert" in done.output
    assert not hasattr(serving, "options")


def test_the_acknowledged_risk_behind_a_proxy_is_taken(tmp_path: Path, serving: Serving) -> None:
    done = start(tmp_path, "--host", "0.0.0.0", "--no-auth", RISK, "--trusted-proxy", "10.0.0.0/8")  # noqa: S104
    assert done.exit_code == 0, done.output
    assert (serving.options.auth, serving.options.host) == (False, "0.0.0.0")  # noqa: S104


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_served_with_auth_on(tmp_path: Path, host: str, serving: Serving) -> None:
    assert start(tmp_path, "--host", host).exit_code == 0
    assert (serving.options.auth, serving.options.host) == (True, host)


def test_the_name_localhost_is_an_address(tmp_path: Path, serving: Serving) -> None:
    assert start(tmp_path, "--host", "localhost", "--no-auth").exit_code == 0
    assert (serving.options.auth, serving.options.host) == (False, "127.0.0.1")


def test_features_auth_passes_the_same_gate(tmp_path: Path, serving: Serving) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text('{"features": {"auth": false}}')
    assert start(tmp_path, "--host", "0.0.0.0", "--trusted-proxy", "10.0.0.1").exit_code == 2  # noqa: S104
    assert start(tmp_path).exit_code == 0
    assert serving.options.auth is False


def test_names_and_proxies_make_the_perimeter(tmp_path: Path, serving: Serving) -> None:
    done = start(tmp_path, "--host", "10.0.0.5", "--trusted-proxy", "10.0.0.0/8", "--allowed-host", "Capi.Example")
    assert done.exit_code == 0, done.output
    assert serving.options.perimeter.hosts == {"10.0.0.5", "capi.example"}
    assert [str(network) for network in serving.options.perimeter.trusted_proxies] == ["10.0.0.0/8"]
    assert start(tmp_path, "--trusted-proxy", "nonsense").exit_code == 2


def test_tls_needs_both_files_and_usable_ones(tmp_path: Path, serving: Serving) -> None:
    some = tmp_path / "some.pem"
    some.write_text("not a certificate")
    assert "go together" in start(tmp_path, "--tls-cert", some).output
    done = start(tmp_path, "--tls-cert", some, "--tls-key", some)
    assert (done.exit_code, "cannot be used for TLS" in done.output) == (2, True)


# The data directory and the configuration.


def test_a_first_configuration_is_made_and_a_gateway_without_upstreams_warns(tmp_path: Path, serving: Serving) -> None:
    done = start(tmp_path)
    assert done.exit_code == 0
    assert (tmp_path / "data" / "config.json").stat().st_mode & 0o777 == 0o600
    assert "names no upstream yet" in done.output
    assert serving.config.upstreams == {}


def test_a_named_configuration_is_not_made(tmp_path: Path, serving: Serving) -> None:
    done = start(tmp_path, "--config", tmp_path / "other.json")
    assert (done.exit_code, "no such file" in done.output) == (2, True)


def test_an_unusable_configuration_is_refused_with_its_path(tmp_path: Path, serving: Serving) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "config.json").write_text('{"limits": {"grace_s": -1}}')
    done = start(tmp_path)
    assert (done.exit_code, "$.limits.grace_s" in done.output) == (2, True)


@pytest.mark.parametrize("command", ["start", "demo"])
def test_a_data_directory_that_cannot_be_made_is_refused(tmp_path: Path, command: str, serving: Serving) -> None:
    (tmp_path / "file").touch()
    done = capi(command, "--data-dir", tmp_path / "file" / "below", "--port", "0")
    assert (done.exit_code, "--data-dir" in done.output) == (2, True)


@pytest.mark.parametrize("command", ["start", "demo"])
def test_a_directory_that_is_not_capis_is_refused_and_left_as_it_is(
    tmp_path: Path, command: str, serving: Serving
) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(0o1777)
    (path / "thesis.txt").touch()
    done = capi(command, "--data-dir", path, "--port", "0")
    assert (done.exit_code, "is not a data directory of capi: it holds 'thesis.txt'" in done.output) == (2, True)
    assert [entry.name for entry in path.iterdir()] == ["thesis.txt"]
    assert path.stat().st_mode & 0o7777 == 0o1777


def test_a_directory_that_was_open_to_others_is_closed_and_it_is_said(tmp_path: Path, serving: Serving) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    done = start(tmp_path)
    assert (done.exit_code, "warning: " in done.output, "closed to them now" in done.output) == (0, True, True)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("cut", "code"), [(0, 0), (1, 1), (7, 1)])
def test_a_gateway_that_had_to_cut_requests_off_ends_as_a_failure(
    tmp_path: Path, serving: Serving, cut: int, code: int
) -> None:
    serving.cut = cut
    done = start(tmp_path)
    assert done.exit_code == code
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["event"], last["cut"]) == ("stopped", cut)


def test_a_directory_that_another_process_has_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    with DirectoryLock.take(tmp_path / "data"):
        done = start(tmp_path)
    assert done.exit_code == 1
    assert "in use by process" in done.output


# What ends it.


@pytest.mark.parametrize("in_a_group", [False, True])
def test_failures_have_their_exit_codes_and_texts(
    tmp_path: Path, in_a_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failure, text in ((BindError("port taken"), "port taken"), (RuntimeError("secret text"), "its own")):
        error: Exception = ExceptionGroup("", [failure]) if in_a_group else failure
        monkeypatch.setattr(run, "serve", Serving(error))
        done = start(tmp_path)
        assert (done.exit_code, text in done.output) == (1, True)
        assert "secret text" not in done.output


def test_an_interruption_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "serve", Serving(KeyboardInterrupt()))
    assert start(tmp_path).exit_code == 1  # click says Aborted!


# The demo.


@pytest.mark.parametrize("host", ELSEWHERE)
def test_the_demo_stays_on_loopback(tmp_path: Path, host: str, serving: Serving) -> None:
    done = capi("demo", "--host", host, "--data-dir", tmp_path)
    assert (done.exit_code, "loopback" in done.output) == (2, True)


def test_the_demo_has_auth_on_unless_asked(tmp_path: Path, serving: Serving) -> None:
    assert capi("demo", "--data-dir", tmp_path, "--port", "0").exit_code == 0
    assert serving.options.auth
    assert capi("demo", "--data-dir", tmp_path, "--port", "0", "--no-auth").exit_code == 0
    assert not serving.options.auth


RUNNING = Running(
    "127.0.0.1",
    4242,
    "on",
    {"demo": "http://127.0.0.1:5/v1"},
    lambda: Catalog(upstreams=(UpstreamModels("demo", {"m": b""}),)),
)


def keys() -> _DemoKeys:
    made = _DemoKeys()
    record = KeyRecord(id="k", hash="", tier=Tier.CLIENT, label="demo", created_at=0)
    made.client, made.admin = IssuedKey(record, "sk-cap-CLIENT"), IssuedKey(record, "sk-cap-ADMIN")
    return made


@pytest.mark.parametrize(
    ("made", "client", "admin"), [(keys(), "sk-cap-CLIENT", "sk-cap-ADMIN"), (_DemoKeys(), None, None)]
)
def test_the_line_for_programs_has_what_was_promised(
    made: _DemoKeys, client: str | None, admin: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell_demo_json(RUNNING, data_dir=Path("/d"), keys=made)
    assert json.loads(capsys.readouterr().out) == {
        "url": "http://127.0.0.1:4242",
        "provider_url": "http://127.0.0.1:5/v1",
        "models": ["m"],
        "api_key": client,
        "admin_key": admin,
        "data_dir": "/d",
    }


@pytest.mark.parametrize("made", [keys(), _DemoKeys()])
def test_the_snippets_for_people_are_complete(made: _DemoKeys, capsys: pytest.CaptureFixture[str]) -> None:
    _tell_demo(RUNNING, data_dir=Path("/d"), keys=made)
    text = capsys.readouterr().out
    python = text.partition("pip install openai):\n\n")[2]
    ast.parse("\n".join(line.removeprefix("  ") for line in python.splitlines()))
    assert "http://127.0.0.1:4242/v1/chat/completions" in text
    assert ("Bearer sk-cap-CLIENT" in text) == (made.client is not None)


@pytest.mark.parametrize("tty", [True, False])
def test_people_are_told_that_it_listens(
    tty: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty)
    run._tell_started(RUNNING)
    run._show_admin_key("sk-cap-X")
    told = capsys.readouterr().out
    assert ("auth: on" in told) == tty
    assert told.count("sk-cap-X") == 1


def test_urls() -> None:
    assert Running("::1", 1, "on", {}, Catalog).url == "http://[::1]:1"
    assert Running("h", 1, "on", {}, Catalog, secure=True).url == "https://h:1"


# A pace, and a say in each request.


def test_a_pace_is_passed_on(tmp_path: Path, serving: Serving) -> None:
    assert start(tmp_path).exit_code == 0
    assert serving.options.admission == ALL_ADMITTED
    assert start(tmp_path, "--rate-limit", "10").exit_code == 0
    assert serving.options.admission == AdmissionOptions(interval_s=10)
    assert start(tmp_path, "-r", "3600", "-w").exit_code == 0
    assert serving.options.admission == AdmissionOptions(interval_s=3600, wait=True)


@pytest.mark.parametrize(
    "wrong", [["--wait"], *(["--rate-limit", text] for text in ("0", "-1", "nan", "inf", "1.5", "3601", "x"))]
)
def test_no_pace_is_no_pace(tmp_path: Path, wrong: list[str], serving: Serving) -> None:
    """Not-a-number must not become a refusal for ever (spec.md 5, 29)."""
    done = start(tmp_path, *wrong)
    assert (done.exit_code, "--rate-limit" in done.output) == (2, True)
    assert not (tmp_path / "data").exists()


def test_to_be_asked_needs_a_terminal(tmp_path: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> None:
        raise NoTerminalError("there is nobody")

    monkeypatch.setattr(run, "check_terminal", nobody)
    done = start(tmp_path, "--manual")
    assert (done.exit_code, "there is nobody" in done.output) == (2, True)
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(run, "check_terminal", lambda: None)
    assert start(tmp_path, "--manual").exit_code == 0
    assert serving.options.admission == AdmissionOptions(manual=True)
