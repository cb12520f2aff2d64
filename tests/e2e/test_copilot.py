"""A gateway in front of Copilot seats, in processes and over sockets: GitHub is the demo provider's."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import anthropic
import httpx
import msgspec
import openai
import pytest
import trio

from capi_trio.control import ask
from capi_trio.demo.github import Call, DemoGitHub
from capi_trio.identity_operations import (
    AddIdentity,
    IdentityAnswer,
    IdentityStatus,
    IdentityUsage,
    PauseIdentity,
    ResumeIdentity,
    SetIdentity,
    ShareIdentity,
    ShowIdentity,
    StopIdentity,
)
from capi_trio.operations import CreateKey
from capi_trio.quotas import SeatUsage
from capi_trio.seat_status import SeatStatus
from tests.e2e.conftest import faultless
from tests.support.github_server import serving
from tests.support.process import Capi, command, gateway, issue_key

CONFIG: Final = {"upstreams": {"github": {"kind": "copilot"}}, "limits": {"max_in_flight_per_identity": 4}}
QUICK: Final = '[[demo {"pace_ms": 0}]]'
TOKENS: Final = {name: f"ghu_{name}TokenOfThisSeat0000" for name in ("ann", "ben")}


def github(**attributes: int) -> DemoGitHub:
    made = DemoGitHub()
    made.entitlement = 1_000_000
    for name, token in TOKENS.items():
        made.link(token, name)
    for attribute, value in attributes.items():
        setattr(made, attribute, value)
    return made


async def in_thread(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work)


def link(data_dir: Path, url: str, name: str, owner: str | None = None) -> None:
    answer = ask(data_dir, AddIdentity(name=name, host=url, token=TOKENS[name], owner=owner, login=name))
    assert isinstance(answer, IdentityAnswer), answer


def client(capi: Capi, api_key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{capi.url}/v1", api_key=api_key, max_retries=0, timeout=30)


def chat(capi: Capi, text: str = f"hello {QUICK}", api_key: str = "unused") -> str:
    with client(capi, api_key) as sdk:
        asked = sdk.chat.completions.create(model="demo-chat", messages=[{"role": "user", "content": text}])
    return asked.choices[0].message.content or ""


async def test_each_protocol_is_answered_over_a_seat(tmp_path: Path) -> None:
    """By the official SDKs; each model in the protocol that Copilot's list gives it."""
    hub = github()
    async with serving(hub) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG)) as capi:
                link(tmp_path, url, "ann")
                capi.wait_for(lambda: bool(capi.events("model_list")))
                assert chat(capi)
                with anthropic.Anthropic(base_url=capi.url, api_key="unused", max_retries=0, timeout=30) as claude:
                    said = claude.messages.create(
                        model="demo-claude", max_tokens=500, messages=[{"role": "user", "content": f"hello {QUICK}"}]
                    )
                assert said.content
                with client(capi) as sdk:
                    assert sdk.responses.create(model="demo-gpt", input=f"hello {QUICK}").output_text
                lines = [capi.log_line("exchange", operation=name) for name in ("chat", "messages", "responses")]
                assert [(line["identity"], line["upstream_protocol"]) for line in lines] == [
                    ("ann", "chat"),
                    ("ann", "messages"),
                    ("ann", "responses"),
                ]
            assert TOKENS["ann"] not in str(capi.logs) + str(capi.text)

        await in_thread(work)
    assert hub.calls[Call.COPILOT_TOKEN] == 1
    assert hub.initiators == {"user": 3}


async def test_a_key_rides_its_owners_seat_and_no_other_until_it_is_shared(tmp_path: Path) -> None:
    async with serving(github()) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG, auth=True)) as capi:
                keys = {
                    owner: issue_key(tmp_path, CreateKey(label=owner, owner=owner)).text
                    for owner in ("Ann", "Ben", "Cid")
                }
                link(tmp_path, url, "ann", "Ann")
                link(tmp_path, url, "ben", "Ben")
                for owner in ("Ann", "Ben"):
                    assert chat(capi, api_key=keys[owner])
                    capi.log_line("exchange", identity=owner.lower())
                with pytest.raises(openai.PermissionDeniedError) as refused:
                    chat(capi, api_key=keys["Cid"])
                assert refused.value.code == "no_identity"
                assert isinstance(ask(tmp_path, ShareIdentity("ben", "holidays")), IdentityAnswer)
                assert chat(capi, api_key=keys["Cid"])
                assert isinstance(ask(tmp_path, StopIdentity("ann", "abuse")), IdentityAnswer)
                with pytest.raises(openai.PermissionDeniedError):
                    chat(capi, api_key=keys["Ann"])
                assert isinstance(ask(tmp_path, ResumeIdentity("ann")), IdentityAnswer)
                assert chat(capi, api_key=keys["Ann"])
                assert isinstance(ask(tmp_path, PauseIdentity("ann")), IdentityAnswer)
                with pytest.raises(openai.InternalServerError) as paused:
                    chat(capi, api_key=keys["Ann"])
                assert paused.value.code == "identity_paused"

        await in_thread(work)


async def test_no_request_fails_while_the_token_ends_again_and_again(tmp_path: Path) -> None:
    """Tokens live two seconds; eight clients ask without a pause."""
    hub = github(token_life_s=2)
    async with serving(hub) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG)) as capi, ThreadPoolExecutor(8) as pool:
                link(tmp_path, url, "ann")
                assert all(pool.map(lambda number: chat(capi, f"{number} {QUICK}"), range(600)))
                capi.wait_for(lambda: len(capi.events("exchange", outcome="ok")) == 600)

        await in_thread(work)
    assert hub.calls[Call.COPILOT_TOKEN] > 2


async def test_a_hundred_at_once_cause_one_exchange_and_four_run_at_a_time(tmp_path: Path) -> None:
    hub = github()
    async with serving(hub) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, {**CONFIG, "limits": {"max_queued_per_identity": 100}})) as capi:
                link(tmp_path, url, "ann")
                with ThreadPoolExecutor(50) as pool:
                    asked = [f'{number} [[demo {{"pace_ms": 1}}]]' for number in range(100)]
                    assert all(pool.map(lambda text: chat(capi, text), asked))

        await in_thread(work)
    assert hub.calls[Call.COPILOT_TOKEN] == 1


async def test_a_client_that_leaves_frees_its_slot_also_in_the_queue(tmp_path: Path) -> None:
    async with serving(github()) as url:

        def work() -> None:
            limits = {"max_in_flight_per_identity": 1}
            with faultless(gateway(tmp_path, {**CONFIG, "limits": limits})) as capi, ExitStack() as stack:
                link(tmp_path, url, "ann")
                slow = 'Count. [[demo {"pace_ms": 50, "events": 400}]]'
                streams = []
                for _ in range(3):
                    patient = stack.enter_context(client(capi).with_options(timeout=1))
                    try:
                        stream = patient.chat.completions.create(
                            model="demo-chat", messages=[{"role": "user", "content": slow}], stream=True
                        )
                        streams.append(stack.enter_context(stream))
                        next(iter(stream))
                    except openai.APITimeoutError:
                        continue  # it left the queue
                assert len(streams) == 1
                capi.wait_for(lambda: len(capi.events("exchange", outcome="client_gone")) == 2)
                streams[0].close()
                assert chat(capi)
                capi.wait_for(lambda: len(capi.events("exchange", outcome="client_gone")) == 3)

        await in_thread(work)


# -- what the operator and the caller see --------------------------------------------------------------------------


def told(data_dir: Path, *arguments: str) -> str:
    """What `capi identities ARGUMENTS` prints, in a process of its own."""
    done = command("identities", *arguments, "--data-dir", str(data_dir))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def seat_of(data_dir: Path, name: str) -> SeatStatus:
    """How the running server says that it is."""
    answer = ask(data_dir, ShowIdentity(name))
    assert isinstance(answer, IdentityAnswer), answer
    assert answer.identity.seat is not None
    return answer.identity.seat


async def test_the_operator_sees_each_seat_while_it_is_used_and_its_record_afterwards(tmp_path: Path) -> None:
    async with serving(github()) as url:

        def work() -> None:
            limits = {"max_in_flight_per_identity": 2}
            with faultless(gateway(tmp_path, {**CONFIG, "limits": limits})) as capi, ExitStack() as stack:
                link(tmp_path, url, "ann")
                sdk = stack.enter_context(client(capi))
                slow = 'Count. [[demo {"pace_ms": 50, "events": 400}]]'
                for _ in range(2):
                    stream = sdk.chat.completions.create(
                        model="demo-chat", messages=[{"role": "user", "content": slow}], stream=True
                    )
                    next(iter(stack.enter_context(stream)))
                shown = msgspec.json.decode(told(tmp_path, "show", "ann", "--json"), type=IdentityStatus)
                seat = seat_of(tmp_path, "ann")
                assert shown.seat == seat
                assert (seat.token, seat.sku, seat.gate) == ("linked", "demo_seat", "open")
                assert (seat.in_flight, seat.queued, seat.cap, seat.peak_in_flight) == (2, 0, 2, 2)
                assert sum(hour.requests for hour in seat.fanout) == 2
                assert max(hour.peak_in_flight for hour in seat.fanout) == 2
                assert "2 of 2" in told(tmp_path, "list")
                assert isinstance(ask(tmp_path, PauseIdentity("ann", "quota")), IdentityAnswer)
                capi.wait_for(lambda: seat_of(tmp_path, "ann").pause_cause == "operator")
            shown = msgspec.json.decode(told(tmp_path, "show", "ann", "--json"), type=IdentityStatus)
            assert (shown.state, shown.seat) == ("paused", None)

        await in_thread(work)


async def test_a_seat_that_github_refuses_says_what_to_do(tmp_path: Path) -> None:
    hub = github()
    hub.revoke(TOKENS["ann"])
    async with serving(hub) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG)) as capi:
                link(tmp_path, url, "ann")
                capi.log_line("no_new_token", identity="ann")
                seat = seat_of(tmp_path, "ann")
                assert (seat.token, seat.token_problem) == ("refused", "revoked")
                assert "link the identity again" in told(tmp_path, "list")

        await in_thread(work)


async def test_a_caller_and_the_operator_are_told_what_is_left(tmp_path: Path) -> None:
    hub = github(entitlement=300)
    async with serving(hub) as url:

        def usage(capi: Capi, key: str) -> httpx.Response:
            return httpx.get(f"{capi.url}/usage", headers={"x-api-key": key})

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG, auth=True)) as capi:
                keys = {who: issue_key(tmp_path, CreateKey(label=who, owner=who)).text for who in ("Ann", "Cid")}
                link(tmp_path, url, "ann", "Ann")
                for _ in range(3):
                    assert chat(capi, api_key=keys["Ann"])
                answer = usage(capi, keys["Ann"])
                assert answer.status_code == 200
                left = msgspec.json.decode(answer.content, type=SeatUsage)
                assert (left.identity, left.plan) == ("ann", "individual")
                assert (left.quotas[0].used, left.quotas[0].remaining) == (3, 297)
                refused = usage(capi, keys["Cid"])
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_identity")
                assert usage(capi, "sk-cap-nobody").status_code == 401
                [seen] = msgspec.json.decode(told(tmp_path, "usage", "ann", "--json"), type=list[IdentityUsage])
                assert seen.usage == left
            assert hub.calls[Call.COPILOT_USER] == 1, "the command was told what the caller was"
            assert "297" in told(tmp_path, "usage"), "without a server the command asks by itself"
            assert TOKENS["ann"] not in str(capi.logs) + str(capi.text)
            with faultless(gateway(tmp_path, {"upstreams": {"demo": {"kind": "demo"}}}, auth=True)) as other:
                nowhere = usage(other, keys["Ann"])
                assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_route")

        await in_thread(work)
    assert hub.calls[Call.COPILOT_USER] == 2


async def test_a_seat_that_more_than_one_human_seems_to_use_is_warned_about(tmp_path: Path) -> None:
    """By owners until it is shared on purpose, by addresses all the same; and nobody's name or address is told."""
    addresses = [f"198.51.100.{number}" for number in range(3)]
    left_s = 3600 - time.time() % 3600
    if left_s < 60:
        await trio.sleep(left_s)  # it is counted by the hour, and the gateway's clock is the machine's
    async with serving(github()) as url:

        def work() -> None:
            with faultless(gateway(tmp_path, CONFIG, "--trusted-proxy", "127.0.0.1", auth=True)) as capi:
                link(tmp_path, url, "ann")
                owners = ("Ann", "Ben", "Cid")
                keys = [issue_key(tmp_path, CreateKey(label=owner, owner=owner)).text for owner in owners]
                for key, address in zip(keys, addresses, strict=True):
                    with client(capi, key) as sdk:
                        sdk.with_options(default_headers={"x-forwarded-for": address}).chat.completions.create(
                            model="demo-chat", messages=[{"role": "user", "content": f"hello {QUICK}"}]
                        )
                seat = seat_of(tmp_path, "ann")
                hour = seat.fanout[-1]
                assert (hour.owners, hour.keys, hour.addresses, hour.requests) == (3, 3, 3, 3)
                assert [step for step in seat.next_steps if "3 owners" in step] == seat.next_steps
                assert "capi identities share ann" in told(tmp_path, "list")
                for change in (SetIdentity(name="ann", owner="Ann"), ShareIdentity("ann", "one team, one seat")):
                    assert isinstance(ask(tmp_path, change), IdentityAnswer)
                assert seat_of(tmp_path, "ann").next_steps == []
                narrow = {**CONFIG, "limits": {"fanout": {"addresses": 2}}}
                (tmp_path / "config.json").write_bytes(msgspec.json.encode(narrow))
                capi.send_signal(signal.SIGHUP)
                capi.wait_for(lambda: "3 client addresses" in str(seat_of(tmp_path, "ann").next_steps))
                assert chat(capi, api_key=keys[0])
                line = capi.log_line("identity_fanout", identity="ann")
                assert (line["over"], line["addresses"]) == (["addresses"], "4")
            said = str(capi.logs) + str(capi.text)
            assert [address for address in addresses if address in said] == []

        await in_thread(work)
