"""A gateway in front of Copilot seats, in processes and over sockets: GitHub is the demo provider's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import anthropic
import openai
import pytest
import trio

from capi_trio.control import ask
from capi_trio.demo.github import Call, DemoGitHub
from capi_trio.identity_operations import (
    AddIdentity,
    IdentityAnswer,
    PauseIdentity,
    ResumeIdentity,
    ShareIdentity,
    StopIdentity,
)
from capi_trio.operations import CreateKey
from tests.e2e.conftest import faultless
from tests.support.github_server import serving
from tests.support.process import Capi, gateway, issue_key

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
