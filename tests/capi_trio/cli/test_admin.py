"""`capi admin recover`: the way back in, which the audit log tells of."""

from __future__ import annotations

from pathlib import Path

from capi_core.keys import is_well_formed, key_hash
from tests.capi_trio.cli.helpers import Capi


def test_a_lost_admin_gets_a_new_key_and_the_old_ones_stay(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    old, _ = capi.new_key("keys", "create", "a", "--tier", "admin")
    key, text = capi.new_key("admin", "recover")
    assert is_well_formed(text)
    assert (key.tier, key.label, key.hash_prefix) == ("admin", "recovered admin", key_hash(text)[:8])
    assert key.expires_at is None
    assert sorted(capi.all_keys(), key=lambda key: key.id) == sorted([old, key], key=lambda key: key.id)
    assert capi.audited() == ["key.create", "auth.recover"]


def test_an_admin_can_be_recovered_before_any_key_was_made(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    key, _ = capi.new_key("admin", "recover")
    assert capi.all_keys() == [key]


def test_it_can_be_done_more_than_once(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    made = {capi.new_key("admin", "recover")[0].id for _ in range(2)}
    assert {key.id for key in capi.all_keys()} == made
    assert len(made) == 2


def test_on_a_terminal_the_key_is_shown(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    text = capi.on_terminal("admin", "recover").split("\n")[0]
    assert [key.hash_prefix for key in capi.all_keys()] == [key_hash(text)[:8]]


def test_without_a_terminal_and_a_file_nothing_is_made(tmp_path: Path) -> None:
    capi = Capi(tmp_path / "data")
    for options in ([], ["--json"]):
        assert "--key-file" in capi.refused("admin", "recover", *options)
    assert not capi.directory.exists()
