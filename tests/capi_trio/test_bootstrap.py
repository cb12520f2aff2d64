"""The first admin key: made once, shown once, and in nobody else's sight."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from capi_core.credentials import INVALID_API_KEY
from capi_core.keys import KeyDraft, Tier, is_well_formed
from capi_trio.bootstrap import ADMIN_KEY_NAME, bootstrap, key_file_waits, write_key_file
from capi_trio.keyring import CLI
from capi_trio.storage.errors import AuditUnavailable
from tests.capi_trio.helpers import FullDisk, Ring, audit_lines, keyring_of, open_ring
from tests.capi_trio.storage.helpers import NOW, file_contents


def admin_file(ring: Ring) -> Path:
    return ring.store.directory / ADMIN_KEY_NAME


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_on_a_terminal_the_key_is_shown_once_and_in_no_file(tmp_path: Path) -> None:
    shown: list[str] = []
    async with open_ring(tmp_path / "data") as ring:
        issued = await bootstrap(ring.keyring, ring.store.directory, show=shown.append)
        assert issued is not None
        assert shown == [issued.text]
        assert ring.who(issued.text) == issued.record
        assert (issued.record.tier, issued.record.label, issued.record.expires_at) == (Tier.ADMIN, "first admin", None)
        assert not key_file_waits(ring.store.directory)
        assert await bootstrap(ring.keyring, ring.store.directory, show=shown.append) is None
        assert len(shown) == 1
        assert [(line.action, line.target) for line in await audit_lines(ring.store)] == [
            ("auth.bootstrap", issued.record.id)
        ]
    assert not any(b"sk-cap-" in content for content in file_contents(tmp_path / "data").values())


async def test_without_a_terminal_the_key_is_in_one_file_for_its_owner_only(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        previous = os.umask(0)
        try:
            issued = await bootstrap(ring.keyring, ring.store.directory, show=None)
        finally:
            os.umask(previous)
        assert issued is not None
        assert admin_file(ring).read_text() == issued.text + "\n"
        assert is_well_formed(issued.text)
        assert mode(admin_file(ring)) == 0o600
        assert ring.who(issued.text) == issued.record
        assert key_file_waits(ring.store.directory)
        assert [line.action for line in await audit_lines(ring.store)] == ["auth.bootstrap"]
    found = [name for name, content in file_contents(tmp_path / "data").items() if b"sk-cap-" in content]
    assert found == [ADMIN_KEY_NAME]


async def test_a_restart_changes_neither_the_key_nor_its_file(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        issued = await bootstrap(ring.keyring, ring.store.directory, show=None)
        assert issued is not None
    for seed in (1, 2):
        async with open_ring(tmp_path / "data", seed=seed) as ring:
            assert await bootstrap(ring.keyring, ring.store.directory, show=None) is None
            assert ring.keyring.all() == [issued.record]
            assert admin_file(ring).read_text() == issued.text + "\n"


async def test_a_file_that_was_read_and_deleted_does_not_come_back(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await bootstrap(ring.keyring, ring.store.directory, show=None)
        admin_file(ring).unlink()
        assert await bootstrap(ring.keyring, ring.store.directory, show=None) is None
        assert not key_file_waits(ring.store.directory)


async def test_a_file_of_a_start_that_crashed_is_replaced(tmp_path: Path) -> None:
    """It was written before its key was valid, so what it holds opens nothing."""
    async with open_ring(tmp_path / "data") as ring:
        admin_file(ring).write_text("sk-cap-OLD\n")
        admin_file(ring).chmod(0o644)
        issued = await bootstrap(ring.keyring, ring.store.directory, show=None)
        assert issued is not None
        assert admin_file(ring).read_text() == issued.text + "\n"
        assert mode(admin_file(ring)) == 0o600


async def test_a_link_in_the_files_place_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("content")
    async with open_ring(tmp_path / "data") as ring:
        admin_file(ring).symlink_to(target)
        assert await bootstrap(ring.keyring, ring.store.directory, show=None) is not None
        assert not admin_file(ring).is_symlink()
    assert target.read_text() == "content"


async def test_a_key_that_cannot_be_written_down_is_not_made(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        admin_file(ring).mkdir()
        with pytest.raises(OSError, match=ADMIN_KEY_NAME):
            await bootstrap(ring.keyring, ring.store.directory, show=None)
        assert ring.keyring.all() == []
        assert await audit_lines(ring.store) == []
        admin_file(ring).rmdir()
        assert await bootstrap(ring.keyring, ring.store.directory, show=None) is not None


async def test_a_key_that_cannot_be_audited_is_neither_made_nor_shown(tmp_path: Path) -> None:
    shown: list[str] = []
    async with open_ring(tmp_path / "data") as ring:
        ring.store.database.attach(None)
        ring.store.database.attach(FullDisk())
        for show in (shown.append, None):
            with pytest.raises(AuditUnavailable):
                await bootstrap(ring.keyring, ring.store.directory, show=show)
        assert (shown, ring.keyring.all(), key_file_waits(ring.store.directory)) == ([], [], False)


@pytest.mark.parametrize("how", ["revoked", "expired", "client"])
async def test_only_an_active_admin_key_counts(tmp_path: Path, how: str) -> None:
    async with open_ring(tmp_path / "data") as ring:
        draft = KeyDraft(
            label="a",
            tier=Tier.CLIENT if how == "client" else Tier.ADMIN,
            expires_at=NOW + 5 if how == "expired" else None,
        )
        old = await ring.keyring.create(draft, CLI)
        if how == "revoked":
            await ring.keyring.revoke(old.record.id, CLI)
        ring.clock.now += 5
        issued = await bootstrap(ring.keyring, ring.store.directory, show=None)
        assert issued is not None
        assert ring.who(issued.text) == issued.record
        assert how == "client" or ring.who(old.text) == INVALID_API_KEY


async def test_any_active_admin_key_is_enough(tmp_path: Path) -> None:
    async with open_ring(tmp_path / "data") as ring:
        await ring.keyring.create(KeyDraft(label="somebody", tier=Tier.ADMIN, expires_at=NOW + 5), CLI)
        assert await bootstrap(ring.keyring, ring.store.directory, show=None) is None


async def test_of_two_replicas_that_start_at_once_one_makes_the_key(tmp_path: Path) -> None:
    """Each has looked, and seen none, before the other made its own."""
    shown: list[str] = []
    async with open_ring(tmp_path / "data") as ring:
        rings = [keyring_of(ring.store, ring.clock, seed=seed) for seed in (1, 2, 3)]
        for other in rings:
            await other.load()
        made = [await bootstrap(rings[0], ring.store.directory, show=None)]
        made += [await bootstrap(other, ring.store.directory, show=shown.append) for other in rings[1:]]
        assert [issued is not None for issued in made] == [True, False, False]
        assert shown == []
        assert made[0] is not None
        assert admin_file(ring).read_text() == made[0].text + "\n", "the other has not replaced it"
        for other in rings:
            assert other.all() == [made[0].record]
        assert [line.action for line in await audit_lines(ring.store)] == ["auth.bootstrap"]


def test_a_key_is_only_written_to_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key_file(path, "text")
    assert (path.read_bytes(), mode(path)) == (b"text\n", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            write_key_file(taken, "other")
    assert path.read_bytes() == b"text\n"
    assert not (tmp_path / "nothing").exists()
