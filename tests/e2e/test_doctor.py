"""`capi doctor` at a real gateway: every client gets along with the demo, and a broken upstream is seen."""

import msgspec
import pytest
from attrs import evolve

from capi_trio import doctor
from capi_trio.client_requests import VOICES
from capi_trio.doctor import GATEWAY, Finding, Probe, Verdict, examine
from capi_trio.upstream import UpstreamClient, UpstreamTarget
from tests.support.process import Capi

pytestmark = pytest.mark.slow

VOICES_BY_NAME = {
    f"{client.value} {voice.protocol.value}": voice for client, voices in VOICES.items() for voice in voices
}


async def examined(capi: Capi, name: str, model: str, **wish: object) -> dict[Probe, Finding]:
    """What doctor finds. `wish`: what the demo provider does to every answer, asked for in the user's own words."""
    spoken, wished = VOICES_BY_NAME[name].user, msgspec.json.encode({"pace_ms": 0, **wish}).decode()

    def user(text: str) -> dict[str, object]:
        return spoken(text if "[[" in text else f"{text} [[demo {wished}]]")

    voice = evolve(VOICES_BY_NAME[name], user=user)
    found = dict[Probe, Finding]()
    async with UpstreamClient({GATEWAY: UpstreamTarget(GATEWAY, capi.url)}) as client:
        await examine(client, voice, None, model, lambda one: found.update({one.probe: one}))
    return found


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause of 17 s is left out."""
    monkeypatch.setattr(doctor, "_DEMO_PAUSE", "")


@pytest.mark.parametrize("model", ["demo-chat", "demo-claude", "demo-gpt", "demo-all"])
@pytest.mark.parametrize("name", VOICES_BY_NAME)
async def test_every_client_gets_along_with_every_model(shared_demo: Capi, name: str, model: str) -> None:
    found = await examined(shared_demo, name, model)
    verdicts = {probe: one.verdict for probe, one in found.items()}
    assert verdicts.pop(Probe.AUTH) is Verdict.WARN, "this demo lets everybody in"
    assert verdicts.pop(Probe.KEEPALIVE) is Verdict.SKIPPED
    counted, reasoned = verdicts.pop(Probe.COUNT_TOKENS), verdicts.pop(Probe.THINKING)
    assert set(verdicts.values()) == {Verdict.OK}
    assert counted is (Verdict.OK if VOICES_BY_NAME[name].count_path else Verdict.SKIPPED)
    assert reasoned is (Verdict.SKIPPED if model == "demo-chat" else Verdict.OK)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"fault": "end", "at": 3}, "upstream_truncated"),
        ({"fault": "error_event", "at": 3}, "ended with an error"),
        ({"fault": "status", "status": 429}, "429"),
    ],
)
async def test_a_broken_upstream_is_seen(shared_demo: Capi, wish: dict[str, object], said: str) -> None:
    found = await examined(shared_demo, "opencode chat", "demo-chat", **wish)
    assert (found[Probe.STREAM].verdict, said in found[Probe.STREAM].seen) == (Verdict.FAIL, True)
    assert found[Probe.STREAM].advice


async def test_missing_usage_is_seen(shared_demo: Capi) -> None:
    found = await examined(shared_demo, "opencode chat", "demo-chat", usage="missing")
    assert (found[Probe.TOKENS].verdict, found[Probe.STREAM].verdict) == (Verdict.WARN, Verdict.OK)
