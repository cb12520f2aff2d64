"""The upstreams' model lists: what is read of one, and how they are kept."""

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock
from typing_extensions import override

from capi_core.config import Config, UpstreamConfig
from capi_trio.catalog import CatalogKeeper, decode_model_list
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply


def upstream(name: str, models: list[str] | None = None) -> UpstreamConfig:
    return UpstreamConfig(kind="openai", base_url=f"http://{name}.test/v1", models=models)


def listing(*names: str) -> Reply:
    return fakes.json_reply({"object": "list", "data": [{"id": name, "owned_by": "x"} for name in names]})


class ByHost(httpx.AsyncBaseTransport):
    """An upstream of its own for each host."""

    def __init__(self, **upstreams: FakeUpstream) -> None:
        self.upstreams = upstreams

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.upstreams[request.url.host.partition(".")[0]].handle_async_request(request)


def keeper(**upstreams: FakeUpstream) -> CatalogKeeper:
    config = Config(upstreams={name: upstream(name) for name in upstreams})
    return CatalogKeeper(config, fakes.client(ByHost(**upstreams), *upstreams))


def names(kept: CatalogKeeper) -> list[str]:
    return [model.name for model in kept.catalog.listed()]


# -- reading one ---------------------------------------------------------------------------------------------------


def test_a_list_is_taken_apart_into_raw_records() -> None:
    body = b'{"object": "list", "data": [{"id": "a", "x": 1.0}, {"x": [], "id":"b"}], "more": {}}'
    assert decode_model_list(body) == {"a": b'{"id": "a", "x": 1.0}', "b": b'{"x": [], "id":"b"}'}


def test_entries_without_an_id_are_left_out_and_the_first_of_two_counts() -> None:
    body = b'{"data": [{"id": 1}, {"name": "a"}, "a", null, {"id": "a", "n": 1}, {"id": "a", "n": 2}]}'
    assert decode_model_list(body) == {"a": b'{"id": "a", "n": 1}'}


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"{}", b'{"data": null}', b'{"data": {}}', b"<html>", b'{"data": [}', b"\xff"],
)
def test_anything_else_is_no_list(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a model list"):
        decode_model_list(body)


@pytest.mark.parametrize("body", [DEEP, b'{"data": [{"id": "a", "x": ' + DEEP + b"}]}"])
def test_depth_is_no_fault(body: bytes) -> None:
    try:
        assert decode_model_list(body) in ({}, {"a": body[10:-2]})
    except ValueError as error:
        assert str(error) == "not a model list"  # noqa: PT017 - either is right


@given(st.binary() | st.binary().map(lambda data: b'{"data": [' + data + b"]}"))
def test_no_bytes_are_a_fault(body: bytes) -> None:
    try:
        decode_model_list(body)
    except ValueError as error:
        assert str(error) == "not a model list"  # noqa: PT017 - either is right


# -- keeping them --------------------------------------------------------------------------------------------------


async def test_lists_are_asked_for_all_at_once(autojump_clock: MockClock) -> None:
    slow = {"data": [{"id": "m"}]}
    kept = keeper(
        a=FakeUpstream(fakes.json_reply(slow, head_after=8.0)), b=FakeUpstream(fakes.json_reply(slow, head_after=9.0))
    )
    await kept.refresh()
    assert trio.current_time() == 9
    assert kept.catalog.resolve("m").upstream == "a"


async def test_an_upstream_that_cannot_be_asked_does_not_hide_the_others(autojump_clock: MockClock) -> None:
    """It is asked for any model that nobody lists, and its own answer decides."""
    lists = {
        "down": FakeUpstream(httpx.ConnectError("sk-secret")),
        "odd": FakeUpstream(fakes.json_reply({"models": []})),
        "up": FakeUpstream(listing("m")),
    }
    with capture_logs() as logs:
        kept = keeper(**lists)
        assert kept.catalog.resolve("m").upstream == "down"
        await kept.refresh()
    assert names(kept) == ["m"]
    assert kept.catalog.resolve("m").upstream == "up"
    assert kept.catalog.resolve("x").upstream == "down"
    told = {line["upstream"]: (line["event"], line.get("reason"), line.get("models")) for line in logs}
    assert told == {
        "down": ("model_list_unavailable", "unreachable: ConnectError", None),
        "odd": ("model_list_unavailable", "not a model list", None),
        "up": ("model_list", None, 1),
    }


async def test_a_list_in_the_configuration_is_not_asked_for(autojump_clock: MockClock) -> None:
    up = FakeUpstream(listing("other"))
    config = Config(upstreams={"up": upstream("up", ["m"])})
    kept = CatalogKeeper(config, fakes.client(up))
    await kept.refresh()
    assert up.asked == []
    assert names(kept) == ["m"]


async def test_a_list_is_kept_while_its_upstream_is_away(autojump_clock: MockClock) -> None:
    up = FakeUpstream(listing("m"), httpx.ConnectError("x"), fakes.json_reply({}, 500), listing("n"))
    kept = keeper(up=up)
    for wanted in (["m"], ["m"], ["m"], ["n"]):
        await kept.refresh()
        assert names(kept) == wanted


async def test_a_snapshot_is_never_changed(autojump_clock: MockClock) -> None:
    kept = keeper(up=FakeUpstream(listing("m"), listing("n")))
    await kept.refresh()
    before = kept.catalog
    await kept.refresh()
    assert [model.name for model in before.listed()] == ["m"]
    assert names(kept) == ["n"]


async def test_lists_are_refreshed_every_hour_and_sooner_while_one_is_missing(autojump_clock: MockClock) -> None:
    up = FakeUpstream(httpx.ConnectError("x"), httpx.ConnectError("x"), listing("m"), listing("n"))
    kept = keeper(up=up)
    async with trio.open_nursery() as nursery:
        assert not kept.ready.is_set()
        nursery.start_soon(kept.run)
        await trio.sleep(1)
        assert kept.ready.is_set()  # the first round is over, whatever came of it
        assert len(up.asked) == 1
        await trio.sleep(30)
        assert len(up.asked) == 2
        await trio.sleep(30)
        assert names(kept) == ["m"]
        await trio.sleep(3500)
        assert len(up.asked) == 3
        await trio.sleep(150)
        assert names(kept) == ["n"]
        nursery.cancel_scope.cancel()


async def test_an_upstream_that_drips_does_not_hold_the_catalog_up(autojump_clock: MockClock) -> None:
    kept = keeper(drip=FakeUpstream(Reply([1.0, b" "] * 100_000)), up=FakeUpstream(listing("m")))
    await kept.refresh()
    assert trio.current_time() <= 10
    assert names(kept) == ["m"]


async def test_lists_are_asked_for_anew_when_somebody_wants_it(autojump_clock: MockClock) -> None:
    """A seat was linked, or the operator says so."""
    up = FakeUpstream(listing("m"), listing("n"))
    kept = keeper(up=up)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        await kept.ready.wait()
        assert names(kept) == ["m"]
        kept.refresh_soon()
        await trio.testing.wait_all_tasks_blocked()
        assert names(kept) == ["n"]
        assert trio.current_time() < 1
        nursery.cancel_scope.cancel()
