"""Doctor: what each probe asks, and what it makes of the answer."""

import math
from collections.abc import Mapping

import httpx
import msgspec
import pytest
import trio
from trio.testing import MockClock

from capi_core.conversation import Reasoning, Signature, ToolCall, ToolRef
from capi_core.deltas import ReplyBlock
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage
from capi_trio.client_requests import VOICES, Voice
from capi_trio.client_setup import Client
from capi_trio.doctor import GATEWAY, Finding, Probe, Verdict, examine
from capi_trio.upstream import Secret
from tests.support import fakes
from tests.support.answers import HELLO, model_list, refusal, streamed
from tests.support.fakes import FakeUpstream, Reply

ALL = [voice for voices in VOICES.values() for voice in voices]
CLAUDE, CODEX, OPENCODE = (VOICES[client][0] for client in (Client.CLAUDE_CODE, Client.CODEX, Client.OPENCODE))
THOUGHT = Reasoning(("Hm.",), Signature(Protocol.MESSAGES, "SIG"))

Steps = dict[str, Reply | Exception]


def good(voice: Voice, *, model: str = "m-1") -> Steps:
    """A gateway without a fault, request by request."""

    def reply(*blocks: ReplyBlock) -> Reply:
        return Reply([streamed(voice.protocol, *blocks)])

    events = streamed(voice.protocol, HELLO).split(b"\n\n")
    steps: Steps = {
        "list": model_list("m-0", model),
        "wrong key": refusal(voice.protocol, 401, "invalid_api_key"),
        "stream": reply(HELLO),
        "call": reply(ToolCall("c1", ToolRef(voice.tool), '{"command":"echo capi"}')),
        "result": reply(HELLO),
        "thinking": reply(THOUGHT, HELLO),
        "left": Reply([events[0] + b"\n\n", 60.0, b"\n\n".join(events[1:])]),
        "after": reply(HELLO),
    }
    if voice.count_path is not None:
        steps["count"] = fakes.json_reply({"input_tokens": 7})
    return steps


async def examined(
    voice: Voice, steps: Mapping[str, Reply | Exception], model: str = "m-1", key: str | None = "sk-cap-own"
) -> tuple[dict[Probe, Finding], FakeUpstream]:
    gateway, found = FakeUpstream(*steps.values()), dict[Probe, Finding]()

    def tell(finding: Finding) -> None:
        assert finding.probe not in found
        found[finding.probe] = finding

    async with fakes.client(gateway, GATEWAY, key=None) as client:
        await examine(client, voice, None if key is None else Secret(key), model, tell)
    assert list(found) == list(Probe), "each probe has its line, in their order"
    assert all(
        (finding.advice is not None) is (finding.verdict in (Verdict.WARN, Verdict.FAIL)) for finding in found.values()
    )
    assert "SECRET" not in repr(found)
    return found, gateway


async def finding(voice: Voice, probe: Probe, **changed: Reply | Exception) -> Finding:
    """What a probe finds at a gateway that is good but for `changed`."""
    names = {name.replace(" ", "_"): name for name in good(voice)}
    steps = {**good(voice), **{names[name]: reply for name, reply in changed.items()}}
    return (await examined(voice, steps))[0][probe]


@pytest.mark.parametrize("voice", ALL)
async def test_a_gateway_without_a_fault_has_none(voice: Voice, autojump_clock: MockClock) -> None:
    found, gateway = await examined(voice, good(voice))
    verdicts = {probe: one.verdict for probe, one in found.items()}
    skipped = {Probe.KEEPALIVE} | (set() if voice.count_path else {Probe.COUNT_TOKENS})
    assert verdicts == {probe: Verdict.SKIPPED if probe in skipped else Verdict.OK for probe in Probe}
    assert found[Probe.KEEPALIVE].seen == "the model did not pause 15 s"
    assert found[Probe.TOKENS].seen == "reported with 5 of 5 answers: 25 in, 20 out"
    assert len(gateway.asked) == len(good(voice))


@pytest.mark.parametrize("voice", ALL)
async def test_a_tools_result_is_sent_with_the_call_that_it_answers(voice: Voice, autojump_clock: MockClock) -> None:
    _, gateway = await examined(voice, good(voice))
    asked = dict(zip(good(voice), gateway.asked, strict=True))
    assert b"echo capi" in asked["call"].body
    before, after = (msgspec.json.decode(asked[name].body, type=dict[str, object]) for name in ("call", "result"))
    turns = "input" if voice.protocol is Protocol.RESPONSES else "messages"
    first, second = before.pop(turns), after.pop(turns)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert (before, second[: len(first)]) == (after, first)
    assert asked["result"].body.count(b"c1") == 2, "the call and its result"


async def test_an_answer_is_left_while_it_is_under_way(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    found, gateway = await examined(CLAUDE, good(CLAUDE))
    assert trio.current_time() - began < 1, "nobody waited for its end"
    assert (gateway.asked[6].taken, gateway.open) == (1, 0)
    assert found[Probe.ABORT].seen == "left at the first event; the next answer began after 0.00 s"


async def test_a_gateway_that_is_not_there_is_told_once() -> None:
    found, gateway = await examined(OPENCODE, {"list": httpx.ConnectError("SECRET")})
    assert (found[Probe.AUTH].verdict, found[Probe.AUTH].seen) == (Verdict.FAIL, "no whole answer: ConnectError")
    assert {one.seen for probe, one in found.items() if probe is not Probe.AUTH} == {"the gateway does not answer"}
    assert len(gateway.asked) == 1


@pytest.mark.parametrize(("key", "advice"), [("sk-cap-bad", "`capi keys create`"), (None, "--key-file")])
async def test_a_key_that_is_refused_ends_it(key: str | None, advice: str) -> None:
    found, gateway = await examined(CODEX, {"list": refusal(Protocol.RESPONSES, 401, "invalid_api_key")}, key=key)
    assert found[Probe.AUTH].verdict is Verdict.FAIL
    assert advice in (found[Probe.AUTH].advice or "")
    assert found[Probe.STREAM].seen == "the gateway does not let this client in"
    assert len(gateway.asked) == 1


async def test_a_gateway_that_takes_every_key_is_told(autojump_clock: MockClock) -> None:
    found = await finding(OPENCODE, Probe.AUTH, wrong_key=model_list())
    assert (found.verdict, found.seen) == (Verdict.WARN, "every key is accepted: auth is off")


@pytest.mark.parametrize("reply", [Reply([b"<html>"], 401), refusal(Protocol.CHAT, 403, "x"), httpx.ReadError("x")])
async def test_a_wrong_key_is_refused_with_401_in_the_protocols_shape(
    reply: Reply | Exception, autojump_clock: MockClock
) -> None:
    found = await finding(OPENCODE, Probe.AUTH, wrong_key=reply)
    assert found.verdict is Verdict.FAIL
    assert found.seen.startswith("a wrong key: ")


async def test_a_model_that_is_not_listed_is_asked_all_the_same(autojump_clock: MockClock) -> None:
    found, _ = await examined(OPENCODE, good(OPENCODE, model="other"))
    assert (found[Probe.MODELS].verdict, found[Probe.STREAM].verdict) == (Verdict.WARN, Verdict.OK)


async def test_a_list_that_is_none_ends_it() -> None:
    found, gateway = await examined(OPENCODE, {**good(OPENCODE), "list": Reply([b"<html>"])})
    assert found[Probe.MODELS].verdict is Verdict.FAIL
    assert found[Probe.TOKENS].verdict is Verdict.SKIPPED
    assert len(gateway.asked) == 2


async def test_a_refused_stream_ends_it() -> None:
    steps = {**good(OPENCODE), "stream": refusal(Protocol.CHAT, 404, "model_not_found")}
    found, gateway = await examined(OPENCODE, steps)
    assert found[Probe.STREAM].seen == "answered with 404 model_not_found"
    assert {found[probe].verdict for probe in list(Probe)[3:]} == {Verdict.SKIPPED}
    assert len(gateway.asked) == 3


async def test_a_broken_stream_is_told_and_the_rest_goes_on(autojump_clock: MockClock) -> None:
    whole = streamed(Protocol.CHAT)
    steps = {**good(OPENCODE), "stream": Reply([whole[: len(whole) // 2]])}
    found, _ = await examined(OPENCODE, steps)
    assert found[Probe.STREAM].verdict is Verdict.FAIL
    assert "breaking " in found[Probe.STREAM].seen
    assert "chat-unfinished" in found[Probe.STREAM].seen
    assert found[Probe.TOOLS].verdict is Verdict.OK


async def test_what_clients_tolerate_is_a_warning(autojump_clock: MockClock) -> None:
    odd = streamed(Protocol.CHAT).replace(b'"object":"chat.completion.chunk"', b'"object":"x"')
    found = await finding(OPENCODE, Probe.STREAM, stream=Reply([odd]))
    assert (found.verdict, found.seen.partition("; ")[2]) == (Verdict.WARN, "odd: chat-object")


async def test_an_answer_without_a_word_is_a_warning(autojump_clock: MockClock) -> None:
    found = await finding(CLAUDE, Probe.STREAM, stream=Reply([streamed(Protocol.MESSAGES, THOUGHT)]))
    assert (found.verdict, found.seen.rpartition(", ")[2]) == (Verdict.WARN, "but no text")


async def test_a_model_that_calls_no_tool_is_a_warning(autojump_clock: MockClock) -> None:
    steps = good(CODEX)
    del steps["result"]
    found, _ = await examined(CODEX, {**steps, "call": steps["stream"]})
    assert found[Probe.TOOLS].verdict is Verdict.WARN
    assert "exec_command was not called" in found[Probe.TOOLS].seen


@pytest.mark.parametrize(("name", "arguments"), [("bash", '{"command":'), ("other", "{}")])
async def test_a_call_that_the_client_could_not_carry_out_is_a_failure(
    name: str, arguments: str, autojump_clock: MockClock
) -> None:
    call = Reply([streamed(Protocol.CHAT, ToolCall("c1", ToolRef(name), arguments))])
    assert (await finding(OPENCODE, Probe.TOOLS, call=call)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("step", "said"), [("call", "the call: "), ("result", "the turn with the result: ")])
async def test_which_turn_failed_is_told(step: str, said: str, autojump_clock: MockClock) -> None:
    found = await finding(CLAUDE, Probe.TOOLS, **{step: refusal(Protocol.MESSAGES, 400, "invalid_request_error")})
    assert (found.verdict, found.seen) == (Verdict.FAIL, f"{said}answered with 400 invalid_request_error")


async def test_a_model_without_reasoning_is_no_failure(autojump_clock: MockClock) -> None:
    found = await finding(CODEX, Probe.THINKING, thinking=Reply([streamed(Protocol.RESPONSES)]))
    assert found.verdict is Verdict.SKIPPED
    refused = await finding(CODEX, Probe.THINKING, thinking=refusal(Protocol.RESPONSES, 400, "unsupported_parameter"))
    assert refused.verdict is Verdict.WARN
    broken = await finding(CODEX, Probe.THINKING, thinking=refusal(Protocol.RESPONSES, 500, "server_error"))
    assert broken.verdict is Verdict.FAIL


async def test_reasoning_that_is_only_counted_is_reasoning(autojump_clock: MockClock) -> None:
    counted = streamed(Protocol.CHAT, usage=Usage(uncached_input=5, output=4, reasoning=9))
    found = await finding(OPENCODE, Probe.THINKING, thinking=Reply([counted]))
    assert found.verdict is Verdict.OK
    assert found.seen.startswith("9 tokens of reasoning, kept by the provider; ")


async def test_an_answer_too_short_to_be_left_is_skipped(autojump_clock: MockClock) -> None:
    steps = good(OPENCODE)
    found, _ = await examined(OPENCODE, {**steps, "left": steps["stream"]})
    assert (found[Probe.ABORT].verdict, "over before" in found[Probe.ABORT].seen) == (Verdict.SKIPPED, True)


@pytest.mark.parametrize(("late", "verdict"), [(0.5, Verdict.OK), (30.0, Verdict.WARN), (math.inf, Verdict.FAIL)])
async def test_after_leaving_the_next_answer_comes_at_once(
    late: float, verdict: Verdict, autojump_clock: MockClock
) -> None:
    found = await finding(OPENCODE, Probe.ABORT, after=Reply([late, streamed(Protocol.CHAT)]))
    assert found.verdict is verdict


async def test_a_model_that_is_always_slow_is_not_slow_after_leaving(autojump_clock: MockClock) -> None:
    slow = Reply([12.0, streamed(Protocol.CHAT)])
    assert (await finding(OPENCODE, Probe.ABORT, stream=slow, after=slow)).verdict is Verdict.OK


async def test_an_answer_that_breaks_before_it_can_be_left_is_a_failure(autojump_clock: MockClock) -> None:
    assert (await finding(OPENCODE, Probe.ABORT, left=httpx.ReadError("x"))).verdict is Verdict.FAIL


@pytest.mark.parametrize("document", [{}, {"input_tokens": 0}, {"input_tokens": "many"}])
async def test_a_count_is_a_number(document: dict[str, object], autojump_clock: MockClock) -> None:
    assert (await finding(CLAUDE, Probe.COUNT_TOKENS, count=fakes.json_reply(document))).verdict is Verdict.FAIL


async def test_a_refused_count_is_a_failure(autojump_clock: MockClock) -> None:
    count = refusal(Protocol.MESSAGES, 404, "not_found_error")
    assert (await finding(CLAUDE, Probe.COUNT_TOKENS, count=count)).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ([14.0], Verdict.SKIPPED),
        ([15.0, b": keep-alive\n\n", 3.0], Verdict.OK),
        ([20.0], Verdict.WARN),
        ([15.0, b": keep-alive\n\n", 25.0], Verdict.WARN),
        ([70.0], Verdict.FAIL),
    ],
)
async def test_a_long_pause_is_bridged(
    script: list[float | bytes], verdict: Verdict, autojump_clock: MockClock
) -> None:
    paused = Reply([*script, streamed(Protocol.CHAT)])
    assert (await finding(OPENCODE, Probe.KEEPALIVE, thinking=paused)).verdict is verdict


async def test_a_demo_model_is_asked_to_pause(autojump_clock: MockClock) -> None:
    steps = good(OPENCODE, model="demo-chat")
    paused = Reply([15.0, b": keep-alive\n\n", 2.0, streamed(Protocol.CHAT)])
    found, gateway = await examined(OPENCODE, {**steps, "paused": paused}, model="demo-chat")
    assert (found[Probe.KEEPALIVE].verdict, found[Probe.KEEPALIVE].seen) == (Verdict.OK, "1 in a pause of 17 s")
    wished = [name for name, asked in zip([*steps, "paused"], gateway.asked, strict=True) if b"[[demo" in asked.body]
    assert wished == ["left", "paused"]
    broken, _ = await examined(OPENCODE, {**steps, "paused": httpx.ReadError("x")}, model="demo-chat")
    assert broken[Probe.KEEPALIVE].verdict is Verdict.FAIL


async def test_tokens_that_are_not_reported_are_missed(autojump_clock: MockClock) -> None:
    untold = Reply([streamed(Protocol.CHAT, usage=None)])
    found = await finding(OPENCODE, Probe.TOKENS, stream=untold)
    assert (found.verdict, found.seen) == (Verdict.WARN, "reported with 4 of 5 answers: 20 in, 16 out")


async def test_without_one_whole_answer_there_is_nothing_to_measure(autojump_clock: MockClock) -> None:
    cut = Reply([b'data: {"error": {"message": "m", "code": "upstream_broke"}}\n\n'])
    steps = good(OPENCODE)
    found, _ = await examined(OPENCODE, {"list": steps["list"], "wrong key": steps["wrong key"], "rest": cut})
    assert found[Probe.STREAM].seen == "the stream ended with an error upstream_broke"
    assert {found[probe].seen for probe in (Probe.KEEPALIVE, Probe.TOKENS)} == {"no answer came whole"}
