"""`capi auth`: from a code on the screen to a stored identity, or a reason; and nothing half done."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest
import structlog
import trio
from attrs import define, field
from click.testing import CliRunner, Result
from trio.testing import MockClock

from capi_core.github import TokenProblem
from capi_trio.cli import auth, main
from capi_trio.demo.github import CLIENT_ID, Call, Decision, DemoGitHub, Trouble
from capi_trio.identity_operations import IdentityStatus
from capi_trio.token_files import TOKENS_NAME, TokenFiles
from capi_trio.upstream import UpstreamClient
from tests.capi_trio.cli.helpers import Capi
from tests.support.github_peer import BASE, TOKEN, GitHubPeer


@define(eq=False)
class Terminal:
    """The command line before a simulated GitHub, on a clock that jumps."""

    directory: Path
    peer: GitHubPeer = field(factory=GitHubPeer)

    @property
    def github(self) -> DemoGitHub:
        return self.peer.github

    def run(self, *arguments: str, host: str = BASE, client_id: str = CLIENT_ID) -> Result:
        common = ("--host", host, "--client-id", client_id, "--data-dir", str(self.directory))
        return CliRunner(env={"CAPI_DATABASE": None}).invoke(main, ["auth", *common, *arguments])

    def refused(self, *arguments: str, code: int, host: str = BASE) -> str:
        """Why it is refused (2) or fails (1); what it said before that is for people."""
        before = self.identities()
        result = self.run(*arguments, host=host)
        assert result.exit_code == code, result.output
        assert result.exc_info is not None
        assert result.exc_info[0] is SystemExit, "no traceback"
        assert self.identities() == before
        return result.stderr.partition("capi: ")[2].strip()

    def identities(self) -> list[IdentityStatus]:
        shown = Capi(self.directory).output("identities", "list", "--json")
        return msgspec.json.decode(shown, type=list[IdentityStatus])

    def token(self, name: str) -> str:
        return TokenFiles(self.directory / TOKENS_NAME).read(name).reveal()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path / "data")
    monkeypatch.setattr(auth, "UpstreamClient", partial(UpstreamClient, transport=found.peer))
    run = partial(trio.run, clock=MockClock(autojump_threshold=0))
    monkeypatch.setattr(auth, "trio", SimpleNamespace(run=run, current_time=trio.current_time))
    yield found
    structlog.reset_defaults()


def token_file(path: Path, content: str) -> str:
    path.write_text(content)
    path.chmod(0o600)
    return str(path)


def test_a_code_is_shown_and_the_account_is_stored(terminal: Terminal) -> None:
    terminal.github.login = "Octo_Cat"
    result = terminal.run("--owner", "alice")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"Open {BASE}/login/device and enter this code: DEMO-0001",
        "It is good for 15 minutes. Waiting for you to enter it ...",
        f"Linked Octo_Cat at {BASE} as the identity octo-cat.",
    ]
    (identity,) = terminal.identities()
    assert (identity.name, identity.login, identity.owner) == ("octo-cat", "Octo_Cat", "alice")
    assert (identity.host, identity.token_problem) == (BASE, None)
    assert terminal.token("octo-cat").startswith("ghu_")
    assert terminal.token("octo-cat") not in result.output


def test_the_identity_may_be_named(terminal: Terminal) -> None:
    assert terminal.run("--identity", "team-seat").exit_code == 0
    assert [one.name for one in terminal.identities()] == ["team-seat"]


def test_a_login_without_a_usable_letter_and_a_long_one(terminal: Terminal) -> None:
    for login, name in (("___", "any"), ("x" * 100, "x" * 64)):
        terminal.github.login = login
        assert terminal.run().exit_code == 0
        assert name in [one.name for one in terminal.identities()]


def test_programs_get_lines_of_json(terminal: Terminal) -> None:
    result = terminal.run("--json", "--identity", "a")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [msgspec.json.decode(line) for line in result.stdout.splitlines()] == [
        {
            "event": "code",
            "user_code": "DEMO-0001",
            "verification_uri": f"{BASE}/login/device",
            "expires_in_s": 900,
        },
        {
            "event": "linked",
            "identity": "a",
            "login": "demo-octocat",
            "host": BASE,
            "owner": None,
            "seat": "ok",
            "next_step": None,
        },
    ]


def test_a_token_of_another_proxy_is_adopted(terminal: Terminal, tmp_path: Path) -> None:
    path = token_file(tmp_path / "github_token", f"{TOKEN.reveal()}\n")
    result = terminal.run("--adopt", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"Linked demo-octocat at {BASE} as the identity demo-octocat.\n"
    assert terminal.token("demo-octocat") == TOKEN.reveal()
    assert Path(path).read_text() == f"{TOKEN.reveal()}\n"
    assert terminal.github.calls[Call.DEVICE_CODE] == 0


def test_an_account_without_a_seat_is_stored_with_a_warning(terminal: Terminal) -> None:
    """The seat may come later."""
    terminal.github.fail(Call.COPILOT_TOKEN, Trouble.no_copilot(), times=2)
    result = terminal.run()
    assert result.exit_code == 0
    assert result.stderr == f"warning: no Copilot token yet: {TokenProblem.NO_SUBSCRIPTION.next_step}\n"
    line = msgspec.json.decode(terminal.run("--json", "--identity", "b").stdout.splitlines()[-1])
    assert (line["seat"], line["next_step"]) == ("no_subscription", TokenProblem.NO_SUBSCRIPTION.next_step)
    assert len(terminal.identities()) == 2


# -- nothing is linked ----------------------------------------------------------------------------------------------


def test_a_user_who_says_no(terminal: Terminal) -> None:
    terminal.github.decision = Decision.DENY
    assert terminal.refused(code=1) == "the request was denied on GitHub; nothing was linked"


def test_a_code_that_nobody_enters(terminal: Terminal) -> None:
    terminal.github.decision = Decision.IGNORE
    assert terminal.refused(code=1).startswith("the code was not entered in time; nothing was linked")


def test_an_app_without_the_device_flow(terminal: Terminal) -> None:
    terminal.github.fail(Call.DEVICE_CODE, Trouble.oauth("device_flow_disabled"))
    assert terminal.refused(code=1).endswith("or use another client id. Nothing was linked")


def test_a_github_that_cannot_be_reached(terminal: Terminal) -> None:
    terminal.peer.losses.extend([httpx.ConnectError("no route")] * 100)
    assert "check the network" in terminal.refused(code=1)


def test_an_account_that_nobody_tells(terminal: Terminal) -> None:
    terminal.github.fail(Call.USER, Trouble.http(503), times=None)
    assert TokenProblem.SERVER_ERROR.next_step in terminal.refused(code=1)


def test_a_token_that_github_does_not_know(terminal: Terminal, tmp_path: Path) -> None:
    path = token_file(tmp_path / "github_token", "ghu_unknown")
    said = terminal.refused("--adopt", path, code=1)
    assert said == f"{TokenProblem.REVOKED.next_step}. Nothing was linked"
    assert "ghu_unknown" not in said


@pytest.mark.parametrize("content", ["", "\n", "two words", "sk-no-token-of-github"])
def test_a_file_without_a_token(terminal: Terminal, tmp_path: Path, content: str) -> None:
    path = token_file(tmp_path / "github_token", content)
    said = terminal.refused("--adopt", path, code=2)
    assert said.startswith(f"{path} does not hold a GitHub token")
    assert terminal.peer.asked == []


def test_no_file(terminal: Terminal, tmp_path: Path) -> None:
    assert "cannot be read" in terminal.refused("--adopt", str(tmp_path / "none"), code=2)


@pytest.mark.parametrize(
    ("arguments", "host", "said"),
    [
        (
            ("--identity", "a"),
            "octo.ghe.com",
            f"the identity 'a' is there already, for demo-octocat at {BASE}:",
        ),
        (("--identity", "a", "--owner", "Bob"), BASE, "the identity 'a' is there already, for the owner 'Ann'"),
    ],
)
def test_a_name_that_is_taken_is_refused_before_github_is_asked(
    terminal: Terminal, arguments: tuple[str, ...], host: str, said: str
) -> None:
    assert terminal.run("--identity", "a", "--owner", "Ann").exit_code == 0
    terminal.peer.asked.clear()
    assert terminal.refused(*arguments, code=2, host=host).startswith(said)
    assert terminal.peer.asked == []


def test_a_name_that_is_another_accounts_keeps_its_token(terminal: Terminal) -> None:
    assert terminal.run("--identity", "a").exit_code == 0
    before = terminal.token("a")
    terminal.github.login = "somebody-else"
    said = terminal.refused("--identity", "a", code=2)
    assert said.startswith(f"the identity 'a' is there already, for demo-octocat at {BASE}: remove it first")
    assert terminal.token("a") == before


@pytest.mark.parametrize("arguments", [("--identity", "demo-octocat"), ()])
def test_an_account_that_is_linked_again_has_a_new_token_and_stays_what_it_was(
    terminal: Terminal, arguments: tuple[str, ...]
) -> None:
    """As `capi identities show` advises when GitHub does not take the token any more."""
    assert terminal.run("--owner", "Ann").exit_code == 0
    Capi(terminal.directory).output("identities", "share", "demo-octocat", "--reason", "on call")
    (before,), token = terminal.identities(), terminal.token("demo-octocat")
    terminal.github.revoke(token)
    result = terminal.run("--json", *arguments)
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout.splitlines()[-1])["owner"] == "Ann"
    (after,) = terminal.identities()
    assert (after.id, after.owner, after.share_reason) == (before.id, "Ann", "on call")
    assert terminal.token("demo-octocat") != token


@pytest.mark.parametrize(
    ("arguments", "host", "said"),
    [
        (("--identity", "No Name"), BASE, "--identity must be 1 to 64 lower-case letters"),
        (("--owner", "ghp_0123456789abcdef"), BASE, "--owner must not hold a token"),
        ((), "http://github.com", "--host cannot be used"),
        ((), "github.com/path", "--host cannot be used"),
        ((), "evil host", "--host cannot be used"),
        (("--client-id", ""), BASE, "--client-id must not be empty"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_github_is_asked(
    terminal: Terminal, arguments: tuple[str, ...], host: str, said: str
) -> None:
    assert terminal.refused(*arguments, code=2, host=host).startswith(said)
    assert terminal.peer.asked == []


def test_ctrl_c_while_waiting_links_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also out of a nursery, from where it comes as a group of one."""
    for error in (KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])):

        async def interrupted(_: object, raised: BaseException = error) -> None:
            await trio.sleep(3)
            raise raised

        monkeypatch.setattr(auth, "_link", interrupted)
        result = terminal.run()
        assert result.exit_code == 1
        assert "Aborted!" in result.output
        assert "Traceback" not in result.output
        assert terminal.identities() == []
