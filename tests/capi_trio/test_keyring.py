"""The keyring: memory and database change together, and memory is never behind for a caller to notice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs

from capi_core.credentials import FOREIGN_TOKEN, INVALID_API_KEY
from capi_core.errors import Problem
from capi_core.keys import (
    Budget,
    BudgetPeriod,
    BudgetUnit,
    KeyDraft,
    KeyEdit,
    KeyRecord,
    Tier,
    hash_prefix,
    is_well_formed,
    key_hash,
)
from capi_trio import keyring as module
from capi_trio.keyring import CLI, Actor, KeyChoiceError, Keyring, KeyView
from capi_trio.storage.errors import AuditUnavailable, DatabaseUnavailable, KeyNotActive, KeyNotFound
from tests.capi_trio.helpers import FullDisk, audit_lines, bearer, keyring_of, open_ring, stored
from tests.capi_trio.storage.helpers import NOW, file_contents, until

HOUR = 3_600_000
ADMIN = Actor("key_admin", "admin", "192.0.2.7", "a browser")


# -- create -------------------------------------------------------------------------------------------------------


async def test_a_new_key_is_valid_and_stored_when_its_creation_returns(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make(KeyDraft(label="a", owner="someone", allowed_models=("m", "n"), rate_limit_override=7))
        assert is_well_formed(issued.text)
        assert issued.record.hash == key_hash(issued.text)
        assert ring.who(issued.text) == issued.record
        assert await stored(ring.store) == {issued.record.id: issued.record}
        assert issued.record == KeyRecord(
            id=issued.record.id,
            hash=issued.record.hash,
            tier=Tier.CLIENT,
            label="a",
            owner="someone",
            allowed_models=("m", "n"),
            rate_limit_override=7,
            created_at=NOW,
        )


async def test_keys_outlive_the_process(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
    async with open_ring(tmp_path / "data", seed=1) as ring:
        assert ring.who(issued.text) == issued.record


async def test_the_text_of_a_key_is_nowhere_but_with_its_maker(tmp_path: Path) -> None:
    """Not in any file of the data directory, not in the audit log, and not in a `repr`."""
    async with open_ring(tmp_path / "data") as ring:
        first = await ring.make()
        issued = await ring.keyring.rotate(first.record.id, HOUR, CLI)
        assert issued.text not in repr(issued)
        assert issued.record.hash not in repr(issued)
    for name, content in file_contents(tmp_path / "data").items():
        assert b"sk-cap-" not in content, name
        assert name == "capi.db" or issued.record.hash.encode() not in content


@pytest.mark.parametrize(
    ("draft", "fields"),
    [
        (KeyDraft(label=" "), ["label"]),
        (KeyDraft(label="a\nb"), ["label"]),
        (KeyDraft(label="a", allowed_models="gpt"), ["allowed_models"]),
        (KeyDraft(label="a", allowed_models=()), ["allowed_models"]),
        (KeyDraft(label="a", rate_limit_override=601), ["rate_limit_override"]),
        (KeyDraft(label="a", expires_at=NOW), ["expires_at"]),
        (KeyDraft(label="", owner="\0", expires_at=0), ["label", "owner", "expires_at"]),
    ],
)
async def test_a_key_that_cannot_be_says_everything_that_is_wrong(
    tmp_path: Path, draft: KeyDraft, fields: list[str]
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        with pytest.raises(KeyChoiceError) as caught:
            await ring.keyring.create(draft, CLI)
        assert [problem.field for problem in caught.value.problems] == fields
        assert all(name in str(caught.value) for name in fields)
        assert ring.keyring.all() == []
        assert await audit_lines(ring.store) == []


async def test_a_key_whose_text_cannot_be_delivered_never_exists(tmp_path: Path) -> None:
    seen: list[str] = []

    def deliver(text: str) -> None:
        seen.append(text)
        raise OSError("no such directory")

    async with open_ring(tmp_path / "data") as ring:
        old = await ring.make()
        with pytest.raises(OSError, match="no such directory"):
            await ring.keyring.create(KeyDraft(label="b"), CLI, deliver=deliver)
        with pytest.raises(OSError, match="no such directory"):
            await ring.keyring.rotate(old.record.id, HOUR, CLI, deliver=deliver)
        assert [ring.who(text) for text in seen] == [INVALID_API_KEY] * 2
        assert ring.keyring.all() == [old.record]
        assert await stored(ring.store) == {old.record.id: old.record}
        assert [line.action for line in await audit_lines(ring.store)] == ["key.create"]


async def test_a_text_is_delivered_before_its_key_is_valid(tmp_path: Path) -> None:
    found: list[KeyRecord | Problem] = []
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.keyring.create(KeyDraft(label="a"), CLI, deliver=lambda text: found.append(ring.who(text)))
        new = await ring.keyring.rotate(issued.record.id, 0, CLI, deliver=lambda text: found.append(ring.who(text)))
        assert found == [INVALID_API_KEY] * 2
        assert ring.who(new.text) == new.record


# -- edit, rotate, revoke -----------------------------------------------------------------------------------------


async def test_an_edit_takes_effect_in_memory_and_database_together(tmp_path: Path) -> None:
    budget = Budget(BudgetUnit.TOKENS, 5, BudgetPeriod.DAY)
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make(KeyDraft(label="a", owner="someone"))
        edit = KeyEdit(label="b", owner=None, allowed_models=["m"], budget=budget, expires_at=NOW + HOUR)
        record = await ring.keyring.edit(issued.record.id, edit, CLI)
        assert record == edit.apply(issued.record)
        assert (record.label, record.owner, record.allowed_models) == ("b", None, ("m",))
        assert ring.who(issued.text) == record
        assert await stored(ring.store) == {record.id: record}
        ring.clock.now += HOUR
        assert ring.who(issued.text) == INVALID_API_KEY


async def test_an_edit_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        with pytest.raises(KeyChoiceError, match="debug_expires_at"):
            await ring.keyring.edit(issued.record.id, KeyEdit(label="b", debug_expires_at=NOW + 25 * HOUR), CLI)
        assert ring.who(issued.text) == issued.record


async def test_a_rotated_key_works_for_its_grace_and_the_new_one_takes_its_place(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = await ring.make(KeyDraft(label="a", owner="someone", allowed_models=("m",), rate_limit_override=9))
        ring.clock.now += 1000
        new = await ring.keyring.rotate(old.record.id, HOUR, CLI)
        assert new.text != old.text
        assert new.record == evolve(
            old.record,
            id=new.record.id,
            hash=key_hash(new.text),
            created_at=NOW + 1000,
            rotated_from=old.record.id,
        )
        ended = evolve(old.record, expires_at=NOW + 1000 + HOUR)
        assert (ring.who(old.text), ring.who(new.text)) == (ended, new.record)
        assert await stored(ring.store) == {ended.id: ended, new.record.id: new.record}
        ring.clock.now += HOUR
        assert (ring.who(old.text), ring.who(new.text)) == (INVALID_API_KEY, new.record)


async def test_a_rotation_without_grace_ends_the_old_key_at_once(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = await ring.make()
        new = await ring.keyring.rotate(old.record.id, 0, CLI)
        assert (ring.who(old.text), ring.who(new.text)) == (INVALID_API_KEY, new.record)


async def test_a_rotation_does_not_prolong_debug_capture(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = await ring.make()
        await ring.keyring.edit(old.record.id, KeyEdit(debug_expires_at=NOW + HOUR), CLI)
        new = await ring.keyring.rotate(old.record.id, HOUR, CLI)
        assert new.record.debug_expires_at is None


async def test_a_revoked_key_is_refused_from_the_moment_that_its_revocation_returns(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        assert ring.who(issued.text) == issued.record
        record = await ring.keyring.revoke(issued.record.id, CLI)
        assert ring.who(issued.text) == INVALID_API_KEY
        assert record == evolve(issued.record, revoked_at=NOW)
        assert await stored(ring.store) == {record.id: record}
        ring.clock.now -= 10 * HOUR
        assert ring.who(issued.text) == INVALID_API_KEY


@pytest.mark.parametrize("ended", ["revoked", "expired"])
async def test_what_has_ended_is_not_brought_back(tmp_path: Path, ended: str) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make(KeyDraft(label="a", expires_at=NOW + HOUR))
        key_id = issued.record.id
        if ended == "revoked":
            await ring.keyring.revoke(key_id, CLI)
            with pytest.raises(KeyNotActive):
                await ring.keyring.edit(key_id, KeyEdit(expires_at=None), CLI)
            with pytest.raises(KeyNotActive):
                await ring.keyring.revoke(key_id, CLI)
        else:
            ring.clock.now += HOUR
        with pytest.raises(KeyNotActive):
            await ring.keyring.rotate(key_id, HOUR, CLI)
        assert ring.who(issued.text) == INVALID_API_KEY


# What any change must keep to, whichever it is.

Change = Callable[[Keyring, str], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "create": lambda keyring, _: keyring.create(KeyDraft(label="b"), CLI),
    "edit": lambda keyring, key_id: keyring.edit(key_id, KeyEdit(label="b"), CLI),
    "rotate": lambda keyring, key_id: keyring.rotate(key_id, HOUR, CLI),
    "revoke": lambda keyring, key_id: keyring.revoke(key_id, CLI),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_fails_changes_nothing(tmp_path: Path, change: Change) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        ring.store.database.attach(None)
        ring.store.database.attach(FullDisk())
        with pytest.raises(AuditUnavailable):
            await change(ring.keyring, issued.record.id)
        assert ring.keyring.all() == [issued.record]
        assert ring.who(issued.text) == issued.record
        assert await stored(ring.store) == {issued.record.id: issued.record}


@pytest.mark.parametrize("change", [CHANGES[name] for name in ("edit", "rotate", "revoke")])
async def test_a_key_that_is_not_there_cannot_be_changed(tmp_path: Path, change: Change) -> None:
    async with open_ring(tmp_path / "data") as ring:
        with pytest.raises(KeyNotFound, match="key_none"):
            await change(ring.keyring, "key_none")
        assert ring.keyring.all() == []
        assert await audit_lines(ring.store) == []


@pytest.mark.parametrize("late", ["load", "edit"])
async def test_memory_follows_the_database_in_the_databases_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """What was read or changed before a revocation, and reaches memory after it, does not bring the key back."""
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        name = "read" if late == "load" else "mutate"
        genuine = getattr(ring.store.database, name)
        done, let_go, revoked = trio.Event(), trio.Event(), trio.Event()

        async def held_up(work: object) -> object:
            result = await genuine(work)
            done.set()
            await let_go.wait()
            return result

        async def revoke() -> None:
            await ring.keyring.revoke(issued.record.id, CLI)
            revoked.set()

        monkeypatch.setattr(ring.store.database, name, held_up)
        async with trio.open_nursery() as nursery:
            if late == "load":
                nursery.start_soon(ring.keyring.load)
            else:
                nursery.start_soon(ring.keyring.edit, issued.record.id, KeyEdit(label="b"), CLI)
            await done.wait()
            monkeypatch.setattr(ring.store.database, name, genuine)
            nursery.start_soon(revoke)
            with trio.move_on_after(0.1):  # in which a revocation that waits for nobody would be through
                await revoked.wait()
            let_go.set()
        assert ring.who(issued.text) == INVALID_API_KEY
        assert {record.id: record for record in ring.keyring.all()} == await stored(ring.store)


# -- the audit rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "action"),
    [
        (KeyEdit(label="b"), "key.edit"),
        (KeyEdit(expires_at=None), "key.edit"),
        (KeyEdit(), "key.edit"),
        (KeyEdit(allowed_models=("m",)), "key.scope_change"),
        (KeyEdit(rate_limit_override=None), "key.rate_limit_override_change"),
        (KeyEdit(debug_expires_at=NOW + 1), "key.debug_toggle"),
        (KeyEdit(allowed_models=("m",), rate_limit_override=3), "key.edit"),
        (KeyEdit(label="b", debug_expires_at=None), "key.edit"),
    ],
)
async def test_an_edit_is_audited_by_the_one_action_that_names_it(tmp_path: Path, edit: KeyEdit, action: str) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        await ring.keyring.edit(issued.record.id, edit, CLI)
        assert [line.action for line in await audit_lines(ring.store)] == ["key.create", action]


async def test_a_change_is_audited_with_who_made_it_and_what_it_changed(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.keyring.create(KeyDraft(label="a"), ADMIN)
        key_id = issued.record.id
        edited = await ring.keyring.edit(key_id, KeyEdit(label="b"), ADMIN)
        new = await ring.keyring.rotate(key_id, HOUR, ADMIN)
        ended = await ring.keyring.revoke(key_id, ADMIN, reason="was on a slide")
        lines = await audit_lines(ring.store)
        by = {(line.actor_key_id, line.actor_tier, line.ip, line.user_agent) for line in lines}
        assert by == {("key_admin", "admin", "192.0.2.7", "a browser")}
        assert [(line.action, line.target, line.reason) for line in lines] == [
            ("key.create", key_id, None),
            ("key.edit", key_id, None),
            ("key.rotate", key_id, None),
            ("key.revoke", key_id, "was on a slide"),
        ]

        def shown(record: KeyRecord | None) -> object:
            return None if record is None else msgspec.to_builtins(KeyView.of(record))

        rotated = evolve(edited, expires_at=NOW + HOUR)
        pairs = [(None, issued.record), (issued.record, edited), (edited, new.record), (rotated, ended)]
        assert [(line.before, line.after) for line in lines] == [(shown(one), shown(two)) for one, two in pairs]


async def test_an_audit_row_shows_a_key_by_its_hash_prefix_only(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        [line] = await audit_lines(ring.store)
        assert line.after is not None
        assert line.after["hash_prefix"] == hash_prefix(issued.record.hash)
        assert issued.record.hash not in str(line)
        assert (line.actor_key_id, line.actor_tier, line.ip) == (None, None, None)


def test_a_view_spells_a_budget_out() -> None:
    record = KeyRecord(id="i", hash="f" * 64, tier=Tier.ADMIN, label="a", created_at=NOW)
    assert KeyView.of(record).budget is None
    budget = Budget(BudgetUnit.MONEY, 5_000_000, BudgetPeriod.MONTH)
    assert KeyView.of(evolve(record, budget=budget)).budget == "5000000 money a month"


# -- looking up ---------------------------------------------------------------------------------------------------


async def test_a_request_without_a_usable_key_is_told_why(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        other = issued.text[:7] + issued.text[8:] + "A"
        assert ring.who(other) == INVALID_API_KEY
        assert ring.who("gho_something") == FOREIGN_TOKEN
        missing = ring.keyring.authenticate([])
        both = ring.keyring.authenticate([*bearer(issued.text), (b"x-api-key", b"another")])
        assert isinstance(missing, Problem)
        assert isinstance(both, Problem)
        assert (missing.code, both.code) == ("missing_api_key", "ambiguous_credentials")
        assert ring.keyring.authenticate([(b"X-Api-Key", issued.text.encode())]) == issued.record


async def test_all_keys_are_listed_newest_first(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        made = []
        for label in "abc":
            made.append((await ring.make(label)).record)
            ring.clock.now += 1
        assert ring.keyring.all() == made[::-1]


async def test_a_key_is_found_by_id_by_label_and_by_hash_prefix(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        record = (await ring.make("laptop")).record
        await ring.make("server")
        for name in (record.id, "laptop", hash_prefix(record.hash)):
            assert ring.keyring.find(name) == record
        for name in ("", "lap", "Laptop", record.id[:-1], record.hash, record.hash[:7]):
            assert ring.keyring.find(name) is None


async def test_a_name_that_fits_two_keys_finds_neither(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        first, second = (await ring.make("twin")).record, (await ring.make("twin")).record
        assert ring.keyring.find("twin") is None
        assert ring.keyring.find(first.id) == first
        await ring.make(second.id)
        assert ring.keyring.find(second.id) == second, "an id goes before a label"


async def test_an_admin_is_active_until_it_is_revoked_or_expires(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert not ring.keyring.has_active_admin()
        await ring.make()
        assert not ring.keyring.has_active_admin()
        one = await ring.make(KeyDraft(label="a", tier=Tier.ADMIN))
        await ring.make(KeyDraft(label="a", tier=Tier.ADMIN, expires_at=NOW + HOUR))
        await ring.keyring.revoke(one.record.id, CLI)
        assert ring.keyring.has_active_admin()
        ring.clock.now += HOUR
        assert not ring.keyring.has_active_admin()


async def test_loading_reads_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    async with open_ring(tmp_path / "data") as ring:
        made = {(await ring.make(label)).record for label in "abcde"}
        await ring.keyring.load()
        assert set(ring.keyring.all()) == made


# -- replicas -----------------------------------------------------------------------------------------------------


async def test_a_replica_follows_the_changes_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOLLOW_S", 0.001)
    async with open_ring(tmp_path / "data") as ring:
        replica = keyring_of(ring.store, ring.clock, seed=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replica.follow)
            issued = await ring.make()
            await until(lambda: replica.authenticate(bearer(issued.text)) == issued.record)
            await ring.keyring.revoke(issued.record.id, CLI)
            await until(lambda: replica.authenticate(bearer(issued.text)) == INVALID_API_KEY)
            nursery.cancel_scope.cancel()


async def test_a_replica_keeps_its_keys_while_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart of the database server must not end the gateways."""
    monkeypatch.setattr(module, "_FOLLOW_S", 0.001)
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        genuine = ring.store.database.read
        tries = 0

        async def away(_: object) -> None:
            nonlocal tries
            tries += 1
            raise DatabaseUnavailable("postgresql://db", "cannot be used now")

        monkeypatch.setattr(ring.store.database, "read", away)
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ring.keyring.follow)
                await until(lambda: tries >= 2)
                assert ring.who(issued.text) == issued.record
                other = keyring_of(ring.store, ring.clock, seed=1)
                monkeypatch.setattr(ring.store.database, "read", genuine)
                await other.create(KeyDraft(label="b"), CLI)
                await until(lambda: len(ring.keyring.all()) == 2)
                nursery.cancel_scope.cancel()
        assert {line["event"] for line in logs} == {"keys_not_reloaded"}
