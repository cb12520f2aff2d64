"""Every pair of client protocol and upstream protocol, whole and streamed, through the official SDKs.

A user of either SDK must find the model that answers, whichever protocol it speaks. The last test prints the matrix.
"""

from collections.abc import Container, Iterable, Iterator
from itertools import product
from typing import Final

import anthropic
import openai
import pytest
from attrs import frozen
from openai.types.responses import ResponseStreamEvent

from capi_core.protocols.kinds import Protocol
from tests.e2e.callers import CLOCK, WEATHER, Ask, Sdks, Talk, open_sdks
from tests.e2e.talks import TALKS
from tests.support.process import Capi

pytestmark = pytest.mark.slow

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
MODELS: Final = {CHAT: "demo-chat", RESPONSES: "demo-gpt", MESSAGES: "demo-claude"}
REASONERS: Final = {**MODELS, CHAT: "demo-reasoner"}

HI: Final = "What is capi?"
ANSWER: Final = (
    "You said: “What is capi?”. capi is a self-hosted gateway: one address for every model your team may use, in "
    "whichever protocol your client speaks. This answer comes from its built-in demo provider."
)
ENDED: Final = {CHAT: "stop", RESPONSES: "completed", MESSAGES: "end_turn"}
CALLED: Final = {CHAT: "tool_calls", RESPONSES: "completed", MESSAGES: "tool_use"}
CUT: Final = {CHAT: "length", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
FORM: Final = {False: "whole", True: "stream"}

NOT_FOUND = (openai.NotFoundError, anthropic.NotFoundError)
BAD_REQUEST = (openai.BadRequestError, anthropic.BadRequestError)
RATE_LIMIT = (openai.RateLimitError, anthropic.RateLimitError)
UNAVAILABLE = (openai.InternalServerError, anthropic.InternalServerError)

_Key = tuple[Protocol, Protocol, bool]
_done: set[tuple[str, _Key]] = set()


@frozen
class Cell:
    """One feature in one pair of protocols, whole or streamed."""

    sdks: Sdks
    feature: str
    client: Protocol
    upstream: Protocol
    stream: bool

    def talk(self, model: str | None = None) -> Talk:
        """A new conversation with the upstream's model, or with the one named."""
        return TALKS[self.client](self.sdks, model or MODELS[self.upstream], stream=self.stream)

    def ok(self) -> None:
        """For the matrix that is printed at the end."""
        _done.add((self.feature, (self.client, self.upstream, self.stream)))


def cells(*, clients: Iterable[Protocol] = Protocol, streams: Iterable[bool] = FORM) -> list[_Key]:
    return list(product(clients, Protocol, streams))


def name_of(key: _Key) -> str:
    client, upstream, stream = key
    return f"{client.value}-{upstream.value}-{FORM[stream]}"


@pytest.fixture(scope="module")
def sdks(shared_demo: Capi) -> Iterator[Sdks]:
    with open_sdks(shared_demo.url) as both:
        yield both


@pytest.fixture(params=cells(), ids=name_of)
def cell(request: pytest.FixtureRequest, sdks: Sdks) -> Cell:
    assert isinstance(request.node, pytest.Function)
    return Cell(sdks, feature_of(request.node), *request.param)


def feature_of(item: pytest.Function) -> str:
    """What a test is about, whichever its cell."""
    more = [str(value) for name, value in item.callspec.params.items() if name != "cell"]
    return ": ".join([item.originalname.removeprefix("test_").replace("_", " "), *more])


def only(
    *, clients: Iterable[Protocol] = Protocol, streams: Iterable[bool] = FORM, but: Container[_Key] = ()
) -> pytest.MarkDecorator:
    """For a test that means only some of the cells."""
    meant = [key for key in cells(clients=clients, streams=streams) if key not in but]
    return pytest.mark.parametrize("cell", meant, ids=name_of, indirect=True)


# -- what a model says ------------------------------------------------------------------------------------------


def test_text(cell: Cell) -> None:
    heard = cell.talk().say(Ask(HI))
    assert heard.text == ANSWER
    assert heard.model == MODELS[cell.upstream]
    assert heard.finish == ENDED[cell.client]
    assert heard.calls == ()
    cell.ok()


def test_a_conversation(cell: Cell) -> None:
    """The second turn has the first one's answer in it: the prompt has grown by just that."""
    talk = cell.talk()
    first = talk.say(Ask(HI))
    second = talk.say(Ask("Who are you?"))
    assert f"I am {MODELS[cell.upstream]}, a simulated model." in second.text
    assert second.tokens.prompt > first.tokens.prompt + len(ANSWER) // 5
    cell.ok()


def test_an_image(cell: Cell) -> None:
    assert "You sent an image." in cell.talk().say(Ask(HI, image=True)).text
    cell.ok()


def test_a_tool_and_its_result(cell: Cell) -> None:
    talk = cell.talk()
    asked = talk.say(Ask("the weather in Paris", tools=(WEATHER, CLOCK)))
    assert [(call.name, call.arguments) for call in asked.calls] == [("get_weather", {"city": "Paris"})]
    assert asked.text == ""
    assert asked.finish == CALLED[cell.client]
    told = talk.answer("18 °C")
    assert told.text == "get_weather answered: “18 °C”."
    assert told.finish == ENDED[cell.client]
    cell.ok()


def test_two_tools_at_once_and_their_results(cell: Cell) -> None:
    talk = cell.talk()
    asked = talk.say(Ask("call get_weather for Paris and read_clock", tools=(WEATHER, CLOCK), force=True))
    assert [call.name for call in asked.calls] == ["get_weather", "read_clock"]
    assert len({call.id for call in asked.calls}) == 2
    assert asked.finish == CALLED[cell.client]
    assert talk.answer("18 °C", "noon").text == "get_weather answered: “18 °C”. read_clock answered: “noon”."
    cell.ok()


# -- reasoning --------------------------------------------------------------------------------------------------


def test_reasoning(cell: Cell) -> None:
    """It is asked for, heard and counted."""
    heard = cell.talk(REASONERS[cell.upstream]).say(Ask(HI, think=True))
    assert heard.text == ANSWER
    assert heard.tokens.reasoning == 20
    if (cell.client, cell.upstream) != (CHAT, RESPONSES):  # OpenAI's Chat Completions asks for effort, not for a text
        assert heard.reasoning.startswith("The user wrote 3 words.")
    if cell.client is MESSAGES:
        assert heard.seal  # a thinking block without a signature is none
    cell.ok()


def test_reasoning_goes_back_to_where_it_comes_from(cell: Cell) -> None:
    """The demo model takes no seal but its own, and Anthropic's clients send all of them back."""
    talk = cell.talk(REASONERS[cell.upstream])
    talk.say(Ask(HI, think=True))
    assert "Who are you?" in talk.say(Ask("Who are you?", think=True)).text
    cell.ok()


def test_reasoning_before_a_tool_goes_back_with_its_result(cell: Cell) -> None:
    talk = cell.talk(REASONERS[cell.upstream])
    asked = talk.say(Ask("the weather in Paris", tools=(WEATHER,), think=True))
    assert [call.name for call in asked.calls] == ["get_weather"]
    assert talk.answer("18 °C").text == "get_weather answered: “18 °C”."
    cell.ok()


SEALED = {"quirks": ["reasoning_text"]}


# A Chat upstream is given none unless its configuration says so; a Chat client is not shown Responses' own.
_UNSEALED = {(CHAT, RESPONSES), (RESPONSES, CHAT), (MESSAGES, CHAT)}


@only(but=[(*pair, stream) for pair, stream in product(_UNSEALED, FORM)])
def test_a_forged_seal_is_refused_by_the_provider_that_gave_it(cell: Cell) -> None:
    """So it reaches the provider, and as it was: through a client of whatever protocol."""
    talk = cell.talk(REASONERS[cell.upstream])
    assert talk.say(Ask(HI, think=True, demo=SEALED)).seal
    talk.forge_seal()
    with pytest.raises(BAD_REQUEST[cell.client is MESSAGES], match=r"signature|encrypted|opaque"):
        talk.say(Ask("Who are you?", think=True))
    cell.ok()


@only()
def test_another_provider_goes_on_with_the_conversation(cell: Cell) -> None:
    """Reasoning that only the first one understands is kept from the others, and does no harm when it comes back."""
    talk = cell.talk(REASONERS[cell.upstream])
    asked = talk.say(Ask("the weather in Paris", tools=(WEATHER,), think=True, demo=SEALED))
    assert len(asked.calls) == 1
    for model in REASONERS.values():
        talk.switch(model)
        heard = talk.say(Ask("Who are you?", think=True)) if model != REASONERS[CHAT] else talk.answer("18 °C")
        assert heard.text
    cell.ok()


# -- where an answer ends ---------------------------------------------------------------------------------------


def test_the_token_limit(cell: Cell) -> None:
    heard = cell.talk().say(Ask(HI, max_tokens=20))
    assert ANSWER.startswith(heard.text)
    assert heard.finish == CUT[cell.client]
    assert heard.tokens.completion == 20
    cell.ok()


@only(clients=(CHAT, MESSAGES), but=[(CHAT, RESPONSES, True)])
def test_stop_sequences(cell: Cell) -> None:
    """Responses has none: towards it, the gateway cuts the answer itself. Only Messages can say which one it was."""
    heard = cell.talk().say(Ask(HI, stop=("nowhere", "gateway")))
    assert heard.text == ANSWER[: ANSWER.index("gateway")]
    assert heard.finish in {"stop", "end_turn", "stop_sequence"}
    if cell.client is MESSAGES and cell.upstream is not CHAT:
        assert heard.finish == "stop_sequence"
    cell.ok()


# -- usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream", Protocol, ids=lambda upstream: upstream.value)
@pytest.mark.parametrize(
    "ask",
    [
        Ask(HI),
        Ask(HI, demo={"cached": 5}),
        Ask(HI, image=True),
        Ask(HI, think=True),
        Ask("the weather in Paris", tools=(WEATHER, CLOCK)),
    ],
    ids=["text", "cached", "image", "reasoning", "tool"],
)
def test_usage_is_the_same_for_every_client(sdks: Sdks, upstream: Protocol, ask: Ask) -> None:
    """Whoever pays looks at one bill, whichever SDK his programs use."""
    told = {
        TALKS[client](sdks, (REASONERS if ask.think else MODELS)[upstream], stream=stream).say(ask).tokens
        for client, stream in product(Protocol, FORM)
    }
    assert len(told) == 1
    (tokens,) = told
    assert tokens.prompt > 0
    assert tokens.completion > 0
    assert tokens.cached == ask.demo.get("cached", 0)


# -- errors -----------------------------------------------------------------------------------------------------


def raised(
    cell: Cell,
    pair: tuple[type[openai.APIStatusError], type[anthropic.APIStatusError]],
    ask: Ask,
    model: str | None = None,
) -> openai.APIStatusError | anthropic.APIStatusError:
    with pytest.raises(pair[cell.client is MESSAGES]) as caught:
        cell.talk(model).say(ask)
    assert isinstance(caught.value, openai.APIStatusError | anthropic.APIStatusError)
    assert caught.value.request_id is not None
    return caught.value


def test_an_unknown_model(cell: Cell) -> None:
    error = raised(cell, NOT_FOUND, Ask(HI), "gpt-12")
    assert "'gpt-12' does not exist" in str(error)
    cell.ok()


def test_a_request_that_the_upstream_refuses(cell: Cell) -> None:
    error = raised(cell, BAD_REQUEST, Ask(HI, demo={"nonsense": 1}))
    assert "unknown field `nonsense`" in str(error)
    cell.ok()


def test_an_upstream_that_limits_the_rate(cell: Cell) -> None:
    """With the time to wait, which both SDKs heed."""
    error = raised(cell, RATE_LIMIT, Ask(HI, demo={"fault": "status", "status": 429, "retry_after": 7}))
    assert error.response.headers["retry-after"] == "7"
    assert "was asked to" in str(error)
    cell.ok()


def test_an_upstream_that_is_overloaded(cell: Cell) -> None:
    error = raised(cell, UNAVAILABLE, Ask(HI, demo={"fault": "status", "status": 529}))
    assert error.status_code == 529
    cell.ok()


@only(streams=(False,))
@pytest.mark.parametrize("fault", ["error_event", "failed", "reset", "garbage", "bad_json"])
def test_an_answer_that_is_none(cell: Cell, fault: str) -> None:
    """An error that calls itself 200, half a body, a page of some proxy's."""
    raised(cell, UNAVAILABLE, Ask(HI, demo={"fault": fault}))
    cell.ok()


@only(streams=(True,))
@pytest.mark.parametrize("fault", ["error_event", "failed", "end", "reset", "garbage", "bad_json"])
def test_a_stream_that_breaks(cell: Cell, fault: str) -> None:
    """Never a clean end, and the text of what went wrong: half an answer must not pass for a whole one.

    Responses' SDK has no exception for it but its own surprise: there the last event has to tell.
    """
    ask = Ask(HI, demo={"fault": fault, "at": 3})
    why = "was asked to" if fault in {"error_event", "failed"} else "the upstream"
    match cell.client:
        case Protocol.CHAT:
            with pytest.raises(openai.APIError, match=why) as caught:
                cell.talk().say(ask)
            assert caught.value.code
        case Protocol.MESSAGES:
            with pytest.raises(anthropic.APIStatusError, match=why) as refused:
                cell.talk().say(ask)
            assert refused.value.type == "api_error"
        case Protocol.RESPONSES:
            with pytest.raises(RuntimeError, match=r"response\.completed"):
                cell.talk().say(ask)
            *_, last = cell.sdks.openai.responses.create(model=MODELS[cell.upstream], input=ask.words, stream=True)
            assert why in told_by(last)
    cell.ok()


def told_by(last: ResponseStreamEvent) -> str:
    """The message of an event that ends a Responses stream in failure."""
    if last.type == "error":
        return last.message
    assert last.type == "response.failed"
    assert last.response.error is not None
    return last.response.error.message


# -- the matrix -------------------------------------------------------------------------------------------------


def test_the_matrix(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Every cell that this run was to fill is filled; prints them."""
    due = {
        (feature_of(item), item.callspec.params["cell"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and "cell" in item.fixturenames
    }
    columns = list(product(Protocol, FORM))
    with capsys.disabled():
        writer = request.config.get_terminal_writer()
        heads = "".join(f"{upstream.value} {FORM[stream]}".rjust(18) for upstream, stream in columns)
        writer.line(f"\n{'client':<11}{'feature':<58}{heads}")
        for client, feature in product(Protocol, sorted({feature for feature, _ in due})):
            marks = ["ok" if (feature, (client, *column)) in _done else "-" for column in columns]
            writer.line(f"{client.value:<11}{feature:<58}{''.join(mark.rjust(18) for mark in marks)}")
    assert due - _done == set()
