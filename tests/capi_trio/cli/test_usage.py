"""`capi usage`: what is printed of which requests, for people, programs and spreadsheets, with and without a server."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from capi_core.commands import Outcome
from capi_core.usage import UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.cli import main, operate
from capi_trio.cli import usage as module
from capi_trio.storage.usage import UsageBatch
from capi_trio.usage_reports import UsageBy, UsageReport
from tests.capi_trio.cli.helpers import Capi
from tests.capi_trio.storage.helpers import open_store
from tests.capi_trio.test_control import open_control
from tests.support.usage_rows import MINUTE, refusal, usage_event

HOUR = 3_600_000
NOW = MINUTE + 30_000


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which the command is run, where no server runs."""
    monkeypatch.setattr(operate, "now_ms", lambda: NOW)


@pytest.fixture
def capi(tmp_path: Path) -> Capi:
    return Capi(tmp_path / "data")


def recent(number: object = 0, *, ago_ms: int = 0, **changes: object) -> UsageEvent:
    """A request that began so long ago."""
    return usage_event(number, **{"ts_ms": NOW - ago_ms, **changes})


def record(capi: Capi, *events: UsageEvent) -> None:
    """Stores requests as a server does, that has stopped since."""

    async def store() -> None:
        async with open_store(capi.directory) as opened:
            await opened.database.store_usage(UsageBatch("batch", events))

    trio.run(store)


def table(text: str) -> list[dict[str, str]]:
    """The rows of a printed table. No cell of these tests has two spaces in it."""
    head, *rows = [line for line in text.split("\n\n")[1].splitlines() if line]
    starts = [part for part in head.replace("  ", "\0").split("\0") if part.strip()]
    cells = [[cell.strip() for cell in row.replace("  ", "\0").split("\0") if cell.strip()] for row in rows]
    return [dict(zip((name.strip() for name in starts), row, strict=False)) for row in cells]


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# -- for people -----------------------------------------------------------------------------------------------------


def test_a_line_for_each_key_with_its_label_and_a_total(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "laptop")
    record(
        capi,
        recent(1, key_id=key.id),
        recent(2, key_id=key.id, outcome=Outcome.TIMEOUT, cost_micros=1_234_567_890),
        recent(3, key_id="key_gone", outcome=Outcome.CLIENT_GONE),
        refusal(4, ts_ms=NOW, key_id=key.id),
    )
    shown = capi.output("usage")
    assert shown.startswith("Usage since 20")
    mine, other, total = table(shown)
    assert (mine["KEY"], mine["LABEL"], other["KEY"], other["LABEL"]) == (key.id, "laptop", "key_gone", "-")
    counted = {"REQUESTS": "3", "ERRORS": "1", "ABORTED": "0", "REFUSED": "1", "IN": "200", "CACHE READ": "40"}
    told = {"CACHE WRITE": "6", "OUT": "80", "REASONING": "10", "COST USD": "1,234.5687", "UNPRICED": "0"}
    assert {name: mine[name] for name in counted | told} == counted | told
    assert (other["ABORTED"], other["COST USD"]) == ("1", "0.0008")
    assert list(total.values())[:2] == ["total", "4"]


def test_durations_are_shown_in_milliseconds(capi: Capi) -> None:
    record(capi, *(recent(ms, latency_ms=ms, ttft_ms=2.0) for ms in range(100, 2100, 100)))
    line = table(capi.output("usage", "--by", "model"))[0]
    assert line["MODEL"] == "fast"
    assert 950 <= int(line["P50 MS"].replace(",", "")) <= 1050
    assert 1800 <= int(line["P95 MS"].replace(",", "")) <= 2000
    assert 1.9 <= float(line["TTFT MS"]) <= 2.1


def test_what_nobody_told_is_a_dash_and_never_0_and_it_is_said(capi: Capi) -> None:
    record(capi, recent(usage=None, usage_source=UsageSource.NONE, cost_micros=None, ttft_ms=None))
    shown = capi.output("usage", "--by", "upstream")
    line, _ = table(shown)
    assert line["UPSTREAM"] == "copilot"
    names = "IN", "CACHE READ", "CACHE WRITE", "OUT", "REASONING", "COST USD", "TTFT MS"
    assert {line[name] for name in names} == {"-"}
    assert (line["UNKNOWN"], line["UNPRICED"]) == ("1", "1")
    assert "UNKNOWN: of 1 the upstream did not tell all tokens" in shown
    assert "UNPRICED: of 1 the cost is not known" in shown


def test_when_everything_was_told_there_is_nothing_to_remark(capi: Capi) -> None:
    record(capi, recent())
    assert not any(word in capi.output("usage").partition("total")[2] for word in ("UNKNOWN", "UNPRICED"))


def test_requests_that_led_to_no_model_have_a_line_too(capi: Capi) -> None:
    record(capi, refusal(1, ts_ms=NOW, model=None))
    assert table(capi.output("usage", "--by", "model"))[0]["MODEL"] == "-"


def test_figures_stand_at_the_right(capi: Capi) -> None:
    record(capi, *(recent(number, model="many") for number in range(1200)), recent("a", model="few"))
    head, many, few, total = capi.output("usage", "--by", "model").split("\n\n")[1].splitlines()
    end = head.index("REQUESTS") + len("REQUESTS")
    assert [row[:end].split()[-1] for row in (many, few, total)] == ["1,200", "1", "1,201"]
    assert many.startswith("many ")


def test_without_requests_that_is_said(capi: Capi) -> None:
    assert capi.output("usage", "--since", "2d").startswith("There were no requests since 20")
    assert capi.output("usage", "--by", "day").endswith("Z.\n")


@pytest.mark.parametrize("since", ["yesterday", "401d", "2999-01-01", "0h"])
def test_a_window_that_is_none_is_refused(capi: Capi, since: str) -> None:
    assert capi.refused("usage", "--since", since).startswith("since must ")


def test_a_window_that_is_asked_for_is_the_one_that_is_shown(capi: Capi) -> None:
    record(capi, recent(1), recent(2, ago_ms=3 * HOUR))
    for since, requests in (("2h", 1), ("4h", 2)):
        report = msgspec.json.decode(capi.output("usage", "--since", since, "--json"), type=UsageReport)
        assert report.total.requests == requests


# -- the chart ------------------------------------------------------------------------------------------------------


class _Screen(io.StringIO):
    """A standard output that somebody looks at, or nobody."""

    def __init__(self, encoding: str | None = "utf-8", *, seen: bool = True) -> None:
        super().__init__()
        self._encoding, self._seen = encoding, seen

    @property
    @override
    def encoding(self) -> str:  # type: ignore[override]  # which is no plain attribute, whatever its stub says
        return self._encoding  # type: ignore[return-value]  # as of a StringIO, where it is None

    @override
    def isatty(self) -> bool:
        return self._seen


def shown_on(screen: _Screen, capi: Capi, *arguments: str, columns: int = 200) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("CAPI_DATABASE", raising=False)
        patched.setenv("COLUMNS", str(columns))
        patched.setattr(sys, "stdout", screen)
        main.main(["usage", *arguments, "--data-dir", str(capi.directory)], "capi", standalone_mode=False)
    return screen.getvalue()


@pytest.mark.parametrize(("by", "spans"), [("hour", 25), ("day", 2)])
def test_on_a_terminal_there_is_a_row_of_bars(capi: Capi, by: str, spans: int) -> None:
    record(capi, *(recent(number) for number in range(9)))
    *_, title, bars = shown_on(_Screen(), capi, "--by", by).rstrip("\n").splitlines()
    assert title == f"requests in each {by}, at most 9"
    assert bars.lstrip(" ") == "█"
    assert len(bars) == spans


def test_on_a_narrow_terminal_a_bar_is_of_several_hours(capi: Capi) -> None:
    record(capi, *(recent(number) for number in range(9)), recent("a", ago_ms=6 * HOUR))
    *_, title, bars = shown_on(_Screen(), capi, "--by", "hour", columns=10).rstrip("\n").splitlines()
    assert title == "requests in each 3 hours, at most 9"
    assert (len(bars), sorted(set(bars))) == (9, [" ", "▁", "█"])


@pytest.mark.parametrize(
    "screen",
    [lambda: _Screen("ascii"), lambda: _Screen("latin-1"), lambda: _Screen(None), lambda: _Screen("none"),
     lambda: _Screen(seen=False)],
    ids=["ascii", "latin-1", "unknown", "nonsense", "no terminal"],
)  # fmt: skip
def test_where_bars_could_not_be_seen_there_are_none(capi: Capi, screen: Callable[[], _Screen]) -> None:
    record(capi, recent())
    shown = shown_on(screen(), capi, "--by", "hour")
    assert shown.isascii()
    assert "requests in each" not in shown


@pytest.mark.parametrize("by", ["key", "model", "upstream"])
def test_what_is_no_time_has_no_bars(capi: Capi, by: str) -> None:
    record(capi, recent())
    assert "requests in each" not in shown_on(_Screen(), capi, "--by", by)


# -- for programs and spreadsheets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [by.value for by in UsageBy])
def test_json_and_csv_hold_the_same_figures(capi: Capi, by: str) -> None:
    record(capi, recent(1), recent(2, cost_micros=None, usage=None, usage_source=UsageSource.NONE, key_id="b"))
    report = msgspec.json.decode(capi.output("usage", "--by", by, "--json"), type=UsageReport)
    assert report.by is UsageBy(by)
    told = records(capi.output("usage", "--by", by, "--csv"))
    assert len(told) == len(report.lines)
    for line, row in zip(report.lines, told, strict=True):
        for name in ("requests", "output", "unknown_usage", "unknown_cost", "latency_p50_ms", "ttft_p50_ms"):
            value = getattr(line, name)
            assert row[name] == ("" if value is None else str(value))
        assert row["cost_usd"] == ("" if line.cost_micros is None else f"0.{line.cost_micros:06d}")
        assert ("label" in row) == (by == "key")
        if line.starts_at is None:
            assert row[by] == line.name
        else:
            assert row[by].endswith(":00:00Z")


def test_csv_is_as_rfc_4180_says(capi: Capi) -> None:
    record(capi, recent(1, model='a "b", c'))
    text = capi.output("usage", "--by", "model", "--csv")
    assert '\n"a ""b"", c",1,0,' in text
    assert records(text)[0]["model"] == 'a "b", c'
    assert text.startswith("model,requests,errors,")


def test_csv_ends_its_lines_with_cr_and_lf(capi: Capi) -> None:
    record(capi, recent())
    raw = capi.run("usage", "--csv").stdout_bytes
    assert raw.count(b"\r\n") == raw.count(b"\n") == 2
    assert raw.endswith(b"\r\n")


def test_no_name_becomes_a_formula(capi: Capi) -> None:
    key, _ = capi.new_key("keys", "create", "@SUM(1)")
    record(capi, recent(1, key_id=key.id, model="=1+1"), recent(2, key_id=key.id, model="-2"))
    assert [row["model"] for row in records(capi.output("usage", "--by", "model", "--csv"))] == ["'-2", "'=1+1"]
    assert records(capi.output("usage", "--csv"))[0]["label"] == "'@SUM(1)"
    names = {
        line.name
        for line in msgspec.json.decode(capi.output("usage", "--by", "model", "--json"), type=UsageReport).lines
    }
    assert names == {"=1+1", "-2"}, "a program gets what it is"


@given(st.text())
def test_whatever_begins_a_formula_is_led_by_an_apostrophe(text: str) -> None:
    guarded = module._guarded(text)
    assert guarded == (f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text)
    assert module._guarded(None) is None


def test_one_form_at_a_time(capi: Capi) -> None:
    assert "contradict" in capi.refused("usage", "--csv", "--json")


def test_only_what_there_is_to_group_by_is_taken(capi: Capi) -> None:
    assert capi.run("usage", "--by", "prompt").exit_code == 2


# -- with a server --------------------------------------------------------------------------------------------------


async def test_a_running_server_is_asked(tmp_path: Path) -> None:
    async with open_control(tmp_path / "data") as ring:
        made = await ring.make("laptop")
        ring.clock.now = NOW
        await ring.store.database.store_usage(UsageBatch("batch", [recent(key_id=made.record.id)]))
        capi = Capi(tmp_path / "data")
        shown = await trio.to_thread.run_sync(capi.output, "usage")
        assert [(row["KEY"], row["LABEL"], row["REQUESTS"]) for row in table(shown)[:1]] == [
            (made.record.id, "laptop", "1")
        ]
        refused = await trio.to_thread.run_sync(capi.refused, "usage", "--since", "9999d")
        assert refused == "since must be at most 400 days ago"


def test_looking_changes_nothing_and_is_not_audited(capi: Capi) -> None:
    capi.new_key("keys", "create", "a")
    before = capi.audited()
    capi.output("usage")
    assert capi.audited() == before
