"""Identities: what may be chosen about them, what they may become, and which one a key's requests ride."""

from collections.abc import Mapping

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import Problem, ProtocolError
from capi_core.identities import (
    IdentityDraft,
    IdentityEdit,
    IdentityRecord,
    IdentityState,
    Standing,
    canonical_host,
    choose,
    is_identity_name,
    validate,
)

NOW = 1_800_000_000_000
ACTIVE, PAUSED, STOPPED = IdentityState.ACTIVE, IdentityState.PAUSED, IdentityState.STOPPED
TOKEN = "gho_" + "a" * 36


def record(
    name: str = "a",
    *,
    owner: str | None = None,
    share_reason: str | None = None,
    state: IdentityState = ACTIVE,
    state_reason: str | None = None,
) -> IdentityRecord:
    return IdentityRecord(
        id=f"idn_{name}",
        name=name,
        owner=owner,
        shared=share_reason is not None,
        share_reason=share_reason,
        state=state,
        state_reason=state_reason,
        created_at=NOW,
        updated_at=NOW,
    )


def faults(chosen: IdentityDraft | IdentityEdit) -> list[str]:
    """The names of the fields that are refused."""
    return [problem.field for problem in validate(chosen)]


# What may be chosen.


def test_a_draft_becomes_a_record_and_nothing_else_is_set() -> None:
    draft = IdentityDraft(name="ann-1", host="Octo.GHE.com/", login="ann", owner="Ann", max_in_flight=2)
    assert faults(draft) == []
    made = draft.record(id="idn_1", now_ms=NOW)
    assert made == IdentityRecord(
        id="idn_1",
        name="ann-1",
        host="octo.ghe.com",
        login="ann",
        owner="Ann",
        shared=False,
        share_reason=None,
        state=ACTIVE,
        state_reason=None,
        max_in_flight=2,
        created_at=NOW,
        updated_at=NOW,
        removed_at=None,
    )
    assert made.removed(NOW + 1) == evolve(made, removed_at=NOW + 1, updated_at=NOW + 1)


def test_a_draft_is_a_seat_at_github_com_for_the_pool_unless_said_otherwise() -> None:
    made = IdentityDraft(name="x").record(id="idn_x", now_ms=NOW)
    assert (made.host, made.login, made.owner, made.max_in_flight) == ("github.com", None, None, None)
    assert made.in_pool


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        (IdentityDraft(name="a", login="octo"), None),
        (IdentityDraft(name="a", login="octo", owner="Ann", host="https://GitHub.com", max_in_flight=1), None),
        (IdentityDraft(name="a"), "is there already, for octo at github.com: remove it first, or choose another name"),
        (IdentityDraft(name="a", login="other"), "is there already, for octo at github.com: remove"),
        (
            IdentityDraft(name="a", login="octo", host="octo.ghe.com"),
            "is there already, for octo at github.com: remove",
        ),
        (
            IdentityDraft(name="a", login="octo", owner="Bob"),
            "is there already, for the owner 'Ann': capi identities set",
        ),
    ],
)
def test_a_name_is_linked_again_by_the_same_account_only(draft: IdentityDraft, why: str | None) -> None:
    there = evolve(record(owner="Ann"), login="octo")
    mismatch = draft.mismatch(there)
    assert mismatch == why if why is None or mismatch is None else mismatch.startswith(why)


def test_an_account_that_was_not_known_becomes_known() -> None:
    assert IdentityDraft(name="a", login="octo").mismatch(record(owner="Ann")) is None
    assert IdentityDraft(name="a").mismatch(record()) == (
        "is there already, for another account: remove it first, or choose another name"
    )


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--", "x" * 64])
def test_a_name_is_a_slug(name: str) -> None:
    assert is_identity_name(name)
    assert faults(IdentityDraft(name=name)) == []


@pytest.mark.parametrize(
    "name", ["", "-a", "A", "a_b", "a.b", "a/b", "..", "a b", "a\n", "ä", "\uff41", "x" * 65, "a\0"]
)
def test_no_other_name_is_one(name: str) -> None:
    """It becomes a file's name: nothing in it may lead elsewhere."""
    assert not is_identity_name(name)
    assert faults(IdentityDraft(name=name)) == ["name"]


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("github.com", "github.com"),
        ("https://GitHub.com/", "github.com"),
        ("ghe.example.com:8443", "ghe.example.com:8443"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
    ],
)
def test_a_host_is_written_in_one_way(text: str, host: str) -> None:
    assert canonical_host(text) == host
    assert canonical_host(host) == host
    assert IdentityDraft(name="a", host=text).record(id="i", now_ms=NOW).host == host


@pytest.mark.parametrize(
    "host", ["", "github", "http://github.com", "github.com/x", "a@github.com", "github.com?", "a b.c"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert faults(IdentityDraft(name="a", host=host)) == ["host"]
    with pytest.raises(ProtocolError):
        canonical_host(host)


@pytest.mark.parametrize("login", ["", "a b", "a\n", "a/b", "x" * 101])
def test_a_login_is_one_of_githubs(login: str) -> None:
    assert faults(IdentityDraft(name="a", login=login)) == ["login"]
    assert faults(IdentityEdit(login=login)) == ["login"]
    assert faults(IdentityEdit(login="octo-cat_corp")) == []


@pytest.mark.parametrize("owner", ["", " x", "a\nb", "x" * 101, f"it is {TOKEN}", "github_pat_11A", "sk-cap-x"])
def test_an_owner_is_one_printable_line_and_holds_no_secret(owner: str) -> None:
    assert faults(IdentityDraft(name="a", owner=owner)) == ["owner"]
    (problem,) = validate(IdentityEdit(owner=owner))
    assert problem.field == "owner"
    assert len(owner) < 5 or owner not in problem.message


@pytest.mark.parametrize("cap", [-1, 0, 1001])
def test_a_cap_lets_something_through(cap: int) -> None:
    assert faults(IdentityDraft(name="a", max_in_flight=cap)) == ["max_in_flight"]
    assert faults(IdentityEdit(max_in_flight=cap)) == ["max_in_flight"]


@pytest.mark.parametrize("cap", [None, 1, 1000])
def test_a_cap_that_can_be(cap: int | None) -> None:
    assert faults(IdentityDraft(name="a", max_in_flight=cap)) == faults(IdentityEdit(max_in_flight=cap)) == []


def test_everything_that_is_wrong_is_told_at_once() -> None:
    draft = IdentityDraft(name="A", host="x", login="", owner="", max_in_flight=0)
    assert faults(draft) == ["name", "host", "login", "owner", "max_in_flight"]


def test_an_edit_of_nothing_and_a_taking_away_are_no_fault() -> None:
    assert faults(IdentityEdit()) == faults(IdentityEdit(login=None, owner=None, max_in_flight=None)) == []


@pytest.mark.parametrize("reason", ["", "a\nb", "x" * 301, TOKEN])
def test_a_reason_is_one_printable_line_and_holds_no_secret(reason: str) -> None:
    assert faults(IdentityEdit(state=PAUSED, reason=reason)) == ["reason"]
    assert faults(IdentityEdit(state=PAUSED, reason="x" * 300)) == []


def test_sharing_needs_a_reason_and_nothing_else_does() -> None:
    assert faults(IdentityEdit(shared=True)) == ["reason"]
    assert faults(IdentityEdit(shared=True, reason="on call")) == []
    assert faults(IdentityEdit(shared=False)) == faults(IdentityEdit(state=STOPPED)) == []


# What an identity may become.


def test_an_edit_changes_what_it_names_and_when_it_was_changed() -> None:
    before = record(owner="Ann", share_reason="on call", state=PAUSED, state_reason="ill")
    assert IdentityEdit().apply(before, NOW + 5) == evolve(before, updated_at=NOW + 5)
    edit = IdentityEdit(login="ann", owner="Ann", max_in_flight=3)
    wanted = evolve(before, login="ann", max_in_flight=3, updated_at=NOW + 5)
    assert edit.apply(before, NOW + 5) == wanted
    taken = IdentityEdit(login=None, max_in_flight=None).apply(wanted, NOW + 5)
    assert taken == evolve(before, updated_at=NOW + 5)


def test_a_state_comes_with_its_own_reason_and_the_old_one_goes() -> None:
    paused = IdentityEdit(state=PAUSED, reason="quota").apply(record(), NOW)
    assert (paused.state, paused.state_reason) == (PAUSED, "quota")
    stopped = IdentityEdit(state=STOPPED).apply(paused, NOW)
    assert (stopped.state, stopped.state_reason) == (STOPPED, None)
    assert IdentityEdit(state=ACTIVE).apply(paused, NOW) == record()


def test_sharing_keeps_its_reason_and_ends_without_one() -> None:
    own = record(owner="Ann")
    shared = IdentityEdit(shared=True, reason="on call").apply(own, NOW)
    assert shared == record(owner="Ann", share_reason="on call")
    assert shared.in_pool
    assert not own.in_pool
    assert IdentityEdit(shared=False, reason="back").apply(shared, NOW) == own


@pytest.mark.parametrize("owner", ["Bob", None])
def test_what_an_owner_shared_the_next_one_has_not(owner: str | None) -> None:
    shared = record(owner="Ann", share_reason="on call")
    assert IdentityEdit(owner=owner).apply(shared, NOW) == record(owner=owner)
    again = IdentityEdit(owner="Bob", shared=True, reason="mine").apply(record(owner="Ann"), NOW)
    assert again == record(owner="Bob", share_reason="mine")


SHARED = record(owner="Ann", share_reason="on call")


@pytest.mark.parametrize(
    ("edit", "before", "why"),
    [
        (IdentityEdit(state=ACTIVE), record(), "is active already"),
        (IdentityEdit(state=PAUSED), record(state=PAUSED), "is paused already"),
        (IdentityEdit(state=STOPPED), record(state=STOPPED), "is stopped already"),
        (IdentityEdit(state=PAUSED), record(state=STOPPED), "is stopped, which is more than paused: resume it first"),
        (IdentityEdit(shared=True, reason="x"), SHARED, "is shared already"),
        (IdentityEdit(shared=False), record(owner="Ann"), "is not shared"),
        (IdentityEdit(shared=True), record(), "has no owner, so it serves everybody's keys already"),
        (
            IdentityEdit(shared=True, owner=None),
            record(owner="Ann"),
            "has no owner, so it serves everybody's keys already",
        ),
    ],
)
def test_what_is_so_already_or_makes_no_sense_is_a_conflict(
    edit: IdentityEdit, before: IdentityRecord, why: str
) -> None:
    """Two operators at once: the second is told, and the audit log has no row that changed nothing."""
    assert edit.conflict(before) == why


@pytest.mark.parametrize(
    ("edit", "before"),
    [
        (IdentityEdit(), record()),
        (IdentityEdit(state=STOPPED), record(state=PAUSED)),
        (IdentityEdit(state=ACTIVE), record(state=STOPPED)),
        (IdentityEdit(shared=False), SHARED),
        (IdentityEdit(shared=True), record(owner="Ann")),
        (IdentityEdit(shared=True, owner="Bob"), record()),
    ],
)
def test_everything_else_can_be_done(edit: IdentityEdit, before: IdentityRecord) -> None:
    assert edit.conflict(before) is None


# Which identity a request rides.


def name_of(chosen: IdentityRecord | Problem) -> str:
    return chosen.name if isinstance(chosen, IdentityRecord) else f"{chosen.status} {chosen.code}: {chosen.message}"


def chosen(
    *identities: IdentityRecord,
    owner: str | None = None,
    identity: str | None = None,
    sticky: str | None = None,
    loads: Mapping[str, int] | None = None,
    standings: Mapping[str, Standing] | None = None,
) -> str:
    """The name of the one that is chosen, or the problem in words."""
    busy, known = loads or {}, standings or {}
    picked = choose(
        identities,
        owner=owner,
        identity=identity,
        standing=lambda name: known.get(name, Standing.READY),
        load=lambda name: busy.get(name, 0),
        sticky=sticky,
    )
    return name_of(picked)


ANN, BOB, POOL = record("ann", owner="Ann"), record("bob", owner="Bob"), record("pool")
ANNS_SHARED = record("ann-2", owner="Ann", share_reason="on call")


def test_a_key_rides_its_owners_own_identity_and_leaves_the_pool_alone() -> None:
    assert chosen(POOL, ANNS_SHARED, BOB, owner="Bob", loads={"bob": 99}) == "bob"
    assert chosen(POOL, ANN, BOB, owner="Ann") == "ann"


@pytest.mark.parametrize("owner", [None, "Carl"])
def test_a_key_whose_owner_has_none_rides_the_pool(owner: str | None) -> None:
    """What is shared, and what has no owner; never what an owner keeps."""
    assert chosen(ANN, BOB, POOL, owner=owner) == "pool"
    assert chosen(ANN, ANNS_SHARED, owner=owner) == "ann-2"
    for none in ((), (ANN, BOB)):
        assert chosen(*none, owner=owner).startswith("403 no_identity: no identity serves this key")


@pytest.mark.parametrize("sticky", [None, "pool"])
def test_a_bound_key_rides_no_other_identity(sticky: str | None) -> None:
    assert chosen(ANN, ANNS_SHARED, POOL, owner="Ann", identity="ann", loads={"ann": 99}, sticky=sticky) == "ann"
    assert chosen(ANN, ANNS_SHARED, owner="Bob", identity="ann-2") == "ann-2"
    assert chosen(ANN, POOL, owner=None, identity="pool") == "pool"
    assert "bound to the identity 'gone', and there is none" in chosen(ANN, POOL, owner="Ann", identity="gone")


@pytest.mark.parametrize("owner", [None, "Bob"])
def test_a_binding_is_no_way_around_sharing(owner: str | None) -> None:
    assert "of another owner, who does not share it" in chosen(ANN, POOL, BOB, owner=owner, identity="ann")


def test_a_stopped_identity_is_never_chosen_and_no_other_seat_takes_its_place() -> None:
    """The kill switch does not move an owner's traffic to somebody else's seat."""
    stopped = evolve(ANN, state=STOPPED)
    assert chosen(stopped, ANNS_SHARED, owner="Ann", sticky="ann") == "ann-2"
    told = chosen(stopped, POOL, owner="Ann")
    assert told == (
        "403 no_identity: what serves this key is stopped: ann. The operator can run: capi identities resume"
    )
    assert "is stopped: ann." in chosen(stopped, POOL, owner="Ann", identity="ann")
    assert "is stopped: a, pool." in chosen(evolve(POOL, state=STOPPED), record("a", state=STOPPED), owner="Carl")


def test_a_paused_identity_is_chosen_only_when_nothing_else_is_left() -> None:
    """Then its gate says how long."""
    paused = evolve(ANN, state=PAUSED)
    assert chosen(paused, ANNS_SHARED, owner="Ann", sticky="ann", loads={"ann-2": 9}) == "ann-2"
    assert chosen(paused, evolve(ANNS_SHARED, state=STOPPED), owner="Ann") == "ann"
    assert chosen(paused, POOL, owner="Ann") == "ann"


def test_the_one_with_the_least_to_do_is_chosen_and_of_equals_the_first_by_name() -> None:
    three = [record(name) for name in ("c", "a", "b")]
    assert chosen(*three) == "a"
    assert chosen(*three, loads={"a": 1}) == "b"
    assert chosen(*three, loads={"a": 2, "b": 2, "c": 1}) == "c"


def test_a_conversation_stays_where_it_was_as_long_as_it_may() -> None:
    assert chosen(POOL, record("a"), sticky="pool", loads={"pool": 99}) == "pool"
    assert chosen(POOL, record("a"), sticky="gone") == "a"
    assert chosen(POOL, ANN, sticky="ann") == "pool"


OWNERS = st.sampled_from([None, "Ann", "Bob"])
RECORDS = st.builds(
    lambda name, owner, shared, state: record(
        name, owner=owner, share_reason="why" if shared and owner is not None else None, state=state
    ),
    st.sampled_from("abcdef"),
    OWNERS,
    st.booleans(),
    st.sampled_from(IdentityState),
)


def test_one_that_cannot_serve_now_is_left_out_while_another_can() -> None:
    """It has the least to do because it does nothing, and would draw everything."""
    a, b = record("a"), record("b")
    for standing in (Standing.PAUSED, Standing.UNUSABLE):
        for sticky in (None, "a"):
            assert chosen(a, b, loads={"b": 9}, standings={"a": standing}, sticky=sticky) == "b"
    assert chosen(a, b, standings={"a": Standing.UNUSABLE, "b": Standing.PAUSED}) == "b"
    assert chosen(a, record("b", state=PAUSED), standings={"a": Standing.UNUSABLE}) == "b"
    assert chosen(a, b, standings=dict.fromkeys("ab", Standing.PAUSED), sticky="b") == "b"


@given(
    st.lists(RECORDS, unique_by=lambda found: found.name),
    OWNERS,
    st.none() | st.sampled_from("abcdef"),
    st.none() | st.sampled_from("abcdef"),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5)),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(Standing)),
)
def test_nobody_rides_a_seat_that_is_not_theirs_not_shared_or_stopped(
    identities: list[IdentityRecord],
    owner: str | None,
    identity: str | None,
    sticky: str | None,
    loads: dict[str, int],
    standings: dict[str, Standing],
) -> None:
    def pick(among: list[IdentityRecord]) -> IdentityRecord | Problem:
        return choose(
            among,
            owner=owner,
            identity=identity,
            standing=lambda name: standings.get(name, Standing.READY),
            load=lambda name: loads.get(name, 0),
            sticky=sticky,
        )

    picked = pick(identities)
    assert pick(identities[::-1]) == picked, "the order in which they are given does not matter"
    if isinstance(picked, Problem):
        assert (picked.status, picked.code) == (403, "no_identity")
        return
    assert picked in identities
    assert picked.serves(owner)
    assert picked.state is not STOPPED
    assert identity in (None, picked.name)
    if picked.owner != owner and identity is None:
        assert owner is None or all(found.owner != owner for found in identities)
