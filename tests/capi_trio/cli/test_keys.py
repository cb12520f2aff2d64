"""`capi keys`: where a key's text goes, what the options mean, and what is printed."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from capi_core.keys import is_well_formed, key_hash
from capi_trio.cli import keys as module
from capi_trio.clock import now_ms
from capi_trio.keyring import KeyView
from tests.capi_trio.cli.helpers import Capi

KEY = re.compile(r"sk-cap-[A-Z2-7]+")
S, M, H, D = 1000, 60_000, 3_600_000, 86_400_000


@pytest.fixture
def capi(tmp_path: Path) -> Capi:
    return Capi(tmp_path / "data")


# -- where a key's text goes --------------------------------------------------------------------------------------


MAKING = {"create": ["keys", "create", "b"], "rotate": ["keys", "rotate", "a"], "recover": ["admin", "recover"]}


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
def test_without_a_terminal_and_a_file_nothing_is_made(capi: Capi, command: list[str], options: list[str]) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.all_keys(), capi.audited()
    assert "only shown on a terminal; name a new file for it with --key-file" in capi.refused(*command, *options)
    assert (capi.all_keys(), capi.audited()) == before


def test_a_refused_creation_does_not_even_make_the_data_directory(capi: Capi) -> None:
    capi.refused("keys", "create", "a")
    assert not capi.directory.exists()


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
@pytest.mark.parametrize("taken", ["file", "link to nothing", "no directory"])
def test_a_file_that_cannot_be_made_is_found_out_before_the_key_is(capi: Capi, command: list[str], taken: str) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.all_keys()
    path = capi.directory.parent / "key.txt"
    match taken:
        case "file":
            path.write_text("content")
        case "link to nothing":
            path.symlink_to(path.parent / "nothing")
        case _:
            path = path.parent / "nowhere" / "key.txt"
    message = capi.refused(*command, "--key-file", str(path))
    wanted = f"there is no directory {path.parent}" if taken == "no directory" else f"{path} is there already"
    assert wanted in message
    assert capi.all_keys() == before
    assert taken != "file" or path.read_text() == "content"


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
def test_the_file_holds_the_text_and_is_its_owners_only(capi: Capi, command: list[str]) -> None:
    capi.new_key("keys", "create", "a")
    path = capi.directory.parent / "key.txt"
    previous = os.umask(0)
    try:
        shown = capi.output(*command, "--key-file", str(path))
    finally:
        os.umask(previous)
    text = path.read_text().removesuffix("\n")
    assert is_well_formed(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "sk-cap-" not in shown
    assert shown.endswith(f"its text is in {path}\n")
    assert capi.all_keys()[0].hash_prefix == key_hash(text)[:8]


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
def test_json_never_holds_the_text(capi: Capi, command: list[str]) -> None:
    capi.new_key("keys", "create", "a")
    path = capi.directory.parent / "key.txt"
    shown = capi.output(*command, "--json", "--key-file", str(path))
    assert msgspec.json.decode(shown, type=KeyView) == capi.all_keys()[0]
    assert path.read_text().strip() not in shown
    assert "sk-cap-" not in shown


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
def test_a_terminal_shows_the_text_once(capi: Capi, command: list[str]) -> None:
    capi.new_key("keys", "create", "a")
    [text] = KEY.findall(shown := capi.on_terminal(*command))
    newest = capi.all_keys()[0]
    assert is_well_formed(text)
    assert newest.hash_prefix == key_hash(text)[:8]
    assert shown == f"{text}\nThis is the only time that the key is shown. It is {newest.id}.\n"
    for looking in (["keys", "list"], ["keys", "show", newest.id], ["keys", "revoke", newest.id]):
        assert "sk-cap-" not in capi.on_terminal(*looking)


def test_a_terminal_and_json_do_not_go_together(capi: Capi) -> None:
    with pytest.raises(AssertionError):
        capi.on_terminal("keys", "create", "a", "--json")
    assert not capi.directory.exists()


def test_a_real_terminal_is_one(capi: Capi) -> None:
    """The program itself, once, with a pseudo-terminal as its standard output."""
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-m", "capi_trio.cli", "keys", "create", "a", "--data-dir", str(capi.directory)]
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, check=False)  # noqa: S603 - our own
        assert (done.returncode, done.stderr) == (0, b"")
        [text] = KEY.findall(os.read(ours, 4096).decode())
    finally:
        os.close(ours)
        os.close(theirs)
    assert [key.hash_prefix for key in capi.all_keys()] == [key_hash(text)[:8]]


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
@pytest.mark.parametrize("taken", [False, True])
def test_a_key_whose_text_cannot_be_written_down_after_all_is_revoked(
    capi: Capi, command: list[str], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: str) -> None:
        path.write_text("half a key, or somebody else's")
        raise FileExistsError(17, "File exists") if taken else OSError(28, "No space left on device")

    capi.new_key("keys", "create", "a")
    monkeypatch.setattr(module, "write_key_file", full)
    path = capi.directory.parent / "key.txt"
    message = capi.refused(*command, "--key-file", str(path), code=1)
    [key] = [key for key in capi.all_keys() if key.revoked_at is not None]
    why = "File exists" if taken else "No space left on device"
    assert message == f"{path} cannot be written: {why}. The new key {key.id} was revoked again"
    assert path.exists() is taken, "somebody else's file stays, half a key does not"
    assert capi.audited()[-1] == "key.revoke"


@pytest.mark.parametrize("command", MAKING.values(), ids=MAKING)
def test_a_directory_in_which_no_file_can_be_made_is_found_out_before_the_key_is(
    capi: Capi, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.all_keys(), capi.audited()
    folder = capi.directory.parent / "folder"
    folder.mkdir()
    # Root may write anywhere, so the system's answer is given in its place.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder or mode != os.W_OK | os.X_OK)
    assert f"no file can be made in {folder}" in capi.refused(*command, "--key-file", str(folder / "key.txt"))
    assert (capi.all_keys(), capi.audited()) == before


# -- what the options mean ----------------------------------------------------------------------------------------


def test_a_key_is_for_clients_and_every_model_unless_it_is_said_otherwise(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "laptop")
    assert (key.label, key.tier, key.allowed_models) == ("laptop", "client", ["*"])
    assert (key.owner, key.rate_limit_override, key.budget, key.expires_at) == (None, None, None, None)


def test_everything_about_a_new_key_can_be_chosen(capi: Capi) -> None:
    options = [
        "--tier",
        "admin",
        "--model",
        "m",
        "--model",
        "n/o",
        "--owner",
        "someone",
        "--identity",
        "i",
        "--rpm",
        "7",
    ]
    key, _ = capi.new_key("keys", "create", "a", *options, "--budget", "5 tokens/day", "--expires-in", "2h")
    assert (key.tier, key.allowed_models, key.owner, key.rate_limit_override) == ("admin", ["m", "n/o"], "someone", 7)
    assert (key.identity, key.budget) == ("i", "5 tokens a day")
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == pytest.approx(2 * H, abs=10 * S)


@pytest.mark.parametrize(
    ("text", "ms"), [("1s", S), ("90m", 90 * M), ("0012h", 12 * H), ("90d", 90 * D), ("999999s", 999_999 * S)]
)
def test_a_duration_is_a_number_and_a_unit(capi: Capi, text: str, ms: int) -> None:
    before = now_ms()
    key, _ = capi.new_key("keys", "create", "a", "--expires-in", text)
    assert key.expires_at is not None
    assert before + ms <= key.expires_at <= now_ms() + ms


@pytest.mark.parametrize("text", ["", "5", "h", "5w", "-5h", "1.5h", "5 h", "5h ", "5H", "1h30m", "1234567s", "٣h"])
def test_what_is_no_duration_makes_nothing(capi: Capi, text: str) -> None:
    path = str(capi.directory.parent / "key.txt")
    for command in (["keys", "create", "a", "--expires-in"], ["keys", "rotate", "a", "--grace"]):
        message = capi.refused(*command, text, "--key-file", path)
        assert message == f"{text!r} is not a duration such as 30m, 12h or 90d"
    assert capi.refused("keys", "edit", "a", "--expires-in", text).endswith("30m, 12h or 90d")
    assert not capi.directory.exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2000000 tokens/month", "2000000 tokens a month"),
        ("1tokens/day", "1 tokens a day"),
        ("5000000  money/month", "5000000 money a month"),
    ],
)
def test_a_budget_is_an_amount_of_a_unit_in_a_period(capi: Capi, text: str, shown: str) -> None:
    assert capi.new_key("keys", "create", "a", "--budget", text)[0].budget == shown


@pytest.mark.parametrize(
    "text", ["", "5", "5 tokens", "tokens/day", "5 euros/day", "5 tokens/week", "-5 tokens/day", "5.0 tokens/day"]
)
def test_what_is_no_budget_makes_nothing(capi: Capi, text: str) -> None:
    path = str(capi.directory.parent / "key.txt")
    for command in (["keys", "create", "a", "--key-file", path], ["keys", "edit", "a"]):
        assert capi.refused(*command, "--budget", text) == f"{text!r} is not a budget such as '2000000 tokens/month'"
    assert not capi.directory.exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--budget", "0 tokens/day"], "budget must be from 1"),
        (["--expires-in", "0s"], "expires_at must lie in the future"),
        (["--rpm", "1000000"], "rate_limit_override is more than 10 times the default"),
        (["--model", "a b"], "allowed_models a model name has"),
        (["--model", "*", "--model", "m"], 'allowed_models "*" means all models and stands alone'),
        (["--owner", ""], "owner must not be empty"),
        (["--owner", "a\nb"], "owner must be printable characters"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_words(capi: Capi, options: list[str], why: str) -> None:
    path = capi.directory.parent / "key.txt"
    assert why in capi.refused("keys", "create", "a", *options, "--key-file", str(path))
    capi.new_key("keys", "create", "a")
    assert why in capi.refused("keys", "edit", "a", *options)
    assert capi.audited() == ["key.create"]
    assert not path.exists()


def test_a_label_that_is_no_text_is_refused(capi: Capi) -> None:
    path = str(capi.directory.parent / "key.txt")
    assert "no UTF-8 text" in capi.refused("keys", "create", os.fsdecode(b"caf\xe9"), "--key-file", path)
    assert "no UTF-8 text" in capi.refused("keys", "show", os.fsdecode(b"caf\xe9"))


def test_a_key_as_a_label_is_refused_without_being_repeated(capi: Capi) -> None:
    _, text = capi.new_key("keys", "create", "a")
    assert "label must not hold a key" in capi.refused("keys", "edit", "a", "--label", text)


# -- changing -----------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_it_names(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "a", "--owner", "someone", "--budget", "5 tokens/day")
    options = ["--label", "b", "--model", "m", "--identity", "i", "--rpm", "9", "--expires-in", "1d"]
    shown = msgspec.json.decode(capi.output("keys", "edit", "a", *options, "--json"), type=KeyView)
    assert capi.all_keys() == [shown]
    assert (shown.id, shown.label, shown.allowed_models, shown.rate_limit_override) == (key.id, "b", ["m"], 9)
    assert (shown.owner, shown.identity) == ("someone", "i")
    assert (shown.budget, shown.tier) == ("5 tokens a day", "client")
    assert shown.expires_at is not None
    again = msgspec.json.decode(
        capi.output("keys", "edit", key.id, "--owner", "o", "--budget", "1 money/month", "--rpm", "0", "--json"),
        type=KeyView,
    )
    assert (again.label, again.owner, again.budget) == ("b", "o", "1 money a month")
    assert again.rate_limit_override is None, "0 is the configured default"


def test_an_edit_can_take_things_away(capi: Capi) -> None:
    options = ["--owner", "someone", "--identity", "i", "--budget", "5 tokens/day", "--expires-in", "1d"]
    key, _ = capi.new_key("keys", "create", "a", *options)
    assert None not in (key.owner, key.identity, key.budget, key.expires_at)
    capi.output("keys", "edit", "a", "--no-owner", "--no-identity", "--no-budget", "--no-expiry")
    [key] = capi.all_keys()
    assert (key.owner, key.identity, key.budget, key.expires_at) == (None, None, None, None)
    assert (key.label, key.allowed_models) == ("a", ["*"])


def test_an_edit_that_asks_for_nothing_is_refused(capi: Capi) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.all_keys(), capi.audited()
    assert "nothing was asked to be changed" in capi.refused("keys", "edit", "a")
    assert (capi.all_keys(), capi.audited()) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--owner", "x", "--no-owner"],
        ["--identity", "x", "--no-identity"],
        ["--budget", "1 tokens/day", "--no-budget"],
        ["--expires-in", "1d", "--no-expiry"],
    ],
)
def test_an_edit_that_gives_and_takes_away_is_refused(capi: Capi, options: list[str]) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.all_keys(), capi.audited()
    assert f"{options[0]} and {options[2]} contradict each other" in capi.refused("keys", "edit", "a", *options)
    assert (capi.all_keys(), capi.audited()) == before


def test_a_rotation_gives_the_old_key_an_hour_or_what_is_said(capi: Capi) -> None:
    for options, grace in (([], H), (["--grace", "7d"], 7 * D), (["--grace", "0s"], 0)):
        old, old_text = capi.new_key("keys", "create", "a")
        new, text = capi.new_key("keys", "rotate", old.id, *options)
        assert new.rotated_from == old.id
        assert text != old_text
        [ended] = [key for key in capi.all_keys() if key.id == old.id]
        assert ended.expires_at == new.created_at + grace
    assert capi.audited() == ["key.create", "key.rotate"] * 3


def test_a_revocation_is_for_good_and_keeps_its_reason(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "a")
    shown = msgspec.json.decode(capi.output("keys", "revoke", "a", "--reason", "lost", "--json"), type=KeyView)
    assert shown.revoked_at is not None
    assert capi.all_keys() == [shown]
    assert '"reason":"lost"' in capi.output("audit", "tail", "-n", "1")
    assert capi.refused("keys", "revoke", "a") == f"the key {key.id!r} is revoked already"
    assert "nothing about it can be changed" in capi.refused("keys", "edit", "a", "--label", "b")


@pytest.mark.parametrize("command", ["show", "edit", "rotate", "revoke"])
def test_a_key_that_is_not_there_is_refused(capi: Capi, command: str) -> None:
    capi.new_key("keys", "create", "a")
    capi.new_key("keys", "create", "a")
    options = {"rotate": ["--key-file", str(capi.directory.parent / "key.txt")], "edit": ["--label", "b"]}.get(
        command, []
    )
    for name in ("nobody", "a"):
        message = capi.refused("keys", command, name, *options)
        assert message == f"there is no key {name!r}, or more than one; capi keys list shows their ids"


# -- looking ------------------------------------------------------------------------------------------------------


def test_no_keys_are_told_with_what_to_do_next(capi: Capi) -> None:
    assert capi.output("keys", "list") == "There are no keys yet. Make one: capi keys create LABEL\n"
    assert capi.output("keys", "list", "--json") == "[]\n"


def test_the_table_shows_every_key_and_its_state(capi: Capi, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, options in {
        "open to all": [],
        "soon over": ["--expires-in", "1h"],
        "in time": ["--expires-in", "2d", "--model", "m", "--model", "n"],
        "no more": ["--tier", "admin", "--expires-in", "2d"],
    }.items():
        capi.new_key("keys", "create", label, *options)
    capi.output("keys", "revoke", "no more")
    later = now_ms() + D
    monkeypatch.setattr(module, "now_ms", lambda: later)
    table = capi.output("keys", "list").splitlines()
    by_label = {key.label: key for key in capi.all_keys()}
    assert re.split(r"  +", table[0]) == ["ID", "HASH", "TIER", "STATE", "MODELS", "LABEL"]
    rows = {row[-1]: row for row in (re.split(r"  +", line) for line in table[1:])}
    assert rows.keys() == by_label.keys()
    for label, key in by_label.items():
        assert rows[label][:3] == [key.id, key.hash_prefix, key.tier]
    assert [rows[label][3:5] for label in ("open to all", "soon over", "no more")] == [
        ["active", "*"],
        ["expired", "*"],
        ["revoked", "*"],
    ]
    assert re.fullmatch(r"until \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", rows["in time"][3])
    assert rows["in time"][4] == "m n"
    columns = {line.index(label) for label, line in zip(rows, table[1:], strict=True)}
    assert columns == {table[0].index("LABEL")}


def test_one_key_is_shown_with_what_there_is_to_say(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "a", "--model", "m", "--model", "n")
    for name in ("a", key.id, key.hash_prefix):
        assert msgspec.json.decode(capi.output("keys", "show", name, "--json"), type=KeyView) == key
        shown = dict(re.split(r" +", line, maxsplit=1) for line in capi.output("keys", "show", name).splitlines())
        created = shown.pop("created_at")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", created)
        assert shown == {
            "id": key.id,
            "hash_prefix": key.hash_prefix,
            "tier": "client",
            "label": "a",
            "allowed_models": "m n",
        }
