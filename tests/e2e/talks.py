"""One conversation in each protocol, held through the official SDKs: what was asked and heard, in no protocol's shape.

    talk = TALKS[Protocol.MESSAGES](sdks, "demo-claude", stream=True)
    heard = talk.say(Ask("the weather in Paris", tools=(WEATHER,)))
    heard = talk.answer("18 °C")

A streamed answer goes through the SDK's own helper (`chat.completions.stream`, `responses.stream`, `messages.stream`),
which is the strictest reader of its protocol. Whatever an SDK raises comes out as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

import anthropic
import msgspec
import openai
from anthropic.types import (
    ContentBlockParam,
    Message,
    MessageParam,
    TextBlockParam,
    ThinkingBlock,
    ThinkingConfigParam,
    ToolChoiceParam,
)
from anthropic.types import ToolParam as AnthropicToolParam
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionContentPartParam,
    ChatCompletionMessage,
    ChatCompletionMessageParam,
    ChatCompletionToolParam,
)
from openai.types.responses import (
    Response,
    ResponseInputContentParam,
    ResponseInputItemParam,
    ToolParam,
)
from typing_extensions import override

from capi_core.protocols.kinds import Protocol
from tests.e2e.callers import PIXEL, Ask, Call, Heard, Sdks, Talk, Tokens

__all__ = ["TALKS"]

_DATA_URL: Final = f"data:image/png;base64,{PIXEL}"
# Messages has no default. Enough for thoughts and an answer.
_MAX_TOKENS: Final = 4000
_BUDGET: Final = 2048


class ChatTalk(Talk):
    """Chat Completions."""

    def __init__(self, sdks: Sdks, model: str, *, stream: bool) -> None:
        super().__init__(sdks, model, stream=stream)
        self.history: list[ChatCompletionMessageParam] = []

    @override
    def _add_user(self, ask: Ask) -> None:
        parts: list[ChatCompletionContentPartParam] = [{"type": "text", "text": ask.words}]
        if ask.image:
            parts.append({"type": "image_url", "image_url": {"url": _DATA_URL}})
        self.history.append({"role": "user", "content": parts if ask.image else ask.words})

    @override
    def _add_results(self, results: Sequence[tuple[str, str]]) -> None:
        self.history += [{"role": "tool", "tool_call_id": call_id, "content": text} for call_id, text in results]

    @override
    def forge_seal(self) -> None:
        answer = cast("dict[str, object]", self.history[-1])
        answer["reasoning_opaque"] = _forged(answer["reasoning_opaque"])

    @override
    def _request(self) -> Heard:
        completion = self._streamed() if self._stream else self._whole()
        (choice,) = completion.choices
        message = choice.message
        self.history.append(
            cast("ChatCompletionMessageParam", message.model_dump(exclude_none=True, exclude={"parsed"}))
        )
        extra = message.model_extra or {}
        return Heard(
            model=completion.model,
            text=message.content or "",
            calls=tuple(_chat_calls(message)),
            reasoning=str(extra.get("reasoning_content") or extra.get("reasoning_text") or ""),
            seal=extra.get("reasoning_opaque"),
            finish=choice.finish_reason,
            tokens=_chat_tokens(completion),
        )

    def _whole(self) -> ChatCompletion:
        ask = self._ask
        return self._sdks.openai.chat.completions.create(
            model=self._model,
            messages=self.history,
            tools=self._tools() or openai.omit,
            tool_choice="required" if ask.force else openai.omit,
            reasoning_effort="medium" if ask.think else openai.omit,
            max_completion_tokens=ask.max_tokens,
            stop=list(ask.stop) or openai.omit,
        )

    def _streamed(self) -> ChatCompletion:
        try:
            return self._with_helper()
        except openai.LengthFinishReasonError as cut:  # so the helper reports an answer that was cut short
            return cut.completion

    def _with_helper(self) -> ChatCompletion:
        ask = self._ask
        with self._sdks.openai.chat.completions.stream(
            model=self._model,
            messages=self.history,
            tools=self._tools() or openai.omit,
            tool_choice="required" if ask.force else openai.omit,
            reasoning_effort="medium" if ask.think else openai.omit,
            max_completion_tokens=ask.max_tokens,
            stop=list(ask.stop) or openai.omit,
            stream_options={"include_usage": True},
        ) as stream:
            return stream.get_final_completion()

    def _tools(self) -> list[ChatCompletionToolParam]:
        return [
            {"type": "function", "function": {"name": tool.name, "parameters": tool.schema}} for tool in self._ask.tools
        ]


def _chat_calls(message: ChatCompletionMessage) -> Iterator[Call]:
    for call in message.tool_calls or ():
        assert call.type == "function"
        yield Call(call.id, call.function.name, _decoded(call.function.arguments))


def _chat_tokens(completion: ChatCompletion) -> Tokens:
    usage = completion.usage
    assert usage is not None
    out, came = usage.completion_tokens_details, usage.prompt_tokens_details
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return Tokens(
        prompt=usage.prompt_tokens,
        completion=usage.completion_tokens,
        reasoning=(out and out.reasoning_tokens) or 0,
        cached=(came and came.cached_tokens) or 0,
    )


class ResponsesTalk(Talk):
    """Responses, without state on the server."""

    def __init__(self, sdks: Sdks, model: str, *, stream: bool) -> None:
        super().__init__(sdks, model, stream=stream)
        self.history: list[ResponseInputItemParam] = []

    @override
    def _add_user(self, ask: Ask) -> None:
        parts: list[ResponseInputContentParam] = [{"type": "input_text", "text": ask.words}]
        if ask.image:
            parts.append({"type": "input_image", "image_url": _DATA_URL, "detail": "auto"})
        self.history.append({"type": "message", "role": "user", "content": parts})

    @override
    def _add_results(self, results: Sequence[tuple[str, str]]) -> None:
        self.history += [
            {"type": "function_call_output", "call_id": call_id, "output": text} for call_id, text in results
        ]

    @override
    def forge_seal(self) -> None:
        (thought,) = [item for item in self.history if item.get("type") == "reasoning"]
        answer = cast("dict[str, object]", thought)
        answer["encrypted_content"] = _forged(answer["encrypted_content"])

    @override
    def _request(self) -> Heard:
        response = self._streamed() if self._stream else self._whole()
        self.history += [
            cast("ResponseInputItemParam", item.to_dict(exclude_none=True, mode="json")) for item in response.output
        ]
        thoughts = [item for item in response.output if item.type == "reasoning"]
        assert response.status is not None
        return Heard(
            model=str(response.model),
            text=response.output_text,
            calls=tuple(
                Call(item.call_id, item.name, _decoded(item.arguments))
                for item in response.output
                if item.type == "function_call"
            ),
            reasoning="".join(part.text for item in thoughts for part in item.summary),
            seal=next((item.encrypted_content for item in thoughts), None),
            finish=str(response.incomplete_details.reason) if response.incomplete_details else response.status,
            tokens=_response_tokens(response),
        )

    def _whole(self) -> Response:
        ask = self._ask
        return self._sdks.openai.responses.create(
            model=self._model,
            input=self.history,
            tools=self._tools() or openai.omit,
            tool_choice="required" if ask.force else openai.omit,
            reasoning={"effort": "medium", "summary": "auto"} if ask.think else openai.omit,
            include=["reasoning.encrypted_content"],
            max_output_tokens=ask.max_tokens,
            store=False,
        )

    def _streamed(self) -> Response:
        ask = self._ask
        with self._sdks.openai.responses.stream(
            model=self._model,
            input=self.history,
            tools=self._tools() or openai.omit,
            tool_choice="required" if ask.force else openai.omit,
            reasoning={"effort": "medium", "summary": "auto"} if ask.think else openai.omit,
            include=["reasoning.encrypted_content"],
            max_output_tokens=ask.max_tokens,
            store=False,
        ) as stream:
            events = list(stream)
            assert [event.sequence_number for event in events] == list(range(len(events)))
            last = events[-1]
            # The helper knows no other end than `response.completed`.
            return last.response if last.type == "response.incomplete" else stream.get_final_response()

    def _tools(self) -> list[ToolParam]:
        return [
            {"type": "function", "name": tool.name, "parameters": tool.schema, "strict": False}
            for tool in self._ask.tools
        ]


def _response_tokens(response: Response) -> Tokens:
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    return Tokens(
        prompt=usage.input_tokens,
        completion=usage.output_tokens,
        reasoning=usage.output_tokens_details.reasoning_tokens,
        cached=usage.input_tokens_details.cached_tokens,
    )


class MessagesTalk(Talk):
    """Anthropic's Messages."""

    def __init__(self, sdks: Sdks, model: str, *, stream: bool) -> None:
        super().__init__(sdks, model, stream=stream)
        self.history: list[MessageParam] = []

    @override
    def _add_user(self, ask: Ask) -> None:
        text: TextBlockParam = {"type": "text", "text": ask.words}
        content: list[ContentBlockParam] = [text]
        if ask.image:
            source: anthropic.types.Base64ImageSourceParam = {
                "type": "base64", "media_type": "image/png", "data": PIXEL,
            }  # fmt: skip
            content.append({"type": "image", "source": source})
        self.history.append({"role": "user", "content": content})

    @override
    def _add_results(self, results: Sequence[tuple[str, str]]) -> None:
        self.history.append(
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": call_id, "content": text} for call_id, text in results
                ],
            }
        )

    @override
    def forge_seal(self) -> None:
        for block in self.history[-1]["content"]:
            if isinstance(block, ThinkingBlock):
                block.signature = _forged(block.signature)

    @override
    def _request(self) -> Heard:
        message = self._streamed() if self._stream else self._whole()
        self.history.append({"role": "assistant", "content": message.content})
        thoughts = [block for block in message.content if block.type == "thinking"]
        redacted = [block.data for block in message.content if block.type == "redacted_thinking"]
        assert message.stop_reason is not None
        return Heard(
            model=str(message.model),
            text="".join(block.text for block in message.content if block.type == "text"),
            calls=tuple(
                Call(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"
            ),
            reasoning="".join(block.thinking for block in thoughts),
            seal=next(iter([block.signature for block in thoughts] + redacted), None),
            finish=message.stop_reason,
            tokens=_message_tokens(message),
        )

    def _whole(self) -> Message:
        return self._sdks.anthropic.messages.create(
            model=self._model,
            max_tokens=self._ask.max_tokens or _MAX_TOKENS,
            messages=self.history,
            tools=self._tools() or anthropic.omit,
            tool_choice=self._tool_choice() or anthropic.omit,
            thinking=self._thinking() or anthropic.omit,
            stop_sequences=list(self._ask.stop) or anthropic.omit,
        )

    def _streamed(self) -> Message:
        with self._sdks.anthropic.messages.stream(
            model=self._model,
            max_tokens=self._ask.max_tokens or _MAX_TOKENS,
            messages=self.history,
            tools=self._tools() or anthropic.omit,
            tool_choice=self._tool_choice() or anthropic.omit,
            thinking=self._thinking() or anthropic.omit,
            stop_sequences=list(self._ask.stop) or anthropic.omit,
        ) as stream:
            return stream.get_final_message()

    def _tools(self) -> list[AnthropicToolParam]:
        return [{"name": tool.name, "input_schema": tool.schema} for tool in self._ask.tools]

    def _tool_choice(self) -> ToolChoiceParam | None:
        return {"type": "any"} if self._ask.force else None

    def _thinking(self) -> ThinkingConfigParam | None:
        return {"type": "enabled", "budget_tokens": _BUDGET} if self._ask.think else None


def _message_tokens(message: Message) -> Tokens:
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    details = usage.output_tokens_details
    return Tokens(
        prompt=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
        completion=usage.output_tokens,
        reasoning=(details and details.thinking_tokens) or 0,
        cached=cached,
    )


def _forged(seal: object) -> str:
    assert isinstance(seal, str)
    assert len(seal) > len("capi1.responses.") + 8  # there is more to it than who gave it
    return seal[:-8] + seal[:-9:-1]


def _decoded(arguments: str) -> dict[str, object]:
    return msgspec.json.decode(arguments, type=dict[str, object])


TALKS: Final[Mapping[Protocol, type[Talk]]] = {
    Protocol.CHAT: ChatTalk,
    Protocol.RESPONSES: ResponsesTalk,
    Protocol.MESSAGES: MessagesTalk,
}
