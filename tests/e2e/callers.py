"""What is asked and heard in a conversation with a model, in no protocol's shape. See `talks` for the protocols."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import anthropic
import msgspec
import openai
from attrs import field, frozen

__all__ = ["CLOCK", "PIXEL", "WEATHER", "Ask", "Call", "Heard", "Sdks", "Talk", "Tokens", "Tool", "open_sdks"]

PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
"""One transparent pixel as PNG in base64."""


@frozen
class Sdks:
    """Both SDKs as clients of one gateway."""

    openai: openai.OpenAI
    anthropic: anthropic.Anthropic


@contextmanager
def open_sdks(url: str) -> Iterator[Sdks]:
    """`url`: the gateway's, without a path. Nothing is tried twice."""
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-unused", max_retries=0, timeout=10) as one,
        anthropic.Anthropic(base_url=url, api_key="sk-unused", max_retries=0, timeout=10) as other,
    ):
        yield Sdks(one, other)


@frozen
class Tool:
    """A tool with one argument, a string; or with none."""

    name: str
    argument: str | None = None

    @property
    def schema(self) -> dict[str, object]:
        names = [] if self.argument is None else [self.argument]
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}


WEATHER: Final = Tool("get_weather", "city")
CLOCK: Final = Tool("read_clock", "zone")


@frozen
class Ask:
    """What a user says, and the request's settings. `force`: at least one tool has to be called.

    `demo`: options for the demo provider, which travel in the user's own words: see `capi_trio.demo.directive`.
    """

    text: str
    demo: Mapping[str, object] = field(factory=dict, eq=False)
    image: bool = False
    tools: tuple[Tool, ...] = ()
    force: bool = False
    think: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        options = msgspec.json.encode({"pace_ms": 0, **self.demo}).decode()
        return f"{self.text} [[demo {options}]]"


@frozen
class Call:
    """A call that the model made; `arguments` decoded."""

    id: str
    name: str
    arguments: Mapping[str, object]


@frozen
class Tokens:
    """Usage as every protocol can tell it: all of the prompt, all of the completion, and its part of reasoning."""

    prompt: int
    completion: int
    reasoning: int
    cached: int


@frozen
class Heard:
    """An answer. `finish` in the client's own words; `seal`: what proves the reasoning when it is sent back."""

    model: str
    text: str
    calls: tuple[Call, ...]
    reasoning: str
    seal: str | None
    finish: str
    tokens: Tokens


class Talk(abc.ABC):
    """A conversation with one model. The history is the SDK's own, and grows as a program would let it grow."""

    def __init__(self, sdks: Sdks, model: str, *, stream: bool) -> None:
        self._sdks = sdks
        self._model = model
        self._stream = stream
        self._ask = Ask("")
        self._calls: tuple[Call, ...] = ()

    def switch(self, model: str) -> None:
        """Another model goes on with the conversation."""
        self._model = model

    def say(self, ask: Ask) -> Heard:
        """The answer to what the user says now."""
        self._ask = ask
        self._add_user(ask)
        return self._hear()

    def answer(self, *results: str) -> Heard:
        """The answer to the results of the last calls, in their order."""
        self._add_results([(call.id, result) for call, result in zip(self._calls, results, strict=True)])
        return self._hear()

    @abc.abstractmethod
    def forge_seal(self) -> None:
        """Spoils what proves the reasoning in the history's last answer."""

    def _hear(self) -> Heard:
        heard = self._request()
        self._calls = heard.calls
        return heard

    @abc.abstractmethod
    def _add_user(self, ask: Ask) -> None: ...

    @abc.abstractmethod
    def _add_results(self, results: Sequence[tuple[str, str]]) -> None: ...

    @abc.abstractmethod
    def _request(self) -> Heard:
        """Asks, and adds the answer to the history."""
