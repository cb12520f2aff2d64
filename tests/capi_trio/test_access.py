"""Who is let in, how often, and what is told of those who are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen
from structlog.testing import capture_logs

from capi_core.credentials import ADMIN_REQUIRED, INVALID_API_KEY
from capi_core.errors import Problem
from capi_core.keys import KeyDraft, KeyEdit, Tier, format_key, hash_prefix, key_hash
from capi_trio import access as module
from capi_trio.access import ANONYMOUS, Access, Door, OpenDoor, RejectLog
from capi_trio.keyring import CLI
from capi_trio.storage.errors import StorageError
from tests.capi_trio.helpers import Line, Ring, audit_lines, bearer, open_ring
from tests.capi_trio.storage.helpers import file_contents, until

MINUTE = 60_000
IP = "192.0.2.9"


def stranger(number: int) -> str:
    """The text of a key that nobody has."""
    return format_key(number.to_bytes(32, "big"))


@frozen
class Gate:
    """A door over a real keyring, and its log of refusals, which is not being written yet."""

    ring: Ring
    door: Door
    rejects: RejectLog

    def refused(self, text: str) -> Problem:
        """What somebody with this key is told, who must not be let in."""
        found = self.door.enter(bearer(text), ip=IP)
        assert isinstance(found, Problem)
        return found

    async def rejects_audited(self) -> list[Line]:
        """Lets everything that was taken down be written, and returns the lines of all refusals so far."""
        waiting = self.rejects._receive.statistics  # nothing else tells that no refusal is under way any more
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.rejects.run)
            await until(lambda: waiting().tasks_waiting_receive == 1 and waiting().current_buffer_used == 0)
            nursery.cancel_scope.cancel()
        return [line for line in await audit_lines(self.ring.store) if line.action == "auth.reject"]


@asynccontextmanager
async def open_gate(directory: Path, *, rpm: int = 60) -> AsyncIterator[Gate]:
    async with open_ring(directory) as ring:
        rejects = RejectLog(ring.store.database, now_ms=ring.clock)
        yield Gate(ring, Door(ring.keyring, rejects, default_rpm=lambda: rpm), rejects)


# -- auth is off --------------------------------------------------------------------------------------------------


def test_with_auth_off_everybody_is_the_same_caller_who_is_no_admin() -> None:
    door = OpenDoor()
    for headers in ([], bearer("gho_x"), bearer(stranger(1))):
        access = door.enter(headers, ip=None)
        assert access == Access(ANONYMOUS)
        assert isinstance(access, Access)
        assert not access.is_admin
        assert door.enter(headers, ip=None, admin=True) == ADMIN_REQUIRED
    assert {door.grant(Access(ANONYMOUS), now=0.0) for _ in range(10_000)} == {None}
    assert door.mode == "off"


# -- auth is on ---------------------------------------------------------------------------------------------------


async def test_a_key_lets_its_holder_in(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        issued = await gate.ring.make()
        assert gate.door.mode == "on"
        for headers in (bearer(issued.text), [(b"x-api-key", issued.text.encode())]):
            assert gate.door.enter(headers, ip=IP) == Access(issued.record)
            assert gate.door.enter(iter(headers), ip=None) == Access(issued.record)


async def test_who_has_no_usable_key_stays_out(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        issued, expiring = (
            await gate.ring.make(),
            await gate.ring.make(KeyDraft(label="b", expires_at=gate.ring.clock.now + 1)),
        )
        await gate.ring.keyring.revoke(issued.record.id, CLI)
        gate.ring.clock.now += 1
        for text in (issued.text, expiring.text, stranger(1), issued.text[:-1], "sk-cap-"):
            assert gate.refused(text) == INVALID_API_KEY
        nothing = gate.door.enter([(b"authorization", b"Basic x")], ip=IP)
        assert isinstance(nothing, Problem)
        assert nothing.code == "missing_api_key"


async def test_admin_routes_are_for_admins(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        client, admin = await gate.ring.make(), await gate.ring.make(KeyDraft(label="b", tier=Tier.ADMIN))
        assert gate.door.enter(bearer(client.text), ip=IP, admin=True) == ADMIN_REQUIRED
        assert gate.door.enter(bearer(stranger(1)), ip=IP, admin=True) == INVALID_API_KEY
        for route in (False, True):
            access = gate.door.enter(bearer(admin.text), ip=IP, admin=route)
            assert access == Access(admin.record)
            assert isinstance(access, Access)
            assert access.is_admin
        lines = await gate.rejects_audited()
        assert {(line.target, line.reason) for line in lines} == {
            (hash_prefix(client.record.hash), "admin_required"),
            (hash_prefix(key_hash(stranger(1))), "invalid_api_key"),
        }


# -- the rate -----------------------------------------------------------------------------------------------------


async def test_one_request_too_many_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data", rpm=2) as gate:
        access, other = Access((await gate.ring.make()).record), Access((await gate.ring.make("b")).record)
        assert [gate.door.grant(access, 100.0) for _ in range(2)] == [None, None]
        refused = gate.door.grant(access, 100.0)
        assert refused is not None
        assert (refused.status, refused.code, refused.retry_after_s) == (429, "rate_limit_exceeded", 30)
        assert gate.door.grant(other, 100.0) is None, "every key has its own rate"
        assert gate.door.grant(access, 129.0) is not None
        assert gate.door.grant(access, 130.0) is None


async def test_a_keys_own_rate_goes_before_the_default_and_changes_at_once(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data", rpm=2) as gate:
        issued = await gate.ring.make(KeyDraft(label="a", rate_limit_override=1))
        assert gate.door.grant(Access(issued.record), 0.0) is None
        refused = gate.door.grant(Access(issued.record), 0.0)
        assert refused is not None
        assert "1 requests per minute" in refused.message
        faster = await gate.ring.keyring.edit(issued.record.id, KeyEdit(rate_limit_override=3), CLI)
        assert [gate.door.grant(Access(faster), 0.0) is None for _ in range(3)] == [True, True, False]


async def test_the_default_rate_is_that_of_the_moment(tmp_path: Path) -> None:
    rates = [1]
    async with open_gate(tmp_path / "data") as gate:
        door = Door(gate.ring.keyring, gate.rejects, default_rpm=lambda: rates[-1])
        access = Access((await gate.ring.make()).record)
        assert [door.grant(access, 0.0) is None for _ in range(2)] == [True, False]
        rates.append(2)
        assert [door.grant(access, 0.0) is None for _ in range(2)] == [True, False]


# -- the account of refusals --------------------------------------------------------------------------------------


async def test_a_refusal_is_audited_by_prefix_and_never_by_text(tmp_path: Path) -> None:
    """Not in the audit log, not in a log line, and not in any other file."""
    texts = (stranger(1), "gho_" + "x" * 36, "sk-cap-mistyped", stranger(2)[:-1])
    with capture_logs() as logs:
        async with open_gate(tmp_path / "data") as gate:
            for text in texts:
                gate.refused(text)
            lines = await gate.rejects_audited()
    prefixes = [hash_prefix(key_hash(text)) for text in texts]
    assert [(line.target, line.ip, line.reason) for line in lines] == [(p, IP, "invalid_api_key") for p in prefixes]
    assert [(line["sha256_prefix"], line["ip"], line["code"]) for line in logs] == [
        (prefix, IP, "invalid_api_key") for prefix in prefixes
    ]
    kept = [*file_contents(tmp_path / "data").values(), str(logs).encode()]
    for text in texts:
        assert not any(text.encode() in content or key_hash(text).encode() in content for content in kept)


async def test_a_refusal_without_a_credential_is_audited_by_its_reason(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        gate.door.enter([], ip=None)
        gate.door.enter([*bearer(stranger(1)), (b"x-api-key", stranger(2).encode())], ip=None)
        lines = await gate.rejects_audited()
        assert [(line.target, line.reason, line.ip) for line in lines] == [
            ("missing_api_key", "missing_api_key", None),
            ("ambiguous_credentials", "ambiguous_credentials", None),
        ]


async def test_the_same_refusal_is_audited_at_most_once_a_minute(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with open_gate(tmp_path / "data") as gate:
            for _ in range(50):
                gate.refused(stranger(1))
                gate.ring.clock.now += 1000
            gate.ring.clock.now += 10_000 - 1
            gate.refused(stranger(1))
            gate.ring.clock.now += 1
            gate.refused(stranger(1))
            assert len(await gate.rejects_audited()) == 2
    assert [line["event"] for line in logs] == ["auth_reject"] * 2


async def test_all_refusals_together_are_audited_at_most_sixty_times_a_minute(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        gate.ring.clock.now -= gate.ring.clock.now % MINUTE
        for number in range(200):
            gate.refused(stranger(number))
        assert len(await gate.rejects_audited()) == 60
        gate.ring.clock.now += MINUTE
        gate.refused(stranger(500))
        lines = await gate.rejects_audited()
        assert len(lines) == 61
        assert lines[-1].target == hash_prefix(key_hash(stranger(500)))


async def test_a_clock_that_is_set_back_does_not_silence_the_account(tmp_path: Path) -> None:
    async with open_gate(tmp_path / "data") as gate:
        gate.refused(stranger(1))
        gate.ring.clock.now -= 60 * MINUTE
        gate.refused(stranger(1))
        assert len(await gate.rejects_audited()) == 2


async def test_only_so_many_prefixes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unseen is forgotten first; what that costs is another row for it within the minute."""
    monkeypatch.setattr(module, "_REMEMBERED_PREFIXES", 2)
    async with open_gate(tmp_path / "data") as gate:
        for number in (1, 2, 3, 3, 2, 1):
            gate.refused(stranger(number))
        lines = await gate.rejects_audited()
        assert [line.target for line in lines] == [hash_prefix(key_hash(stranger(number))) for number in (1, 2, 3, 1)]


async def test_a_slow_disk_holds_nobody_up_and_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals are synchronous: `enter` returns whatever the disk does. What does not fit the queue is only logged."""
    minutes = 10
    with capture_logs() as logs:
        async with open_gate(tmp_path / "data") as gate:
            stuck, working = trio.Event(), trio.Event()
            genuine = gate.ring.store.database.mutate

            async def slow(change: object) -> object:
                working.set()
                await stuck.wait()
                return await genuine(change)  # type: ignore[arg-type]  # any change, passed on as it is

            monkeypatch.setattr(gate.ring.store.database, "mutate", slow)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(gate.rejects.run)
                gate.refused(stranger(0))
                await working.wait()
                for minute in range(minutes):
                    gate.ring.clock.now += MINUTE
                    for number in range(60):
                        gate.refused(stranger(1000 * minute + number + 1))
                stuck.set()
                nursery.cancel_scope.cancel()
            monkeypatch.setattr(gate.ring.store.database, "mutate", genuine)
            lines = await gate.rejects_audited()
            assert len(lines) == 100
    assert len(logs) == 1 + 60 * minutes
    assert lines[0].target == hash_prefix(key_hash(stranger(1)))


async def test_a_refusal_that_cannot_be_audited_is_logged_and_the_next_one_is_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        async with open_gate(tmp_path / "data") as gate:
            tried = trio.Event()

            async def broken(_: object) -> None:
                tried.set()
                raise StorageError("the disk is full")

            with monkeypatch.context() as patched:
                patched.setattr(gate.ring.store.database, "mutate", broken)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(gate.rejects.run)
                    gate.refused(stranger(1))
                    await tried.wait()
                    await until(lambda: any(line["event"] == "auth_reject_not_audited" for line in logs))
                    nursery.cancel_scope.cancel()
            gate.refused(stranger(2))
            assert len(await gate.rejects_audited()) == 1
    assert [line["event"] for line in logs] == ["auth_reject", "auth_reject_not_audited", "auth_reject"]
    assert logs[1]["reason"] == "the disk is full"
