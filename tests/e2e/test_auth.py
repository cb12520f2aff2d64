"""Who is let in, as callers see it: the official SDK's exception classes, scopes, rates, and keys that end.

And what nobody may ever see: a key's text anywhere but where it was first shown, or a caller's key at an upstream.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx
import msgspec
import openai
import pytest
import trio
from attrs import frozen
from openai.types.chat import ChatCompletionMessageParam

from capi_core.keys import KEY_PREFIX, Tier
from capi_trio.bootstrap import ADMIN_KEY_NAME
from capi_trio.control import ask
from capi_trio.operations import CreateKey, KeyAnswer, KeysAnswer, ListKeys, RevokeKey
from tests.e2e.conftest import faultless
from tests.e2e.peers import RawUpstream, UpstreamRequest, answer, connect, post
from tests.support.process import Capi, IssuedKey, command, demo, gateway, issue_key

HI: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": "What is capi?"}]
QUICK: Final = {"demo": {"pace_ms": 0}}
FOREIGN: Final = "this proxy does not forward your GitHub token; use sk-cap-* key issued by this server"
UNKNOWN: Final = KEY_PREFIX + "A" * 52
UPSTREAM_KEY: Final = "sk-upstream-own"


@frozen
class Keys:
    """A gateway with auth on, and one key of each kind. The alias `vip` is for `vip` alone."""

    capi: Capi
    data_dir: Path
    anyone: IssuedKey
    vip: IssuedKey
    narrow: IssuedKey
    """May call `fast` and nothing else."""
    admin: IssuedKey

    def make(self, label: str, *, rpm: int | None = None, expires_at: int | None = None) -> IssuedKey:
        return issue_key(self.data_dir, CreateKey(label=label, rate_limit_override=rpm, expires_at=expires_at))

    def client(self, key: IssuedKey | str) -> openai.OpenAI:
        text = key if isinstance(key, str) else key.text
        return openai.OpenAI(base_url=f"{self.capi.url}/v1", api_key=text, max_retries=0, timeout=10)

    def get(self, path: str = "/v1/models", **headers: str) -> httpx.Response:
        return httpx.get(self.capi.url + path, headers={n.replace("_", "-"): v for n, v in headers.items()}, timeout=10)

    def models(self, key: IssuedKey) -> list[str]:
        with self.client(key) as client:
            return [model.id for model in client.models.list()]

    def chat(self, key: IssuedKey | str, model: str = "fast") -> str:
        with self.client(key) as client:
            whole = client.chat.completions.create(model=model, messages=HI, extra_body=QUICK)
            return whole.choices[0].message.content or ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    data_dir = tmp_path_factory.mktemp("auth")
    config: dict[str, object] = {"upstreams": {"demo": {"kind": "demo"}}}
    with faultless(gateway(data_dir, config, auth=True)) as capi:
        vip = issue_key(data_dir, CreateKey(label="vip"))
        config["models"] = {
            "fast": {"upstream": "demo-chat"},
            "vip": {"upstream": "demo-reasoner", "allowed_keys": [vip.id]},
        }
        (data_dir / "config.json").write_bytes(msgspec.json.encode(config))
        capi.log_line("config_reloaded")
        yield Keys(
            capi,
            data_dir,
            anyone=issue_key(data_dir, CreateKey(label="anyone")),
            vip=vip,
            narrow=issue_key(data_dir, CreateKey(label="narrow", allowed_models=("fast",))),
            admin=issue_key(data_dir, CreateKey(label="an admin", tier=Tier.ADMIN)),
        )


# -- 401 --------------------------------------------------------------------------------------------------------


def test_a_key_lets_in_either_way(keys: Keys) -> None:
    assert keys.chat(keys.anyone)
    assert keys.chat(keys.admin)
    assert keys.get(x_api_key=keys.anyone.text).status_code == 200
    assert keys.get(authorization=f"bEaReR {keys.anyone.text}").status_code == 200
    assert keys.get(authorization=f"Bearer {keys.anyone.text}", x_api_key=keys.anyone.text).status_code == 200


@pytest.mark.parametrize("key", ["sk-cap-short", UNKNOWN, UNKNOWN[:-1] + "B", UNKNOWN.lower(), KEY_PREFIX + "A" * 2000])
def test_a_key_that_is_none_is_an_authentication_error(keys: Keys, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        keys.chat(key)
    assert refused.value.code == "invalid_api_key"
    assert refused.value.request_id
    with pytest.raises(openai.AuthenticationError), keys.client(key) as client:
        next(client.chat.completions.create(model="fast", messages=HI, stream=True))


@pytest.mark.parametrize("token", ["ghp_" + "a" * 36, "gho_" + "b" * 36, "sk-proj-somebody-elses", "not-needed"])
def test_a_foreign_token_is_told_apart_and_not_passed_on(keys: Keys, token: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        keys.chat(token)
    assert refused.value.body == {
        "message": FOREIGN,
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }


def test_no_key_and_two_keys_are_told_so(keys: Keys) -> None:
    for headers in ({}, {"authorization": "Basic dTpw"}, {"authorization": "Bearer"}, {"x_api_key": ""}):
        missing = keys.get(**headers)
        assert (missing.status_code, missing.json()["error"]["code"]) == (401, "missing_api_key")
        assert missing.headers["www-authenticate"] == 'Bearer realm="capi"'
    two = keys.get(authorization=f"Bearer {keys.anyone.text}", x_api_key=keys.vip.text)
    assert (two.status_code, two.json()["error"]["code"]) == (401, "ambiguous_credentials")


def test_a_key_in_the_query_string_is_no_key(keys: Keys) -> None:
    for name in ("api_key", "key", "access_token"):
        assert keys.get(f"/v1/models?{name}={keys.anyone.text}").json()["error"]["code"] == "missing_api_key"


def test_only_health_is_for_everybody(keys: Keys) -> None:
    assert [keys.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 200]
    for path in ("/v1/models", "/models", "/v1/models/fast", "/v1/nothing", "/admin", "/metrics", "/healthz/"):
        assert keys.get(path).status_code == 401, path


def test_unknown_revoked_expired_and_malformed_look_the_same(keys: Keys) -> None:
    revoked = keys.make("revoked")
    assert isinstance(ask(keys.data_dir, RevokeKey(revoked.id)), KeyAnswer)
    expires_at = time.time_ns() // 1_000_000 + 300
    expired = keys.make("expired", expires_at=expires_at)
    assert keys.get(x_api_key=expired.text).status_code == 200
    wait_until(lambda: keys.get(x_api_key=expired.text).status_code == 401)
    assert time.time_ns() // 1_000_000 >= expires_at
    answers = [keys.get(x_api_key=text) for text in (UNKNOWN, revoked.text, expired.text, "sk-cap-short")]
    assert {found.status_code for found in answers} == {401}
    assert len({found.content for found in answers}) == 1
    assert len({tuple(sorted(found.headers.keys())) for found in answers}) == 1


# -- 403 and scope ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo-chat", "vip"])
def test_a_model_outside_the_keys_scope_is_denied(keys: Keys, model: str) -> None:
    with pytest.raises(openai.PermissionDeniedError) as denied:
        keys.chat(keys.narrow, model)
    assert denied.value.code == "model_not_allowed"
    assert keys.chat(keys.narrow)


def test_a_model_that_keeps_its_own_list_is_denied_to_others(keys: Keys) -> None:
    with pytest.raises(openai.PermissionDeniedError) as denied:
        keys.chat(keys.anyone, "vip")
    assert denied.value.code == "model_not_allowed"
    assert keys.chat(keys.vip, "vip")


def test_each_key_sees_the_models_that_it_may_call(keys: Keys) -> None:
    real = {"demo-chat", "demo-chat-mini", "demo-reasoner", "demo-embed", "demo-claude", "demo-gpt", "demo-all"}
    assert keys.models(keys.narrow) == ["fast"]
    assert set(keys.models(keys.anyone)) == {"fast"} | real
    assert set(keys.models(keys.vip)) == {"fast", "vip"} | real
    with keys.client(keys.anyone) as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("vip")


# -- 429 --------------------------------------------------------------------------------------------------------


def test_a_key_over_its_rate_is_told_when_to_come_back(keys: Keys) -> None:
    slow = keys.make("slow", rpm=3)
    for _ in range(3):
        keys.chat(slow)
    with pytest.raises(openai.RateLimitError) as limited:
        keys.chat(slow)
    assert limited.value.code == "rate_limit_exceeded"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 20
    assert keys.models(slow)  # lists are not counted
    assert keys.chat(keys.anyone)  # nor is anybody else


# -- the end of a key -------------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_at_once(keys: Keys) -> None:
    """No request that begins 100 ms after the revocation, and none after the command has ended, is served."""
    doomed = keys.make("doomed")
    served: list[float] = []

    def ask_until_refused() -> None:
        with httpx.Client(base_url=keys.capi.url, headers={"x-api-key": doomed.text}, timeout=10) as client:
            while (began := time.time()) < served[0] + 30:
                if client.get("/v1/models").status_code == 401:
                    return
                served.append(began)
        raise AssertionError("a revoked key is served")

    served.append(time.time())
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_until_refused)
        done = command("keys", "revoke", doomed.id, "--data-dir", str(keys.data_dir), "--json", "--reason", "left")
        ended = time.time()
        asking.result()
    assert done.returncode == 0, done.stderr
    revoked_at = msgspec.json.decode(done.stdout, type=dict[str, object])["revoked_at"]
    assert isinstance(revoked_at, int)
    assert len(served) > 10
    assert served[-1] < min(ended, revoked_at / 1000 + 0.1)


# -- where keys must not be -------------------------------------------------------------------------------------


async def test_a_callers_credentials_never_reach_the_upstream(tmp_path: Path) -> None:
    async def script(stream: trio.SocketStream, received: UpstreamRequest) -> None:
        await stream.send_all(answer(b'{"choices":[]}'))

    async with RawUpstream.serving(script) as upstream:
        raw = {"kind": "openai", "base_url": upstream.base_url, "models": ["real"], "api_key_env": "TEST_UPSTREAM_KEY"}
        serving = gateway(
            tmp_path / "capi", {"upstreams": {"raw": raw}}, auth=True, env={"TEST_UPSTREAM_KEY": UPSTREAM_KEY}
        )
        with faultless(serving) as capi:
            key = await trio.to_thread.run_sync(issue_key, tmp_path / "capi", CreateKey(label="a"))
            secret = key.text.encode()
            forms = (
                [b"Authorization: Bearer " + secret],
                [b"X-API-Key: " + secret],
                [b"X-API-Key: " + secret, b"Authorization: Bearer " + secret],
            )
            more = [b"Cookie: session=caller", b"Proxy-Authorization: Basic caller", b"X-Capi-Debug: caller"]
            async with connect(capi.port) as client:
                for form in forms:
                    await client.send(post(b'{"model":"real","messages":[]}', *form, *more))
                    assert (await client.response()).status == 200
    assert len(upstream.requests) == len(forms)
    for request in upstream.requests:
        assert b"sk-cap-" not in request.head + request.body
        assert b"caller" not in request.head
        assert [value for name, value in request.headers if name == b"authorization"] == [
            b"Bearer " + UPSTREAM_KEY.encode()
        ]
        assert not any(name == b"x-api-key" for name, _ in request.headers)


def test_a_keys_text_is_nowhere_but_in_the_bootstrap_file(tmp_path: Path) -> None:
    """Not in the database nor its journals, the audit log, the server's log: whatever is done with it."""
    data_dir = tmp_path / "capi"
    key_file = data_dir / ADMIN_KEY_NAME
    with faultless(gateway(data_dir, {"upstreams": {"demo": {"kind": "demo"}}}, "--verbose", auth=True)) as capi:
        assert capi.admin_key is not None
        made = tmp_path / "key.txt"
        done = command("keys", "create", "a", "--data-dir", str(data_dir), "--key-file", str(made), "--rpm", "20")
        assert done.returncode == 0, done.stderr
        assert made.stat().st_mode & 0o777 == 0o600
        text = made.read_text().strip()
        other = issue_key(data_dir, CreateKey(label="b"))
        with httpx.Client(base_url=capi.url, timeout=10) as client:
            for key in (text, other.text, capi.admin_key, UNKNOWN, "sk-cap-short"):
                client.get("/v1/models", headers={"x-api-key": key})
                client.get(f"/v1/models/{key}?key={key}", headers={"x-api-key": key})
                client.get("/v1/models", headers={"authorization": f"Bearer {key}", "x-api-key": UNKNOWN})
                client.post("/v1/chat/completions", headers={"x-api-key": key}, json={"model": "demo-chat"})
        rotated = command(
            "keys", "rotate", "b", "--data-dir", str(data_dir), "--key-file", str(tmp_path / "rotated.txt")
        )
        assert rotated.returncode == 0, rotated.stderr
        assert isinstance(ask(data_dir, RevokeKey("a")), KeyAnswer)
        found = {file.name for file in data_dir.iterdir() if b"sk-cap-" in contents(file)}
        assert found == set()
        key_file.write_text(capi.admin_key)  # a search that finds nothing must be one that can
        assert {file.name for file in data_dir.iterdir() if b"sk-cap-" in contents(file)} == {ADMIN_KEY_NAME}
        capi.terminate()
        assert capi.wait() == 0
    for said in (done, rotated):
        assert "sk-cap-" not in said.stdout + said.stderr
    assert "sk-cap-" not in str(capi.logs) + str(capi.text) + str(capi.output)
    assert {file.name for file in data_dir.iterdir() if b"sk-cap-" in contents(file)} == {ADMIN_KEY_NAME}
    assert len(capi.events("auth_reject")) >= 3


def test_the_demo_has_keys_of_its_own(tmp_path: Path) -> None:
    """New ones at each start; the last ones end."""
    with faultless(demo(tmp_path, auth=True)) as first:
        assert first.api_key is not None
        assert statuses(first, first.api_key, first.admin_key, "sk-unused") == [200, 200, 401]
    with faultless(demo(tmp_path, auth=True)) as second:
        assert statuses(second, first.api_key, first.admin_key) == [401, 401]
        assert statuses(second, second.api_key, second.admin_key) == [200, 200]


def test_a_keys_text_is_not_written_into_a_pipe(keys: Keys) -> None:
    """Where a log would keep it."""
    done = command("keys", "create", "piped", "--data-dir", str(keys.data_dir))
    assert done.returncode == 2
    assert "--key-file" in done.stderr
    assert done.stdout == ""
    listed = ask(keys.data_dir, ListKeys())
    assert isinstance(listed, KeysAnswer)
    assert "piped" not in {key.label for key in listed.keys}


def statuses(capi: Capi, *tried: str | None) -> list[int]:
    return [httpx.get(f"{capi.url}/v1/models", headers={"x-api-key": key or ""}).status_code for key in tried]


def contents(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def wait_until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
