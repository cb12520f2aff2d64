"""POST /v1/chat/completions: OpenAI's Chat Completions, streamed and whole (wire.md 1.1). Pure."""

import msgspec

from capi_trio.demo import catalog
from capi_trio.demo.answers import Answer, Refused, Request, World, decode, error_object
from capi_trio.demo.chat_request import ChatRequest, prompt_of
from capi_trio.demo.chat_stream import Chunks
from capi_trio.demo.completion import Choice, Completion, Usage, whole_json
from capi_trio.demo.directive import given_options, obey
from capi_trio.demo.faults import Options, Quirk
from capi_trio.demo.prompt import Prompt
from capi_trio.demo.script import prompt_tokens, reply_to
from capi_trio.demo.wire import FAULT_PROBLEM, ServerEvent, stream_answer, whole_answer

__all__ = ["answer"]


def answer(incoming: Request, world: World) -> Answer:
    """The answer to a request. Raises `Refused` for one that OpenAI's server would not take."""
    request = decode(incoming.body, ChatRequest)
    streaming = bool(request.stream)
    given = given_options(request.demo, streaming=streaming)
    model = catalog.serving(request.model, catalog.CHAT_ENDPOINT)
    prompt, options = obey(prompt_of(request, model), given, streaming=streaming)
    tokens = prompt_tokens(prompt)
    if tokens > model.max_prompt_tokens:
        message = (
            f"This model's maximum prompt length is {model.max_prompt_tokens} tokens. "
            f"However, your messages resulted in {tokens} tokens."
        )
        raise Refused.because(message, "context_length_exceeded", "messages")
    completion = _complete(prompt, tokens, request.n or 1, options, world)
    if not streaming:
        return whole_answer(whole_json(completion, options), options)
    asked = request.stream_options is not None and bool(request.stream_options.include_usage)
    return stream_answer(Chunks(completion, options, asked).events(), _error, options, world)


def _error(_number: int) -> ServerEvent:
    return ServerEvent(msgspec.json.encode(error_object(FAULT_PROBLEM)), "closing")


def _complete(prompt: Prompt, tokens: int, n: int, options: Options, world: World) -> Completion:
    choices = []
    for variant in range(n):
        reply = reply_to(prompt, variant)
        choices.append(Choice(reply, tuple(world.new_id("call_") for _ in reply.calls)))
    cached = min(options.cached, tokens)
    usage = Usage(
        prompt=tokens,
        completion=sum(choice.reply.completion_tokens for choice in choices),
        reasoning=sum(choice.reply.reasoning_tokens for choice in choices),
        cached=cached,
        cache_write=min(options.cache_write, tokens - cached),
        detailed=Quirk.NO_USAGE_DETAILS not in options.quirks,
    )
    return Completion(
        id=world.new_id("chatcmpl-"),
        created=int(world.clock()),
        model=prompt.model,
        choices=tuple(choices),
        usage=usage,
    )
