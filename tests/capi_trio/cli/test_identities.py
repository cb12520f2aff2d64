"""`capi identities`: what the options mean, what is printed, and that it works with a server and without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
import trio

from capi_core.identities import IdentityDraft
from capi_trio.cli import identities
from capi_trio.cli.identities import store_identity
from capi_trio.demo.github import DemoGitHub
from capi_trio.identity_operations import IdentityStatus, IdentityUsage
from capi_trio.token_files import TOKENS_NAME
from capi_trio.upstream import Secret
from tests.capi_trio.cli.helpers import Capi
from tests.capi_trio.helpers import audit_lines
from tests.capi_trio.test_control import open_control
from tests.support.github_server import serving

TOKEN = Secret("gho_" + "a1B" * 12)
CHANGES = {
    "pause": [],
    "stop": [],
    "share": ["--reason", "on call"],
    "set": ["--max-in-flight", "3"],
    "remove": [],
}


@pytest.fixture
def capi(tmp_path: Path) -> Capi:
    return Capi(tmp_path / "data")


def add(capi: Capi, name: str = "a", *, owner: str | None = "Ann", login: str | None = None) -> None:
    draft = IdentityDraft(name=name, owner=owner, login=login)
    store_identity(capi.directory, None, draft, TOKEN)


def listed(capi: Capi) -> list[IdentityStatus]:
    return msgspec.json.decode(capi.output("identities", "list", "--json"), type=list[IdentityStatus])


def changed(capi: Capi, *arguments: str) -> IdentityStatus:
    """What a command answers that changes an identity; it is what is listed from then on."""
    status = msgspec.json.decode(capi.output("identities", *arguments, "--json"), type=IdentityStatus)
    assert [one for one in listed(capi) if one.name == status.name] == ([] if status.removed_at else [status])
    return status


# -- changing -----------------------------------------------------------------------------------------------------


def test_a_linked_identity_is_stored_with_its_token(capi: Capi) -> None:
    draft = IdentityDraft(name="b", host="octo.ghe.com", login="octo", owner="Bob", max_in_flight=2)
    store_identity(capi.directory, None, draft, TOKEN)
    [status] = listed(capi)
    assert (status.name, status.host, status.login, status.owner) == ("b", "octo.ghe.com", "octo", "Bob")
    assert (status.max_in_flight, status.token_problem) == (2, None)
    assert (capi.directory / TOKENS_NAME / "b.token").read_text() == TOKEN.reveal() + "\n"


def test_an_identity_goes_from_state_to_state(capi: Capi) -> None:
    add(capi)
    paused = changed(capi, "pause", "a", "--reason", "ill")
    assert (paused.state, paused.state_reason) == ("paused", "ill")
    stopped = changed(capi, "stop", "a")
    assert (stopped.state, stopped.state_reason) == ("stopped", None)
    assert "is stopped, which is more than paused" in capi.refused("identities", "pause", "a")
    assert changed(capi, "resume", "a").state == "active"
    assert capi.refused("identities", "resume", "a") == "the identity 'a' is active already"
    assert capi.audited() == ["identity.add", "identity.pause", "identity.stop", "identity.resume"]


def test_sharing_needs_its_reason(capi: Capi) -> None:
    add(capi)
    without = capi.run("identities", "share", "a")
    assert (without.exit_code, "Missing option '--reason'" in without.stderr) == (2, True)
    assert "reason must not be empty" in capi.refused("identities", "share", "a", "--reason", "")
    shared = changed(capi, "share", "a", "--reason", "Ann is on leave")
    assert (shared.shared, shared.share_reason) == (True, "Ann is on leave")
    assert '"reason":"Ann is on leave"' in capi.output("audit", "tail", "-n", "1")
    kept = changed(capi, "unshare", "a")
    assert (kept.shared, kept.share_reason) == (False, None)
    assert capi.audited() == ["identity.add", "identity.share", "identity.unshare"]


def test_owner_and_cap_can_be_set_and_taken_away(capi: Capi) -> None:
    add(capi)
    both = changed(capi, "set", "a", "--owner", "Bob", "--max-in-flight", "3")
    assert (both.owner, both.max_in_flight) == ("Bob", 3)
    assert changed(capi, "set", "a", "--no-owner").owner is None
    bare = changed(capi, "set", "a", "--max-in-flight", "0")
    assert (bare.owner, bare.max_in_flight) == (None, None)
    assert capi.audited() == ["identity.add"] + ["identity.edit"] * 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "nothing was asked to be changed"),
        (["--owner", "x", "--no-owner"], "--owner and --no-owner contradict each other"),
        (["--owner", " "], "owner must not be empty"),
        (["--max-in-flight", "-1"], "max_in_flight must be from 1"),
        (["--max-in-flight", "1001"], "max_in_flight must be from 1"),
    ],
)
def test_what_cannot_be_set_is_refused_in_words(capi: Capi, options: list[str], why: str) -> None:
    add(capi)
    before = listed(capi), capi.audited()
    assert why in capi.refused("identities", "set", "a", *options)
    assert (listed(capi), capi.audited()) == before


def test_a_removed_identity_leaves_its_name_and_no_token(capi: Capi) -> None:
    add(capi)
    assert changed(capi, "remove", "a", "--reason", "left").removed_at is not None
    assert listed(capi) == []
    assert list((capi.directory / TOKENS_NAME).iterdir()) == []
    add(capi)
    assert capi.audited() == ["identity.add", "identity.remove", "identity.add"]


@pytest.mark.parametrize("command", ["show", "resume", "unshare", *CHANGES])
def test_an_identity_that_is_not_there_is_refused(capi: Capi, command: str) -> None:
    message = capi.refused("identities", command, "nobody", *CHANGES.get(command, []))
    assert message == "there is no identity 'nobody'; capi identities list shows their names"


@pytest.mark.parametrize("command", CHANGES)
async def test_a_running_server_carries_it_out_and_sees_it_at_once(tmp_path: Path, command: str) -> None:
    capi = Capi(tmp_path / "data")
    async with open_control(capi.directory) as ring:
        await trio.to_thread.run_sync(add, capi)
        [before] = ring.book.live()
        arguments = ["identities", command, "a", *CHANGES[command], "--json"]
        shown = await trio.to_thread.run_sync(lambda: capi.output(*arguments))
        status = msgspec.json.decode(shown, type=IdentityStatus)
        after = ring.book.live()
        assert after != (before,)
        assert [(one.state.value, one.shared, one.max_in_flight) for one in after] == (
            [] if status.removed_at else [(status.state, status.shared, status.max_in_flight)]
        )
        assert len(await audit_lines(ring.store)) == 2


# -- looking ------------------------------------------------------------------------------------------------------


def test_no_identities_are_told(capi: Capi) -> None:
    assert capi.output("identities", "list") == "There are no identities yet. Link one: capi auth\n"
    assert capi.output("identities", "list", "--json") == "[]\n"


def test_the_table_shows_every_identity_whom_it_serves_and_whether_it_can(capi: Capi) -> None:
    add(capi, "ann", login="ann-gh")
    add(capi, "bob", owner="Bob")
    add(capi, "pool", owner=None)
    changed(capi, "share", "bob", "--reason", "x")
    changed(capi, "stop", "pool")
    changed(capi, "set", "pool", "--max-in-flight", "2")
    (capi.directory / TOKENS_NAME / "bob.token").unlink()
    rows = [re.split(r"  +", line) for line in capi.output("identities", "list").splitlines()]
    assert rows == [
        ["NAME", "HOST", "LOGIN", "OWNER", "STATE", "MAX", "SERVES", "TOKEN"],
        ["ann", "github.com", "ann-gh", "Ann", "active", "-", "its owner", "ok"],
        ["bob", "github.com", "-", "Bob", "active", "-", "the pool", "cannot be used"],
        ["pool", "github.com", "-", "-", "stopped", "2", "the pool", "ok"],
    ]


def test_one_identity_is_shown_with_what_there_is_to_say_and_never_its_token(capi: Capi) -> None:
    add(capi, login="octo")
    [status] = listed(capi)
    assert msgspec.json.decode(capi.output("identities", "show", "a", "--json"), type=IdentityStatus) == status
    text = capi.output("identities", "show", "a")
    shown = dict(re.split(r" +", line, maxsplit=1) for line in text.splitlines())
    for name in ("created_at", "updated_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", shown.pop(name))
    assert shown == {
        "id": status.id,
        "name": "a",
        "host": "github.com",
        "login": "octo",
        "owner": "Ann",
        "shared": "no",
        "state": "active",
    }
    assert "gho_" not in text
    (capi.directory / TOKENS_NAME / "a.token").chmod(0o644)
    told = dict(re.split(r" +", line, maxsplit=1) for line in capi.output("identities", "pause", "a").splitlines())
    assert told["state"] == "paused"
    assert "others can read" in told["token_problem"]


# -- what is left -------------------------------------------------------------------------------------------------


def hub() -> DemoGitHub:
    github = DemoGitHub()
    for number in range(2):
        github.link(f"{TOKEN.reveal()}{number}", f"login-{number}")
    return github


def add_at(capi: Capi, url: str, *names: str) -> None:
    for number, name in enumerate(names):
        store_identity(capi.directory, None, IdentityDraft(name=name, host=url), Secret(f"{TOKEN.reveal()}{number}"))


async def test_without_a_server_the_command_asks_github_itself(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    async with serving(hub()) as url:

        def work() -> None:
            assert capi.output("identities", "usage") == "There are no identities yet. Link one: capi auth\n"
            add_at(capi, url, "ann", "ben")
            rows = [re.split(r"  +", line) for line in capi.output("identities", "usage").splitlines()]
            assert rows[0] == ["NAME", "PLAN", "KIND", "USED", "LEFT", "OF", "LEFT %", "RESETS"]
            assert [row[0] for row in rows[1:]] == ["ann"] * 3 + ["ben"] * 3
            assert rows[1][1:7] == ["individual", "premium_interactions", "0", "300", "300", "100"]
            assert capi.output("check-usage") == capi.output("identities", "usage"), "as other proxies call it"
            [one] = msgspec.json.decode(capi.output("identities", "usage", "ben", "--json"), type=list[IdentityUsage])
            assert (one.identity, one.problem) == ("ben", None)

        await trio.to_thread.run_sync(work)


async def test_what_github_does_not_say_is_a_failure_of_that_identity_only(tmp_path: Path) -> None:
    github = hub()
    github.revoke(f"{TOKEN.reveal()}1")
    capi = Capi(tmp_path / "data")
    async with serving(github) as url:

        def work() -> None:
            add_at(capi, url, "ann", "ben")
            failed = capi.run("identities", "usage", "--json")
            ann, ben = msgspec.json.decode(failed.stdout, type=list[IdentityUsage])
            assert (ann.problem, ben.usage, failed.exit_code) == (None, None, 1)
            assert failed.stderr == f"warning: ben: {ben.problem}\n"
            assert capi.run("identities", "usage", "ann").exit_code == 0
            assert "ben" in capi.run("identities", "usage", "ben").stdout

        await trio.to_thread.run_sync(work)


def test_whoever_does_not_want_to_wait_for_github_may_go(capi: Capi, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise BaseExceptionGroup("of a nursery", [KeyboardInterrupt()])

    monkeypatch.setattr(identities, "operate", interrupted)
    result = capi.run("identities", "usage")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (1, "", "Aborted!")


async def test_a_github_that_is_not_there_leaves_the_output_to_programs(tmp_path: Path) -> None:
    """What is logged goes where logs go."""
    capi = Capi(tmp_path / "data")

    def work() -> None:
        add_at(capi, "http://127.0.0.1:9", "ann")
        failed = capi.run("identities", "usage", "--json")
        [one] = msgspec.json.decode(failed.stdout, type=list[IdentityUsage])
        assert (one.usage, failed.exit_code) == (None, 1)
        assert "GitHub cannot be reached" in failed.stderr

    await trio.to_thread.run_sync(work)
