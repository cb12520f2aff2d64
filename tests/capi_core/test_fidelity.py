"""The ledger tells what a translation lost, once each, and stays small."""

from capi_core.fidelity import Change, Entry, Ledger


def test_only_losses_make_it_lossy() -> None:
    ledger = Ledger()
    for change in Change:
        ledger.add(change, "$.x", "why")
    assert (ledger.total, ledger.losses, ledger.header()) == (5, 2, "lossy; n=2")
    assert {entry.change for entry in ledger if entry.lossy} == {Change.DROPPED, Change.ALTERED}


def test_without_losses_it_is_exact() -> None:
    ledger = Ledger()
    assert ledger.header() == "exact"
    ledger.add(Change.RENAMED, "$.tools[0]", "why")
    assert (ledger.header(), ledger.losses) == ("exact", 0)


def test_the_same_loss_twice_is_one() -> None:
    ledger = Ledger()
    for path in ("$.a", "$.a", "$.b"):
        ledger.dropped(path, "why")
    assert ledger.total == 2
    assert ledger.entries == tuple(ledger) == tuple(Entry(Change.DROPPED, path, "why") for path in ("$.a", "$.b"))


def test_a_hostile_request_is_counted_and_not_held() -> None:
    ledger = Ledger()
    for at in range(1000):
        ledger.dropped(f"$.messages[{at}]", "why")
    assert (ledger.total, ledger.losses, len(ledger.entries)) == (1000, 1000, 256)
