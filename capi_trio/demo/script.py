"""What the demo model says. Pure and deterministic: the same prompt gets the same reply."""

import re
from typing import Final

import msgspec

from capi_trio.demo.prompt import Call, Finish, Prompt, Reply, Role, Turn
from capi_trio.demo.synthesis import synthesise
from capi_trio.demo.tokens import estimate_tokens, keep, pieces_of, regroup, within
from capi_trio.demo.toolcalls import choose_calls

__all__ = ["IMAGE_TOKENS", "TURN_TOKENS", "prompt_tokens", "reply_to"]

# What a message costs beyond its text, and an image: round figures near those of real models.
TURN_TOKENS: Final = 4
IMAGE_TOKENS: Final = 85

_QUOTE_LIMIT: Final = 160

# What the model knows. The first row whose words all occur in the user's message answers.
_KNOWN: Final[tuple[tuple[frozenset[str], str], ...]] = (
    (
        frozenset({"what", "capi"}),
        "capi is a self-hosted gateway: one address for every model your team may use, in whichever protocol "
        "your client speaks. This answer comes from its built-in demo provider.",
    ),
    (
        frozenset({"who", "you"}),
        "I am {model}, a simulated model. I follow a script, so you can try capi without an account at any provider.",
    ),
    (
        frozenset({"models"}),
        "The demo provider has demo-chat, demo-chat-mini, demo-reasoner, demo-claude, demo-gpt, demo-all and "
        "demo-embed. "
        "Ask GET /v1/models for the list that your key may use.",
    ),
    (
        frozenset({"setup"}),
        "Point your client's base URL at capi, ending in /v1, and use a capi key as its API key. "
        "`capi setup` prints the settings for the clients it knows.",
    ),
    (
        frozenset({"key"}),
        "`capi keys create` makes a key. It is shown once; capi itself keeps only its hash.",
    ),
    (
        frozenset({"tools"}),
        "Send a tool along and name it in your message: I will call it with arguments that fit "
        "its schema, and quote the result that you send back.",
    ),
    (
        frozenset({"fault"}),
        "Add a `demo` member to the request, for example "
        '{{"demo": {{"fault": "reset", "at": 3}}}}, and I will break in just that way.',
    ),
    (
        frozenset({"help"}),
        "Try: what is capi, which models are there, how do I set up a client, or send me a tool to call.",
    ),
)
_DEFAULT: Final = (
    "I am {model}, a simulated model inside capi: I answer from a script, word by word, so that you can see "
    "streaming, tools and usage work before you connect a real provider. Say help for what I know."
)
_FILLER: Final = " and so on"

_THOUGHTS: Final = (
    "The user wrote {words} words. ",
    "I have a script, so I look for a line in it that fits. ",
    "I will quote the message first, to show that it arrived whole. ",
)


def reply_to(prompt: Prompt, variant: int = 0) -> Reply:
    """The model's reply. `variant` counts the choices of one request from 0; each choice differs."""
    last = _last_turn(prompt)
    words = len(last.text.split())
    reasoning = pieces_of("".join(_THOUGHTS[: prompt.thoughts]).format(words=words))
    calls = choose_calls(prompt, last)
    text = () if calls else _shaped(prompt, _text(prompt, last, variant))
    text, stop_sequence = _stopped(text, prompt.stop)
    return _within_budget(prompt.max_tokens, reasoning, text, calls, stop_sequence)


def prompt_tokens(prompt: Prompt) -> int:
    """What the prompt costs: text, calls and images of every turn, and the tools offered."""
    turns = sum(
        TURN_TOKENS
        + estimate_tokens(turn.text)
        + turn.images * IMAGE_TOKENS
        + sum(_call_tokens(call) for call in turn.calls)
        for turn in prompt.turns
    )
    tools = sum(
        estimate_tokens(tool.name + tool.description + msgspec.json.encode(tool.schema).decode())
        for tool in prompt.tools
    )
    return turns + tools


def _last_turn(prompt: Prompt) -> Turn:
    """The turn to answer. A system message after it (some clients add one) is not what was said last."""
    spoken = [turn for turn in prompt.turns if turn.role is not Role.SYSTEM]
    return spoken[-1] if spoken else Turn(Role.USER, "")


def _text(prompt: Prompt, last: Turn, variant: int) -> str:
    if prompt.json_mode is not None:
        schema = prompt.json_mode.schema
        value = {"reply": _answer(prompt, last)} if schema is None else synthesise(schema, last.text)
        return msgspec.json.encode(value).decode()
    text = _tool_results(prompt) if last.role is Role.TOOL else _quotation(last) + _answer(prompt, last)
    return f"(Choice {variant + 1}) {text}" if variant else text


def _tool_results(prompt: Prompt) -> str:
    """Quotes every tool result after the last turn that was not one."""
    results: list[Turn] = []
    for turn in reversed(prompt.turns):
        if turn.role is Role.TOOL:
            results.insert(0, turn)
        elif turn.role is not Role.SYSTEM:
            break
    return " ".join(f"{turn.name or 'The tool'} answered: “{_shorten(turn.text)}”." for turn in results)


def _quotation(last: Turn) -> str:
    said = f"You said: “{_shorten(last.text)}”. " if last.role is Role.USER and last.text.strip() else ""
    match last.images:
        case 0:
            return said
        case 1:
            return f"{said}You sent an image. "
        case count:
            return f"{said}You sent {count} images. "


def _answer(prompt: Prompt, last: Turn) -> str:
    spoken = set(re.findall(r"\w+", last.text.casefold()))
    answer = next((answer for words, answer in _KNOWN if words <= spoken), _DEFAULT)
    return answer.format(model=prompt.model)


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _QUOTE_LIMIT else f"{text[: _QUOTE_LIMIT - 1]}…"


def _shaped(prompt: Prompt, text: str) -> tuple[str, ...]:
    """The text in as many pieces as the caller wants; what is missing is filled up."""
    pieces = pieces_of(text)
    if prompt.events is None:
        return pieces
    pieces = regroup(pieces, prompt.events)
    # White space keeps a JSON text the same JSON.
    filler = " " if prompt.json_mode is not None else _FILLER
    return pieces + (filler,) * (prompt.events - len(pieces))


def _stopped(text: tuple[str, ...], stop: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """The text up to the first stop sequence, which is not part of it, and that sequence."""
    whole = "".join(text)
    found = [(at, sequence) for sequence in stop if sequence and (at := whole.find(sequence)) >= 0]
    if not found:
        return text, None
    at, sequence = min(found)
    return keep(text, at), sequence


def _call_tokens(call: Call) -> int:
    return estimate_tokens(call.name) + estimate_tokens("".join(call.arguments))


def _within_budget(
    tokens: int,
    reasoning: tuple[str, ...],
    text: tuple[str, ...],
    calls: tuple[Call, ...],
    stop_sequence: str | None,
) -> Reply:
    """Cuts a reply where its tokens run out: in the order of streaming, calls even inside their arguments."""
    left = tokens
    kept_reasoning, left = _spend(reasoning, left)
    kept_text, left = _spend(text, left)
    kept_calls: list[Call] = []
    for call in calls:
        name_tokens = estimate_tokens(call.name)
        if name_tokens > left:
            break
        arguments, left = _spend(call.arguments, left - name_tokens)
        kept_calls.append(Call(call.name, arguments))
    whole = (kept_reasoning, kept_text, tuple(kept_calls)) == (reasoning, text, calls)
    return Reply(
        reasoning=kept_reasoning,
        text=kept_text,
        calls=tuple(kept_calls),
        finish=(Finish.TOOL_CALLS if calls else Finish.STOP) if whole else Finish.LENGTH,
        reasoning_tokens=estimate_tokens("".join(kept_reasoning)),
        completion_tokens=tokens - left,
        stop_sequence=stop_sequence if whole else None,
    )


def _spend(pieces: tuple[str, ...], tokens: int) -> tuple[tuple[str, ...], int]:
    """The pieces that fit in `tokens`, and the tokens left."""
    whole = "".join(pieces)
    kept = keep(pieces, within(whole, tokens))
    return kept, tokens - estimate_tokens("".join(kept))
