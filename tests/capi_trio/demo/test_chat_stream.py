"""Streams of chat completions that stray from OpenAI's as some servers' do. What OpenAI's are like: see test_chat."""

from itertools import groupby

import msgspec
from openai.types.chat import ChatCompletionChunk

from capi_trio.demo.chat_stream import Chunks
from capi_trio.demo.completion import Choice, Completion, Usage
from capi_trio.demo.faults import Options, Quirk, UsageStyle
from capi_trio.demo.prompt import Call, Finish, Reply
from capi_trio.demo.seal import seal

TEXT = Reply(("Hm. ", "Well. "), ("Yes", "."), (), Finish.STOP, 2, 4)
CALLS = Reply((), (), (Call("one", ("{", "}")), Call("two", ("[", "1", "]"))), Finish.TOOL_CALLS, 0, 9)


def stream(reply: Reply, *quirks: Quirk, usage: UsageStyle = UsageStyle.NORMAL) -> list[dict[str, object]]:
    """The chunks before [DONE]."""
    ids = tuple(f"call_{call.name}" for call in reply.calls)
    completion = Completion("chatcmpl-1", 1, "demo-all", (Choice(reply, ids),), Usage(9, 4, 1))
    options = Options(quirks=frozenset(quirks), usage=usage)
    *chunks, done = (event.data for event in Chunks(completion, options, asked=False).events())
    assert done == b"[DONE]"
    return [msgspec.json.decode(chunk, type=dict[str, object]) for chunk in chunks]


def deltas(chunks: list[dict[str, object]]) -> list[dict[str, object]]:
    """What the chunks say, without the opening and the finish."""
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    found = [choice.delta.model_dump(exclude_unset=True) for chunk in parsed for choice in chunk.choices]
    return [delta for delta in found if delta and "role" not in delta]


def finishes(chunks: list[dict[str, object]]) -> list[str]:
    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    return [choice.finish_reason for chunk in parsed for choice in chunk.choices if choice.finish_reason]


def calls(chunks: list[dict[str, object]]) -> list[dict[str, object]]:
    return [msgspec.convert(delta["tool_calls"], list[dict[str, object]])[0] for delta in deltas(chunks)]


def test_without_quirks_a_stream_is_openais() -> None:
    assert deltas(stream(TEXT)) == [
        {"reasoning_content": "Hm. "},
        {"reasoning_content": "Well. "},
        {"content": "Yes"},
        {"content": "."},
    ]
    assert finishes(stream(TEXT)) == ["stop"]


def test_reasoning_can_be_text_with_a_signature_after_it() -> None:
    assert deltas(stream(TEXT, Quirk.REASONING_TEXT))[:4] == [
        {"reasoning_text": "Hm. "},
        {"reasoning_text": "Well. "},
        {"content": "", "reasoning_opaque": seal("Hm. Well. ")},
        {"content": "Yes"},
    ]
    assert b"reasoning_opaque" not in msgspec.json.encode(stream(CALLS, Quirk.REASONING_TEXT))


def test_a_calls_id_can_come_before_its_name() -> None:
    first, second, third, *_ = calls(stream(CALLS, Quirk.SPLIT_TOOL_ID))
    assert first == {"index": 0, "id": "call_one", "type": "function"}
    assert second == {"index": 0, "function": {"name": "one", "arguments": ""}}
    assert third == {"index": 0, "function": {"arguments": "{"}}


def test_calls_can_take_turns() -> None:
    assert [call["index"] for call in calls(stream(CALLS))] == [0, 0, 0, 1, 1, 1, 1]
    interleaved = calls(stream(CALLS, Quirk.INTERLEAVED_CALLS))
    assert [call["index"] for call in interleaved] == [0, 1, 0, 1, 0, 1, 1]
    by_index = sorted(interleaved, key=lambda call: str(call["index"]))
    assert by_index == calls(stream(CALLS))
    assert [len(list(group)) for _, group in groupby(by_index, key=lambda call: call["index"])] == [3, 4]


def test_a_chunk_can_have_null_for_choices() -> None:
    chunks = stream(TEXT, Quirk.CHOICES_NULL)
    assert [chunk["choices"] for chunk in chunks].index(None) == 1
    assert len(chunks) == len(stream(TEXT)) + 1


def test_filter_results_can_come_first() -> None:
    first, *rest = stream(TEXT, Quirk.FILTER_RESULTS_FIRST)
    assert (first["choices"], first["id"]) == ([], "")
    assert first["prompt_filter_results"]
    assert rest == stream(TEXT)


def test_the_finish_can_come_twice_or_never() -> None:
    assert finishes(stream(TEXT, Quirk.DUPLICATE_FINISH)) == ["stop", "stop"]
    assert finishes(stream(TEXT, Quirk.NO_FINISH)) == []
    assert deltas(stream(TEXT, Quirk.NO_FINISH)) == deltas(stream(TEXT))


def test_quirks_go_together() -> None:
    chunks = stream(CALLS, Quirk.INTERLEAVED_CALLS, Quirk.SPLIT_TOOL_ID, Quirk.NO_FINISH, usage=UsageStyle.UNASKED)
    assert [call["index"] for call in calls(chunks)] == [0, 1, 0, 1, 0, 1, 0, 1, 1]
    assert chunks[-1]["usage"]
