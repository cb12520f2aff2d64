"""Options in the words of the user: `[[demo {"fault": "reset"}]]` in the last user message. Pure.

A gateway that translates a request leaves out the `demo` member, which no protocol knows; what a user says
arrives. The directive is taken out before the message is answered.
"""

import json
from typing import Final

from attrs import evolve

from capi_trio.demo.answers import Refused
from capi_trio.demo.faults import Options, parse_options
from capi_trio.demo.prompt import Prompt, Role, Turn

__all__ = ["given_options", "obey", "take_directive"]

_OPEN: Final = "[[demo "
_CLOSE: Final = "]]"
_UNLIMITED: Final = 2**31
_DECODER: Final = json.JSONDecoder()


def take_directive(text: str) -> tuple[object, str]:
    """The JSON value of the first directive in `text` (None: there is none), and the text without it.

    Raises `Refused` (400) for one that is not JSON or is not closed.
    """
    start = text.find(_OPEN)
    if start < 0:
        return None, text
    rest = text[start + len(_OPEN) :].lstrip()
    try:
        value, end = _DECODER.raw_decode(rest)
    except (ValueError, RecursionError):
        raise _malformed() from None
    after = rest[end:].lstrip()
    if not after.startswith(_CLOSE):
        raise _malformed()
    return value, f"{text[:start].rstrip()} {after.removeprefix(_CLOSE).lstrip()}".strip()


def given_options(member: object, *, streaming: bool) -> Options | None:
    """The options of the request's own `demo` member; None when it has none. Raises `Refused` (400)."""
    return None if member is None else parse_options(member, streaming=streaming)


def obey(prompt: Prompt, given: Options | None, *, streaming: bool) -> tuple[Prompt, Options]:
    """The prompt as the options want it, without their directive; and the options.

    `given` (see `given_options`) wins over a directive. Raises `Refused` (400) for a bad directive.
    """
    said, turns = _directive_in(prompt.turns)
    options = parse_options(said, streaming=streaming) if given is None else given
    # Whoever wants so many events gets them all: the model's own limit would cut a long stream short.
    unlimited = options.events is not None and not prompt.limited
    max_tokens = _UNLIMITED if unlimited else prompt.max_tokens
    return evolve(prompt, turns=turns, events=options.events, max_tokens=max_tokens), options


def _directive_in(turns: tuple[Turn, ...]) -> tuple[object, tuple[Turn, ...]]:
    for index in reversed(range(len(turns))):
        if turns[index].role is Role.USER:
            said, text = take_directive(turns[index].text)
            return said, (*turns[:index], evolve(turns[index], text=text), *turns[index + 1 :])
    return None, turns


def _malformed() -> Refused:
    message = f'demo: a directive is one JSON object between "{_OPEN}" and "{_CLOSE}".'
    return Refused.because(message, "invalid_demo_options", "demo")
