"""Every command of the command line: what it answers, what it changes, and what it audits."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from attrs import evolve
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from capi_core.credentials import INVALID_API_KEY
from capi_core.keys import Budget, BudgetPeriod, BudgetUnit, KeyDraft, KeyRecord, Tier, hash_prefix
from capi_trio.keyring import KeyView
from capi_trio.operations import (
    Answer,
    BackUp,
    BudgetChoice,
    Command,
    CreateKey,
    Done,
    EditConfig,
    EditKey,
    KeyAnswer,
    KeysAnswer,
    ListKeys,
    RecoverAdmin,
    Refused,
    RevokeKey,
    RotateKey,
    ServerStatus,
    ShowKey,
    ShowStatus,
)
from capi_trio.storage.tables import keys
from capi_trio.storage.usage import UsageBatch
from capi_trio.usage_reports import ShowUsage, UsageAnswer, UsageBy
from tests.capi_trio.helpers import FullDisk, Ring, audit_lines, open_ring, stored
from tests.capi_trio.storage.helpers import NOW
from tests.support.usage_rows import usage_event

HOUR = 3_600_000
FULL = KeyDraft(
    label="a",
    owner="someone",
    identity="work",
    allowed_models=("m",),
    rate_limit_override=7,
    budget=Budget(BudgetUnit.TOKENS, 5, BudgetPeriod.DAY),
    expires_at=NOW + HOUR,
)


async def run(ring: Ring, command: Command) -> Answer:
    """Carries a command out as it arrives over the control socket: encoded and decoded, as is its answer."""
    sent: Command = msgspec.json.decode(msgspec.json.encode(command), type=Command)
    answer = await ring.operations.run(sent)
    received: Answer = msgspec.json.decode(msgspec.json.encode(answer), type=Answer)
    assert received == answer
    return received


async def key_of(ring: Ring, command: Command) -> KeyAnswer:
    answer = await run(ring, command)
    assert isinstance(answer, KeyAnswer)
    return answer


async def refusal(ring: Ring, command: Command) -> str:
    """Why a command is refused; refused commands change nothing and leave no audit row."""
    before = ring.keyring.all(), await stored(ring.store), await audit_lines(ring.store)
    answer = await run(ring, command)
    assert isinstance(answer, Refused)
    assert (ring.keyring.all(), await stored(ring.store), await audit_lines(ring.store)) == before
    return answer.message


async def actions(ring: Ring) -> list[str]:
    return [line.action for line in await audit_lines(ring.store)]


# -- keys ---------------------------------------------------------------------------------------------------------


async def test_a_created_key_is_answered_with_its_text(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        answer = await key_of(ring, CreateKey(label="a"))
        assert answer.text is not None
        record = ring.who(answer.text)
        assert isinstance(record, KeyRecord)
        assert answer.key == KeyView.of(record)
        assert (record.tier, record.allowed_models, record.expires_at) == (Tier.CLIENT, ("*",), None)
        assert await actions(ring) == ["key.create"]
        assert answer.text not in repr(answer)


async def test_everything_about_a_key_can_be_chosen(tmp_path: Path) -> None:
    command = CreateKey(
        label="a",
        tier=Tier.ADMIN,
        owner="someone",
        identity="work",
        allowed_models=("m",),
        rate_limit_override=7,
        budget=BudgetChoice(5, BudgetUnit.TOKENS, BudgetPeriod.DAY),
        expires_at=NOW + HOUR,
    )
    async with open_ring(tmp_path / "data") as ring:
        answer = await key_of(ring, command)
        [record] = ring.keyring.all()
        assert record == evolve(FULL, tier=Tier.ADMIN).record(id=answer.key.id, hash=record.hash, now_ms=NOW)


async def test_an_edit_leaves_alone_what_it_does_not_name(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = (await ring.make(FULL)).record
        answer = await key_of(ring, EditKey(key="a", label="b"))
        assert ring.keyring.all() == [evolve(old, label="b")]
        assert answer == KeyAnswer(KeyView.of(evolve(old, label="b")))


async def test_an_edit_can_change_and_take_away_everything_it_names(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = (await ring.make(FULL)).record
        removal = EditKey(key=old.id, owner=None, identity=None, rate_limit_override=None, budget=None, expires_at=None)
        await key_of(ring, removal)
        bare = evolve(old, owner=None, identity=None, rate_limit_override=None, budget=None, expires_at=None)
        assert ring.keyring.all() == [bare]
        change = EditKey(
            key=old.id,
            label="b",
            owner="o",
            identity="i",
            allowed_models=("x", "y"),
            rate_limit_override=9,
            budget=BudgetChoice(1, BudgetUnit.MONEY, BudgetPeriod.MONTH),
            expires_at=NOW + 1,
        )
        await key_of(ring, change)
        assert ring.keyring.all() == [
            evolve(
                old,
                label="b",
                owner="o",
                identity="i",
                allowed_models=("x", "y"),
                rate_limit_override=9,
                budget=Budget(BudgetUnit.MONEY, 1, BudgetPeriod.MONTH),
                expires_at=NOW + 1,
            )
        ]
        assert await actions(ring) == ["key.create", "key.edit", "key.edit"]


async def test_a_rotation_answers_the_new_key(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        old = await ring.make()
        answer = await key_of(ring, RotateKey(hash_prefix(old.record.hash), HOUR))
        assert answer.text is not None
        new = ring.who(answer.text)
        assert isinstance(new, KeyRecord)
        assert answer.key == KeyView.of(new)
        assert new.rotated_from == old.record.id
        assert ring.who(old.text) == evolve(old.record, expires_at=NOW + HOUR)
        assert await actions(ring) == ["key.create", "key.rotate"]


async def test_a_revocation_answers_the_dead_key_and_keeps_its_reason(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await ring.make()
        answer = await key_of(ring, RevokeKey("a", "lost"))
        assert answer == KeyAnswer(KeyView.of(evolve(issued.record, revoked_at=NOW)))
        assert ring.who(issued.text) == INVALID_API_KEY
        assert [(line.action, line.reason) for line in await audit_lines(ring.store)] == [
            ("key.create", None),
            ("key.revoke", "lost"),
        ]


async def test_looking_changes_nothing_and_shows_no_text(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert await run(ring, ListKeys()) == KeysAnswer([])
        first = KeyView.of((await ring.make("a")).record)
        ring.clock.now += 1
        second = KeyView.of((await ring.make("b")).record)
        assert await run(ring, ListKeys()) == KeysAnswer([second, first])
        for name in (first.id, first.label, first.hash_prefix):
            assert await run(ring, ShowKey(name)) == KeyAnswer(first, None)
        assert await actions(ring) == ["key.create"] * 2


async def test_a_lost_admin_gets_another_key_and_the_audit_log_tells(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        answer = await key_of(ring, RecoverAdmin())
        assert answer.text is not None
        record = ring.who(answer.text)
        assert isinstance(record, KeyRecord)
        assert (record.tier, record.label) == (Tier.ADMIN, "recovered admin")
        assert [(line.action, line.target) for line in await audit_lines(ring.store)] == [("auth.recover", record.id)]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (CreateKey(label=""), "label must not be empty"),
        (CreateKey(label="b", allowed_models=()), 'allowed_models must name at least one model; ["*"] means all'),
        (
            CreateKey(label="b", owner="\n", expires_at=NOW),
            "owner must not be empty; expires_at must lie in the future",
        ),
        (EditKey(key="a", rate_limit_override=601), "rate_limit_override is more than 10 times the default"),
        (EditKey(key="nobody", label="b"), "there is no key 'nobody'"),
        (RotateKey("nobody", 0), "there is no key 'nobody'"),
        (RevokeKey("nobody"), "there is no key 'nobody'"),
        (ShowKey("nobody"), "there is no key 'nobody', or more than one; capi keys list shows their ids"),
        (EditKey(key="gone", label="b"), "is revoked; nothing about it can be changed"),
        (RotateKey("gone", 0), "is revoked; create a new one instead"),
        (RevokeKey("gone"), "is revoked already"),
    ],
)
async def test_what_an_operator_gets_wrong_is_refused_in_words(tmp_path: Path, command: Command, why: str) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await ring.make("a")
        await ring.make("gone")
        await run(ring, RevokeKey("gone"))
        assert why in await refusal(ring, command)


async def test_no_key_is_changed_by_a_name_that_two_have(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await ring.make("twin")
        await ring.make("twin")
        for command in (EditKey(key="twin", label="b"), RotateKey("twin", 0), RevokeKey("twin"), ShowKey("twin")):
            assert "there is no key 'twin', or more than one" in await refusal(ring, command)


@pytest.mark.parametrize(
    "command",
    [CreateKey(label="b"), EditKey(key="a", label="b"), RotateKey("a", 0), RevokeKey("a"), RecoverAdmin(),
     BackUp("/nowhere/x"), EditConfig("/dev/null/p", "{}", "{}")],
    ids=lambda command: type(command).__name__,
)  # fmt: skip
async def test_nothing_is_changed_that_cannot_be_audited(tmp_path: Path, command: Command) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await ring.make("a")
        await ring.store.audit.drain()
        ring.store.database.attach(None)
        ring.store.database.attach(FullDisk())
        assert await refusal(ring, command) == "the disk is full"


# -- the rest -----------------------------------------------------------------------------------------------------


@contextmanager
def failing_commits() -> Iterator[None]:
    """A database that fails at the worst moment: when all is done but the commit, which a deferred constraint stops."""

    def add_an_orphan(connection: sa.Connection, _: object, statement: str, *__: object) -> None:
        if statement.startswith("INSERT INTO audit_outbox"):
            orphan = {
                "id": "o",
                "hash": "0" * 64,
                "tier": "client",
                "label": "o",
                "allowed_models": "[]",
                "created_at": 0,
            }
            connection.execute(keys.insert().values(**orphan, rotated_from="nobody"))

    event.listen(sa.Engine, "after_cursor_execute", add_an_orphan)
    try:
        yield
    finally:
        event.remove(sa.Engine, "after_cursor_execute", add_an_orphan)


async def test_a_backup_holds_the_database_and_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "copy.tar"
    async with open_ring(tmp_path / "data") as ring:
        await ring.make()
        await ring.store.audit.drain()
        assert await run(ring, BackUp(str(path))) == Done()
        lines = await audit_lines(ring.store)
        assert [(line.action, line.target) for line in lines[1:]] == [("backup.create", str(path))]
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert "capi.db" in names
    assert any(name.startswith("audit-") for name in names)


async def test_a_backup_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "copy.tar"
    path.write_text("content")
    async with open_ring(tmp_path / "data") as ring:
        answer = await run(ring, BackUp(str(path)))
        assert isinstance(answer, Refused)
        assert str(path) in answer.message
    assert path.read_text() == "content"


async def test_a_backup_that_was_not_made_is_not_audited(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert "was not written" in await refusal(ring, BackUp(str(tmp_path / "nowhere" / "copy.tar")))


async def test_a_backup_that_cannot_be_audited_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "copy.tar"
    async with open_ring(tmp_path / "data") as ring:
        await ring.store.audit.drain()
        with failing_commits(), pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await run(ring, BackUp(str(path)))
        assert await audit_lines(ring.store) == []
    assert os.listdir(tmp_path) == ["data"]


# -- the configuration --------------------------------------------------------------------------------------------


def text_of(config: Path) -> str:
    """What it says. It is private, and nothing lies beside it that was not there."""
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert sorted(os.listdir(config.parent)) == ["config.json", "data"]
    return config.read_text()


OLD, NEW = '{"strict":false}', '{"strict":true}'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(OLD)
    path.chmod(0o600)
    return path


async def test_an_edit_of_the_configuration_is_made_and_audited_with_both_texts(tmp_path: Path, config: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert await run(ring, EditConfig(str(config), OLD, NEW)) == Done()
        assert text_of(config) == NEW
        [line] = await audit_lines(ring.store)
        assert (line.action, line.target, line.before, line.after, line.ts) == (
            "config.edit",
            str(config),
            {"strict": False},
            {"strict": True},
            NOW,
        )


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (OLD + " ", NEW, "somebody else has changed it meanwhile"),
        (OLD, '{"strict":7}', "$.strict"),
        (OLD, "{", "$"),
    ],
)
async def test_an_edit_that_must_not_be_changes_nothing_and_leaves_no_row(
    tmp_path: Path, config: Path, before: str, after: str, why: str
) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert why in await refusal(ring, EditConfig(str(config), before, after))
    assert text_of(config) == OLD


async def test_an_edit_that_cannot_be_written_leaves_no_row(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        answer = await refusal(ring, EditConfig(str(tmp_path / "nowhere" / "config.json"), OLD, NEW))
        assert "cannot be written: No such file or directory" in answer


async def test_an_edit_whose_row_is_not_committed_is_taken_back(tmp_path: Path, config: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        with failing_commits(), pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await run(ring, EditConfig(str(config), OLD, NEW))
        assert await audit_lines(ring.store) == []
        assert text_of(config) == OLD
        assert await run(ring, EditConfig(str(config), OLD, NEW)) == Done()
    assert text_of(config) == NEW


async def test_the_state_of_a_server_is_only_told_by_one(tmp_path: Path) -> None:
    status = ServerStatus(1, "on", None, None, "{}")
    async with open_ring(tmp_path / "data") as ring:
        assert "no server runs here" in await refusal(ring, ShowStatus())
        assert await evolve(ring.operations, status=lambda: status).run(ShowStatus()) == status


def test_a_command_that_is_not_known_is_not_understood() -> None:
    for text in ('{"type": "keys.destroy"}', "{}", '{"type": "keys.create"}', '{"type": "keys.create", "label": 1}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=Command)


# -- usage ----------------------------------------------------------------------------------------------------------


async def test_usage_is_told_of_each_key_with_its_label(tmp_path: Path) -> None:
    """Of revoked ones, too: what they cost stays cost."""
    async with open_ring(tmp_path / "data") as ring:
        made = (await ring.make("laptop")).record
        await run(ring, RevokeKey(made.id))
        events = [usage_event(1, ts_ms=NOW, key_id=made.id), usage_event(2, ts_ms=NOW, key_id="gone")]
        await ring.store.database.store_usage(UsageBatch("batch", events))
        answer = await run(ring, ShowUsage())
        assert isinstance(answer, UsageAnswer)
        assert {line.name: line.label for line in answer.report.lines} == {made.id: "laptop", "gone": None}
        by_day = await run(ring, ShowUsage("7d", UsageBy.DAY))
        assert isinstance(by_day, UsageAnswer)
        assert [line.requests for line in by_day.report.lines] == [2]


async def test_usage_of_no_window_is_refused(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        assert "since must be" in await refusal(ring, ShowUsage("soon"))
