"""Keys under attack: searched for, guessed, mixed up, and asked to change what nobody may change.

A1, A2, A4, A5 and A6 of the reliability plan: CAPI_FULL=1 does all of it, the default a tenth.
"""

import http.client
import random
import re
import socket
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import pytest
import sqlalchemy as sa
from attrs import evolve, fields, frozen

from capi_core.keys import KEY_PREFIX, KeyRecord, is_well_formed, key_hash
from capi_trio.control import SOCKET_NAME, ask
from capi_trio.operations import Answer, CreateKey, KeyAnswer, ListKeys, ShowKey
from capi_trio.storage.audit_log import read_lines
from capi_trio.storage.database import Mutation
from capi_trio.storage.keys import KeyRepository
from capi_trio.storage.sqlite import DATABASE_NAME
from tests.capi_trio.storage.helpers import NOW, draft, open_store, record
from tests.e2e.conftest import faultless
from tests.support.process import Capi, IssuedKey, gateway, issue_key, resident_bytes
from tests.support.scale import scaled, tell

MINTED: Final = scaled(100)
ALIKE: Final = scaled(10_000)
LOGINS: Final = scaled(1_000)
ADDRESSES: Final = scaled(500)
SHARED: Final = 50
"""Leading characters that all keys have in common."""
ALIASES: Final = 97
SEED: Final = 4
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
DEMO: Final = {"demo": {"kind": "demo"}}
GROWTH_BYTES: Final = 24 * 1024 * 1024
"""Mostly of the connections, which all stay open: five hundred of them take 8 MB."""


class Door:
    """One connection to a gateway, from an address of one's own choice."""

    def __init__(self, capi: Capi, address: str = "127.0.0.1") -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", capi.port, timeout=30, source_address=(address, 0))

    def status(self, key: str) -> int:
        return self.listing(key)[0]

    def listing(self, key: str) -> tuple[int, bytes]:
        self._http.request("GET", "/v1/models", headers={"x-api-key": key})
        response = self._http.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self._http.close()


# -- A1, A2: where keys are ---------------------------------------------------------------------------------------


def test_the_text_of_a_key_is_in_one_answer_and_its_hash_in_the_database_alone(tmp_path: Path) -> None:
    """Not in a file nor a log, nor in the memory of a server that did not make it; and the hash opens nothing."""
    data_dir = tmp_path / "capi"
    with faultless(gateway(data_dir, {"upstreams": DEMO}, "--verbose", auth=True)) as capi, closing(Door(capi)) as door:
        made = [issue_key(data_dir, CreateKey(label=f"number {number}")) for number in range(MINTED)]
        hashes = [key_hash(key.text) for key in made]
        assert {door.status(key.text) for key in made} == {200}
        for digest in hashes:
            padded = KEY_PREFIX + digest.upper().translate(str.maketrans("0189", "ABCD"))[:51] + "A"
            assert is_well_formed(padded)
            assert [door.status(text) for text in (digest, KEY_PREFIX + digest, padded)] == [401, 401, 401]
        asked: list[ListKeys | ShowKey] = [ListKeys(), *(ShowKey(key.id) for key in made)]
        answers = str([msgspec.json.encode(ask(data_dir, command)) for command in asked])
        capi.terminate()
        assert capi.wait() == 0
    said = str(capi.logs) + str(capi.text) + str(capi.output) + answers + str(list(read_lines(data_dir)))
    files = b"".join(path.read_bytes() for path in data_dir.iterdir() if path.is_file())
    assert not any(key.text in said or key.text.encode() in files for key in made)
    assert not any(digest in said for digest in hashes)
    assert all(digest.encode() in files for digest in hashes), "a search that finds nothing must be one that can"
    with faultless(gateway(data_dir, None, auth=True)) as again, closing(Door(again)) as door:
        found = memory(again.pid)
        assert all(digest.encode() in found for digest in hashes), "this is where the keys are looked up"
        assert not any(key.text.encode() in found for key in made)
        assert {door.status(key.text) for key in made} == {200}
    tell(f"{MINTED} keys: no text in files, logs, answers or memory; no hash outside the database opens anything")


def memory(pid: int) -> bytes:
    """What a process has in the parts of its memory that it can write to."""
    parts = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if span is None or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            begin, end = (int(number, 16) for number in span.groups())
            file.seek(begin)
            parts.append(file.read(end - begin))
    return b"\n".join(parts)


# -- A4: keys that are nearly the same ----------------------------------------------------------------------------


@frozen
class Alike:
    text: str
    alias: str
    revoked: bool


def alike_keys() -> list[Alike]:
    dice = random.Random(SEED)
    stem = KEY_PREFIX + "".join(dice.choices(LETTERS, k=SHARED - len(KEY_PREFIX)))
    texts: set[str] = set()
    while len(texts) < ALIKE:
        texts.add(stem + "".join(dice.choices(LETTERS, k=8)) + dice.choice("AQ"))
    return [Alike(text, f"alias-{n % ALIASES}", n % 10 == 0) for n, text in enumerate(sorted(texts))]


async def test_keys_that_begin_alike_are_not_mixed_up(tmp_path: Path) -> None:
    """Each sees what is its own; those that have ended, and those that are one letter off a good one, nothing."""
    made = alike_keys()

    def store_all(connection: sa.Connection) -> Mutation[None]:
        repository = KeyRepository(connection)
        for number, key in enumerate(made):
            kept = evolve(record(f"{number}"), hash=key_hash(key.text), allowed_models=(key.alias,))
            repository.create(kept)
            if key.revoked:
                repository.revoke(kept.id, NOW)
        return Mutation(None, (draft("all"),))

    async with open_store(tmp_path / "capi") as store:
        await store.database.mutate(store_all)
        await store.audit.drain()
    models = {f"alias-{number}": {"upstream": "demo-chat"} for number in range(ALIASES)}
    config = {"upstreams": DEMO, "models": models}
    texts = {key.text for key in made}
    with faultless(gateway(tmp_path / "capi", config, auth=True)) as capi, closing(Door(capi)) as door:
        for key in made:
            status, body = door.listing(key.text)
            if key.revoked:
                assert status == 401
                continue
            assert (status, re.findall(rb'"id":"([^"]+)"', body)) == (200, [key.alias.encode()])
            near = key.text[:-2] + LETTERS[(LETTERS.index(key.text[-2]) + 1) % len(LETTERS)] + key.text[-1]
            assert near in texts or door.status(near) == 401
    tell(f"{ALIKE} keys with {SHARED} leading characters in common: 0 mixed up")


# -- A5: guessing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [1, ADDRESSES])
def test_guessing_locks_nobody_out_and_fills_nothing(tmp_path: Path, addresses: int) -> None:
    """While keys are tried as fast as can be, a good one is let in within a second; no address is remembered."""
    dice = random.Random(SEED)
    tried = [KEY_PREFIX + "".join(dice.choices(LETTERS, k=51)) + "A" for _ in range(LOGINS)]
    sources = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(addresses)]
    found: list[int] = []

    def guess(capi: Capi) -> None:
        doors = [Door(capi, source) for source in sources]
        for number, text in enumerate(tried):
            found.append(doors[number % addresses].status(text))
        for door in doors:
            door.close()

    with faultless(gateway(tmp_path / "capi", {"upstreams": DEMO}, auth=True)) as capi, closing(Door(capi)) as door:
        key = issue_key(tmp_path / "capi", CreateKey(label="good"))
        assert door.status(key.text) == 200
        before, began = resident_bytes(capi.pid), time.monotonic()
        guessing = threading.Thread(target=guess, args=(capi,))
        guessing.start()
        waits: list[float] = []
        while guessing.is_alive() or not waits:
            asked = time.monotonic()
            assert door.status(key.text) == 200
            waits.append(time.monotonic() - asked)
        guessing.join()
        minutes = (time.monotonic() - began) // 60 + 2  # the clock's minutes that it touched
        growth = resident_bytes(capi.pid) - before
    assert found == [401] * LOGINS
    assert max(waits) < 1
    assert growth < GROWTH_BYTES
    assert 0 < len(capi.events("auth_reject")) <= 60 * minutes
    tell(
        f"{LOGINS} guesses from {addresses} addresses: good key waits at most {max(waits) * 1000:.0f} ms, "
        f"memory grows by {growth / 1e6:.1f} MB"
    )


# -- A6: what no command may change -------------------------------------------------------------------------------

COLUMNS: Final = {
    "id": "key_mine",
    "hash": "0" * 64,
    "tier": "admin",
    "label": "changed",
    "owner": "changed",
    "identity": "changed",
    "allowed_models": ["changed"],
    "rate_limit_override": 7,
    "budget": {"amount": 7, "unit": "tokens", "period": "day"},
    "budget_amount": 7,
    "budget_unit": "tokens",
    "budget_period": "day",
    "expires_at": NOW + 10**12,
    "debug_expires_at": NOW + 10**12,
    "created_at": 7,
    "revoked_at": None,
    "rotated_from": "key_mine",
}
EDITABLE: Final = {
    "label": {"label"},
    "owner": {"owner"},
    "identity": {"identity"},
    "allowed_models": {"allowed_models"},
    "rate_limit_override": {"rate_limit_override"},
    "budget": {"budget_unit", "budget_amount", "budget_period"},
    "expires_at": {"expires_at"},
}


def test_a_command_changes_what_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    """Whatever members it is sent: the rows of the database are compared as they are."""
    assert {field.name for field in fields(KeyRecord)} <= COLUMNS.keys()
    data_dir = tmp_path / "capi"
    with faultless(gateway(data_dir, {"upstreams": DEMO}, auth=True)) as capi:
        for name, value in COLUMNS.items():
            key = issue_key(data_dir, CreateKey(label="victim"))
            check_edit(data_dir, key, name, value)
            changed = differences(data_dir, key, {"type": "keys.revoke", "key": key.id, name: value})
            assert changed == {"revoked_at"}, name
            assert differences(data_dir, key, {"type": "keys.edit", "key": key.id, "revoked_at": None}) == set()
            check_others(data_dir, name, value)
        assert capi.alive
    tell(f"4 commands with each of {len(COLUMNS)} members more: 0 columns changed that are not theirs")


def check_edit(data_dir: Path, key: IssuedKey, name: str, value: object) -> None:
    changed = differences(data_dir, key, {"type": "keys.edit", "key": key.id, name: value})
    assert changed == {column for column in EDITABLE.get(name, set()) if column in row(data_dir, key.id)}, name


def check_others(data_dir: Path, name: str, value: object) -> None:
    """A key that is made or that takes another's place is new, whatever was asked."""
    answer = send(data_dir, {"type": "keys.create", "label": "a", name: value})
    assert isinstance(answer, KeyAnswer), (name, answer)
    kept = row(data_dir, answer.key.id)
    assert kept["hash"] == key_hash(answer.text or "")
    assert kept["id"] != "key_mine"
    assert kept["tier"] == ("admin" if name == "tier" else "client")
    assert kept["created_at"] != 7
    assert [kept[column] for column in ("revoked_at", "rotated_from", "debug_expires_at")] == [None] * 3
    old = issue_key(data_dir, CreateKey(label="old"))
    rotated = send(data_dir, {"type": "keys.rotate", "key": old.id, "grace_ms": 1000, name: value})
    assert isinstance(rotated, KeyAnswer), (name, rotated)
    before, after = row(data_dir, old.id), row(data_dir, rotated.key.id)
    assert {column for column in before if before[column] != after[column]} <= {
        "id",
        "hash",
        "created_at",
        "expires_at",
        "rotated_from",
    }
    assert (after["expires_at"], after["rotated_from"]) == (None, old.id)


def differences(data_dir: Path, key: IssuedKey, command: dict[str, object]) -> set[str]:
    before = row(data_dir, key.id)
    send(data_dir, command)
    after = row(data_dir, key.id)
    return {column for column in before if before[column] != after[column]}


def row(data_dir: Path, key_id: str) -> dict[str, object]:
    with closing(sqlite3.connect(f"file:{data_dir / DATABASE_NAME}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute("SELECT * FROM keys WHERE id = ?", (key_id,)).fetchone())


def send(data_dir: Path, command: dict[str, object]) -> Answer:
    """What `ask` sends, without the types that would not let it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(data_dir / SOCKET_NAME))
        client.sendall(msgspec.json.encode(command) + b"\n")
        with client.makefile("rb") as answer:
            decoded: Answer = msgspec.json.decode(answer.readline(), type=Answer)
            return decoded
