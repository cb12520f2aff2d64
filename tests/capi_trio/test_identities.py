"""The book of identities: memory, database and token files change together, and whoever watches is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs

from capi_core.identities import IdentityDraft, IdentityEdit, IdentityRecord, IdentityState
from capi_trio import identities as module
from capi_trio.identities import IdentityBook, IdentityChoiceError, IdentityView
from capi_trio.keyring import CLI, Actor
from capi_trio.storage.errors import (
    AuditUnavailable,
    DatabaseUnavailable,
    IdentityConflict,
    IdentityExists,
    IdentityNotFound,
)
from capi_trio.token_files import TOKENS_NAME, TokenFileError, TokenFiles
from capi_trio.upstream import Secret
from tests.capi_trio.helpers import FullDisk, Ring, audit_lines, book_of, open_ring, stored_identities
from tests.capi_trio.storage.helpers import NOW, file_contents

TOKEN = Secret("gho_" + "a1B" * 12)
ADMIN = Actor("key_admin", "admin", "192.0.2.7", "a browser")
PAUSE, STOP = IdentityEdit(state=IdentityState.PAUSED), IdentityEdit(state=IdentityState.STOPPED, reason="abuse")
RESUME = IdentityEdit(state=IdentityState.ACTIVE)


async def add(ring: Ring, name: str = "a", owner: str | None = "Ann") -> IdentityRecord:
    return await ring.book.add(IdentityDraft(name=name, owner=owner), TOKEN, CLI)


def token_files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / TOKENS_NAME).glob("*"))


async def actions(ring: Ring) -> list[str]:
    return [line.action for line in await audit_lines(ring.store)]


# -- add ----------------------------------------------------------------------------------------------------------


async def test_a_new_identity_is_there_stored_and_has_its_token_when_its_addition_returns(tmp_path: Path) -> None:
    draft = IdentityDraft(name="a", host="GitHub.com", login="octo", owner="Ann", max_in_flight=2)
    async with open_ring(tmp_path / "data") as ring:
        record = await ring.book.add(draft, TOKEN, ADMIN)
        assert record.id.startswith("idn_")
        assert record == draft.record(id=record.id, now_ms=NOW)
        assert ring.book.live() == (record,) == await stored_identities(ring.store)
        assert ring.book.find("a") == record
        assert (await ring.book.token("a")).reveal() == TOKEN.reveal()
        [line] = await audit_lines(ring.store)
        assert (line.action, line.target, line.before, line.reason) == ("identity.add", record.id, None, None)
        assert line.after == msgspec.to_builtins(IdentityView.of(record))
        assert (line.actor_key_id, line.actor_tier, line.ip, line.user_agent) == (
            "key_admin", "admin", "192.0.2.7", "a browser",
        )  # fmt: skip


async def test_identities_outlive_the_process(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        records = (await add(ring), await add(ring, "b", None))
    async with open_ring(tmp_path / "data", seed=1) as ring:
        assert ring.book.live() == records
        assert (await ring.book.token("b")).reveal() == TOKEN.reveal()


async def test_a_token_is_nowhere_but_in_its_file(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await add(ring)
        await ring.book.edit("a", PAUSE, CLI)
    for name, content in file_contents(tmp_path / "data").items():
        assert TOKEN.reveal().encode() not in content, name


@pytest.mark.parametrize(
    ("draft", "token", "fields"),
    [
        (IdentityDraft(name="A", host="?", owner=""), TOKEN, ["name", "host", "owner"]),
        (IdentityDraft(name="a", max_in_flight=0), Secret("not one"), ["max_in_flight", "token"]),
        (IdentityDraft(name="a"), Secret(TOKEN.reveal() + "\n"), ["token"]),
    ],
)
async def test_an_identity_that_cannot_be_says_everything_that_is_wrong(
    tmp_path: Path, draft: IdentityDraft, token: Secret, fields: list[str]
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        with pytest.raises(IdentityChoiceError) as caught:
            await ring.book.add(draft, token, CLI)
        assert [problem.field for problem in caught.value.problems] == fields
        assert token.reveal() not in str(caught.value)
        assert (ring.book.live(), await actions(ring)) == ((), [])
        assert token_files(tmp_path / "data") == []


async def test_a_second_identity_of_a_name_leaves_the_first_and_its_token(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        with pytest.raises(IdentityExists):
            await ring.book.add(IdentityDraft(name="a"), Secret("gho_another"), CLI)
        assert ring.book.live() == (record,)
        assert (await ring.book.token("a")).reveal() == TOKEN.reveal()
        assert await actions(ring) == ["identity.add"]


async def test_without_a_place_for_its_token_there_is_no_identity(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        (tmp_path / "data" / TOKENS_NAME).touch()  # so that what is half done cannot be taken back, either
        with pytest.raises(TokenFileError, match="is not a directory"):
            await add(ring)
        assert ring.book.live() == () == await stored_identities(ring.store)
        assert await actions(ring) == []


@pytest.mark.parametrize("when", ["before", "at the commit"])
async def test_an_addition_that_cannot_be_audited_leaves_no_token(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AuditUnavailable("the disk is full")

    async with open_ring(tmp_path / "data") as ring:
        with monkeypatch.context() as patched:
            if when == "before":
                ring.store.database.attach(None)
                ring.store.database.attach(FullDisk())
            else:
                patched.setattr("capi_trio.storage.outbox.put", broken)
            with pytest.raises(AuditUnavailable):
                await add(ring)
        assert ring.book.live() == () == await stored_identities(ring.store)
        assert token_files(tmp_path / "data") == []


async def test_what_a_killed_addition_left_half_made_is_gone_after_loading(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await add(ring)
        (tmp_path / "data" / TOKENS_NAME / ".b.token.tmp").write_text("gho_ha")
        await ring.book.load()
        assert token_files(tmp_path / "data") == ["a.token"]


# -- link again ---------------------------------------------------------------------------------------------------

AGAIN = IdentityDraft(name="a", login="octo", max_in_flight=9)
NEW = Secret("ghu_" + "c2D" * 12)


async def test_an_account_that_is_linked_again_gets_its_new_token_and_keeps_the_rest(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await add(ring)
        before = await ring.book.edit("a", IdentityEdit(max_in_flight=3, shared=True, reason="on call"), CLI)
        ring.clock.now += 1
        after = await ring.book.relink(AGAIN, NEW, ADMIN)
        assert after == evolve(before, login="octo", updated_at=NOW + 1)
        assert ring.book.live() == (after,) == await stored_identities(ring.store)
        assert (await ring.book.token("a")).reveal() == NEW.reveal()
        line = (await audit_lines(ring.store))[-1]
        assert (line.action, line.target, line.actor_key_id) == ("identity.link", after.id, "key_admin")


async def test_nobody_elses_identity_is_linked_again(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await add(ring)
        kept = await ring.book.relink(AGAIN, TOKEN, CLI)
        with pytest.raises(IdentityExists, match=r"for octo at github\.com: remove it first"):
            await ring.book.relink(evolve(AGAIN, login="other"), NEW, CLI)
        with pytest.raises(IdentityNotFound):
            await ring.book.relink(evolve(AGAIN, name="b"), NEW, CLI)
        with pytest.raises(IdentityChoiceError, match="token must be"):
            await ring.book.relink(AGAIN, Secret("x"), CLI)
        assert ring.book.live() == (kept,)
        assert (await ring.book.token("a")).reveal() == TOKEN.reveal()
        assert await actions(ring) == ["identity.add", "identity.link"]


async def test_a_link_that_is_not_committed_puts_the_old_token_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise AuditUnavailable("the disk is full")

    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        with monkeypatch.context() as patched:
            patched.setattr("capi_trio.storage.outbox.put", broken)
            with pytest.raises(AuditUnavailable):
                await ring.book.relink(AGAIN, NEW, CLI)
        assert ring.book.live() == (record,) == await stored_identities(ring.store)
        assert (await ring.book.token("a")).reveal() == TOKEN.reveal()


# -- edit and remove ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "wanted"),
    [
        ([PAUSE], "identity.pause"),
        ([STOP], "identity.stop"),
        ([PAUSE, RESUME], "identity.resume"),
        ([IdentityEdit(shared=True, reason="on call")], "identity.share"),
        ([IdentityEdit(shared=True, reason="on call"), IdentityEdit(shared=False)], "identity.unshare"),
        ([IdentityEdit(owner="Bob")], "identity.edit"),
        ([IdentityEdit(max_in_flight=7, login="octo")], "identity.edit"),
        ([IdentityEdit(owner="Bob", shared=True, reason="mine")], "identity.edit"),
        ([IdentityEdit(owner="Bob", state=IdentityState.PAUSED)], "identity.edit"),
        ([IdentityEdit()], "identity.edit"),
    ],
)
async def test_each_change_takes_effect_in_memory_and_database_and_is_audited(
    tmp_path: Path, edits: list[IdentityEdit], wanted: str
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        before = await add(ring)
        other = await add(ring, "b")
        for edit in edits[:-1]:
            before = await ring.book.edit("a", edit, CLI)
        ring.clock.now += 5
        after = await ring.book.edit("a", edits[-1], ADMIN)
        assert after == edits[-1].apply(before, NOW + 5)
        assert ring.book.live() == (after, other) == await stored_identities(ring.store)
        line = (await audit_lines(ring.store))[-1]
        assert (line.action, line.target, line.reason, line.ts) == (wanted, after.id, edits[-1].reason, NOW + 5)
        assert line.before == msgspec.to_builtins(IdentityView.of(before))
        assert line.after == msgspec.to_builtins(IdentityView.of(after))
        assert line.actor_key_id == "key_admin"


async def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        with pytest.raises(IdentityChoiceError, match="reason must say why"):
            await ring.book.edit("a", IdentityEdit(shared=True), CLI)
        with pytest.raises(IdentityConflict, match="is active already"):
            await ring.book.edit("a", RESUME, CLI)
        with pytest.raises(IdentityNotFound):
            await ring.book.edit("b", PAUSE, CLI)
        with pytest.raises(IdentityNotFound):
            await ring.book.remove("b", CLI)
        with pytest.raises(IdentityChoiceError, match="reason must be printable"):
            await ring.book.remove("a", CLI, reason="a\nb")
        ring.store.database.attach(None)
        ring.store.database.attach(FullDisk())
        with pytest.raises(AuditUnavailable):
            await ring.book.edit("a", STOP, CLI)
        with pytest.raises(AuditUnavailable):
            await ring.book.remove("a", CLI)
        assert ring.book.live() == (record,) == await stored_identities(ring.store)
        assert (await ring.book.token("a")).reveal() == TOKEN.reveal()


async def test_a_removed_identity_and_its_token_are_gone_and_its_name_is_free(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        record, other = await add(ring), await add(ring, "b")
        gone = await ring.book.remove("a", CLI, reason="left")
        assert gone == record.removed(NOW)
        assert ring.book.live() == (other,)
        assert token_files(tmp_path / "data") == ["b.token"]
        with pytest.raises(IdentityNotFound, match="there is no identity 'a'"):
            ring.book.find("a")
        with pytest.raises(IdentityNotFound, match="there is no identity 'a'"):
            await ring.book.token("a")
        line = (await audit_lines(ring.store))[-1]
        assert (line.action, line.reason, line.target) == ("identity.remove", "left", record.id)
        again = await add(ring)
        assert again.id != record.id
        assert ring.book.live() == (again, other)


async def test_an_identity_whose_token_cannot_be_deleted_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(_: TokenFiles, name: str) -> None:
        raise TokenFileError(f"{name}.token cannot be removed")

    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        with monkeypatch.context() as patched:
            patched.setattr(TokenFiles, "delete", stuck)
            with pytest.raises(TokenFileError):
                await ring.book.remove("a", CLI)
        assert ring.book.live() == (record,) == await stored_identities(ring.store)
        assert await actions(ring) == ["identity.add"]


@pytest.mark.parametrize("usable", [True, False])
async def test_a_removal_that_is_not_committed_puts_the_token_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    """Unless others could read it: what cannot be used is not written anew as if it could."""

    def broken(*_: object) -> None:
        raise AuditUnavailable("the disk is full")

    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        (tmp_path / "data" / TOKENS_NAME / "a.token").chmod(0o600 if usable else 0o644)
        with monkeypatch.context() as patched:
            patched.setattr("capi_trio.storage.outbox.put", broken)
            with pytest.raises(AuditUnavailable):
                await ring.book.remove("a", CLI)
        assert ring.book.live() == (record,) == await stored_identities(ring.store)
        assert token_files(tmp_path / "data") == (["a.token"] if usable else [])
        assert await ring.book.token_problems([record]) == (
            [None] if usable else [f"{tmp_path}/data/identities/a.token cannot be read: No such file or directory"]
        )


# -- who is told --------------------------------------------------------------------------------------------------


async def test_a_watcher_sees_every_change_before_it_is_acknowledged(tmp_path: Path) -> None:
    seen: list[tuple[IdentityRecord, ...]] = []
    async with open_ring(tmp_path / "data") as ring:
        ring.book.watch(seen.append)
        assert seen == [()]
        changes: list[Callable[[], Awaitable[IdentityRecord]]] = [
            lambda: add(ring),
            lambda: ring.book.edit("a", STOP, CLI),
            lambda: ring.book.edit("a", IdentityEdit(max_in_flight=1), CLI),
            lambda: ring.book.remove("a", CLI),
        ]
        for number, make in enumerate(changes, start=2):
            record = await make()
            assert len(seen) == number
            assert seen[-1] == (() if record.removed_at else (record,)) == ring.book.live()


async def test_a_reload_tells_what_another_replica_did_and_nothing_when_that_is_nothing(tmp_path: Path) -> None:
    seen: list[tuple[IdentityRecord, ...]] = []
    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        other = book_of(ring.store, ring.clock, seed=1)
        other.watch(seen.append)
        await other.load()
        await other.load()
        assert seen == [(), (record,)]
        stopped = await ring.book.edit("a", STOP, CLI)
        await other.load()
        assert seen[2:] == [(stopped,)]
        assert other.live() == (stopped,)


async def test_a_disk_that_takes_no_changes_hides_no_stop_of_another_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be left half-made while this process has the directory: there is nothing to sweep."""
    monkeypatch.setattr(module, "_FOLLOW_S", 0.001)

    def sweep(_: TokenFiles) -> None:
        raise TokenFileError("a", "the file system is read-only")

    async with open_ring(tmp_path / "data") as ring, trio.open_nursery() as nursery:
        await add(ring)
        other = book_of(ring.store, ring.clock, seed=1)
        await other.load()
        monkeypatch.setattr(TokenFiles, "sweep", sweep)
        seen = trio.Event()
        other.watch(lambda live: seen.set() if live[0].state is IdentityState.STOPPED else None)
        nursery.start_soon(other.follow)
        await ring.book.edit("a", STOP, CLI)
        with trio.fail_after(5):
            await seen.wait()
        nursery.cancel_scope.cancel()


async def test_following_reloads_and_outlives_a_database_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    class Stopping(Exception):
        pass

    outcomes: list[Exception | None] = [None, DatabaseUnavailable("db", "is away"), None, Stopping()]
    times: list[float] = []

    async def reload(_: IdentityBook) -> None:
        times.append(trio.current_time())
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    async with open_ring(tmp_path / "data") as ring:
        monkeypatch.setattr(IdentityBook, "reload", reload)
        began = trio.current_time()
        with capture_logs() as logs, pytest.raises(Stopping):
            await ring.book.follow()
    assert [time - began for time in times] == [2, 4, 6, 8]
    assert [(line["event"], line["reason"]) for line in logs] == [("identities_not_reloaded", "db: is away")]


async def test_of_two_stops_at_once_one_is_told_that_it_was_late(tmp_path: Path) -> None:
    outcomes: list[str] = []

    async def stop(ring: Ring) -> None:
        try:
            outcomes.append((await ring.book.edit("a", STOP, CLI)).state.value)
        except IdentityConflict as error:
            outcomes.append(str(error))

    async with open_ring(tmp_path / "data") as ring:
        record = await add(ring)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, ring)
            nursery.start_soon(stop, ring)
        assert sorted(outcomes) == ["stopped", "the identity 'a' is stopped already"]
        assert ring.book.live() == (evolve(record, state=IdentityState.STOPPED, state_reason="abuse"),)
        assert await actions(ring) == ["identity.add", "identity.stop"]


async def test_token_problems_are_told_for_each(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        records = [await add(ring, name) for name in ("a", "b")]
        (tmp_path / "data" / TOKENS_NAME / "b.token").unlink()
        fine, problem = await ring.book.token_problems(records)
        assert fine is None
        assert problem is not None
        assert "b.token cannot be read" in problem
        with pytest.raises(TokenFileError):
            await ring.book.token("b")
