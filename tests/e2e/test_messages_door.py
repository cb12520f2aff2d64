"""The door as Anthropic's SDK sees it: refusals in its own shape, as the exception classes that it has for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anthropic
import httpx
import pytest
from attrs import frozen

from capi_core.keys import KEY_PREFIX
from capi_trio.control import ask
from capi_trio.operations import CreateKey, RevokeKey
from tests.e2e.conftest import faultless
from tests.support.process import Capi, IssuedKey, gateway, issue_key

HI: Final = 'What is capi? [[demo {"pace_ms": 0}]]'


@frozen
class World:
    capi: Capi
    data_dir: Path
    key: IssuedKey
    narrow: IssuedKey

    def client(self, key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.capi.url, api_key=key, max_retries=0, timeout=10)

    def ask(self, key: str, model: str = "demo-claude") -> anthropic.types.Message:
        with self.client(key) as client:
            return client.messages.create(model=model, max_tokens=200, messages=[{"role": "user", "content": HI}])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("door")
    with faultless(gateway(data_dir, {"upstreams": {"demo": {"kind": "demo"}}}, auth=True)) as capi:
        key = issue_key(data_dir, CreateKey(label="any"))
        narrow = issue_key(data_dir, CreateKey(label="narrow", allowed_models=("demo-chat",)))
        yield World(capi, data_dir, key, narrow)


def shape(error: anthropic.APIStatusError) -> tuple[object, object, object]:
    """Whether the body is Anthropic's error document, and what it says."""
    body = error.response.json()
    return body["type"], body["error"]["type"], body["request_id"] == error.response.headers["request-id"]


def test_a_key_lets_in_and_counts(world: World) -> None:
    assert world.ask(world.key.text).usage.output_tokens > 0
    with world.client(world.key.text) as client:
        native = client.messages.count_tokens(model="demo-claude", messages=[{"role": "user", "content": "hello"}])
        ours = client.messages.count_tokens(model="demo-gpt", messages=[{"role": "user", "content": "hello"}])
    assert native.input_tokens > 0
    assert 1 < ours.input_tokens < 20


@pytest.mark.parametrize("key", [KEY_PREFIX + "A" * 52, "sk-ant-somebody-elses"])
def test_no_key_of_ours_is_an_authentication_error(world: World, key: str) -> None:
    with pytest.raises(anthropic.AuthenticationError) as refused:
        world.ask(key)
    assert shape(refused.value) == ("error", "authentication_error", True)
    with pytest.raises(anthropic.AuthenticationError), world.client(key) as client:
        client.models.list()


def test_a_revoked_key_is_refused_from_then_on(world: World) -> None:
    ended = issue_key(world.data_dir, CreateKey(label="ended"))
    world.ask(ended.text)
    ask(world.data_dir, RevokeKey(ended.id))
    with pytest.raises(anthropic.AuthenticationError):
        world.ask(ended.text)


def test_a_model_out_of_scope_is_a_permission_error(world: World) -> None:
    assert world.ask(world.narrow.text, "demo-chat").content
    with pytest.raises(anthropic.PermissionDeniedError) as refused:
        world.ask(world.narrow.text)
    assert shape(refused.value) == ("error", "permission_error", True)
    with pytest.raises(anthropic.PermissionDeniedError), world.client(world.narrow.text) as client:
        client.messages.count_tokens(model="demo-gpt", messages=[{"role": "user", "content": "x"}])


def test_too_many_requests_are_a_rate_limit_error_with_its_time(world: World) -> None:
    slow = issue_key(world.data_dir, CreateKey(label="slow", rate_limit_override=1))
    world.ask(slow.text)
    with pytest.raises(anthropic.RateLimitError) as refused:
        world.ask(slow.text)
    assert shape(refused.value) == ("error", "rate_limit_error", True)
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60


def test_a_model_that_is_not_there_and_a_request_that_is_none(world: World) -> None:
    with pytest.raises(anthropic.NotFoundError) as refused:
        world.ask(world.key.text, "no-such-model")
    assert shape(refused.value) == ("error", "not_found_error", True)
    headers = {"x-api-key": world.key.text, "content-type": "application/json"}
    answer = httpx.post(f"{world.capi.url}/v1/messages", headers=headers, content=b"{", timeout=10)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    gone = httpx.get(f"{world.capi.url}/v1/messages", headers=headers, timeout=10)
    assert (gone.status_code, gone.json()["type"]) == (405, "error")


def test_the_model_list_reads_as_anthropics(world: World) -> None:
    with world.client(world.key.text) as client:
        assert "demo-claude" in [model.id for model in client.models.list()]
        assert client.models.retrieve("demo-claude").display_name
