"""S7 and S8: what must change on the way changes, and nothing else.

S7: between two sides of one protocol the model's name is other, at its own place, and every other byte is the sender's.
S8: through any chain of protocols an answer keeps its words, its calls' arguments, its usage and why it ended.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from capi_core.conformance import checker_for
from capi_core.conversation import ToolCall, ToolRef
from capi_core.deltas import Finish, FinishReason, Reply, ReplyText, assemble
from capi_core.fidelity import Ledger
from capi_core.protocols.codec import Envelope
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.registry import CODECS
from capi_core.tool_names import ToolNames
from capi_core.translation import Translation
from capi_core.usage import Usage
from tests.e2e.door import ALIAS, MODEL, asked, exchange, fed
from tests.support.playbook import Data, Eof, Head, Request
from tests.support.scale import scaled, tell
from tests.support.streams import answer_document, answer_events

SEED: Final = 20261
JSON: Final = ((b"content-type", b"application/json"),)

# -- S7 -----------------------------------------------------------------------------------------------------------

TRAPS: Final = (
    '"model":"up"',
    '{"model": "up"}',
    '\\"model\\":\\"up\\"',
    f'","model":"{ALIAS}","x":"',
    'data: {"model":"up"}\n\n',
    "\u2028model\u0085 Grüße \U0001f600",
)
_SEPARATORS: Final = ((",", ":"), (", ", ": "), (" , ", " : "), (",\t", ":  "))


@frozen
class Spelling:
    """One way to write a document: the same dice give the same bytes, but for the model's name at its own place."""

    seed: str
    name: str
    place: tuple[str, ...]

    def write(self, document: object) -> bytes:
        dice = random.Random(self.seed)
        found = self._scattered(dice, document, ())
        assert isinstance(found, dict)
        for trap in dice.sample(TRAPS, 2):
            found[f"x_{dice.randrange(1000)}"] = dice.choice([trap, [trap], {"model": MODEL, "of": {"model": trap}}])
        text = json.dumps(found, separators=dice.choice(_SEPARATORS), ensure_ascii=dice.random() < 0.5)
        return text.encode()

    def _scattered(self, dice: random.Random, value: object, at: tuple[str, ...]) -> object:
        """With members in another order, and the name in its place."""
        match value:
            case dict():
                members = list(value.items())
                dice.shuffle(members)
                found = {name: self._scattered(dice, inner, (*at, name)) for name, inner in members}
                if at == self.place[:-1] and self.place[-1] in found:
                    found[self.place[-1]] = self.name
                return found
            case list():
                return [self._scattered(dice, inner, (*at, "[]")) for inner in value]
            case _:
                return value


def place_of(event: Mapping[str, object]) -> tuple[str, ...]:
    """Where an event of a stream, or a whole answer, names its model."""
    return next(((member, "model") for member in ("message", "response") if member in event), ("model",))


def trapped(dice: random.Random, text: bytes) -> bytes:
    """With traps in the arguments of a call, where they are text, and a member called `model` where they are not."""
    piece = dice.choice(TRAPS)
    once = json.dumps(piece)[1:-1]
    text = text.replace(b'\\"Oslo\\"', json.dumps(f'"Oslo","model":"{MODEL}","y":"{once}"')[1:-1].encode())
    return text.replace(b'"city": "Oslo"', b'"city": "Oslo", "model": "up"')


def rewritten_stream(dice: random.Random, protocol: Protocol, seed: str, name: str) -> bytes:
    words = [dice.choice(TRAPS) for _ in range(3)]
    out = []
    for number, event in enumerate(answer_events(protocol, words=words)):
        head, _, data = trapped(dice, event).partition(b"data: ")
        if not data.startswith(b"{"):
            out.append(event)
            continue
        document = json.loads(data)
        out.append(b"%bdata: %b\n\n" % (head, Spelling(f"{seed}.{number}", name, place_of(document)).write(document)))
    return b"".join(out)


def rewritten_document(dice: random.Random, protocol: Protocol, seed: str, name: str) -> bytes:
    words = [dice.choice(TRAPS) for _ in range(3)]
    document = json.loads(trapped(dice, answer_document(protocol, words=words)))
    return Spelling(seed, name, ("model",)).write(document)


def rewritten_request(dice: random.Random, protocol: Protocol, seed: str, name: str) -> bytes:
    arguments = json.dumps({"model": MODEL, "city": dice.choice(TRAPS)})
    said = dice.choice(TRAPS)
    schema = {"type": "object", "properties": {"model": {"type": "string", "const": ALIAS}}}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    use = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"model": ALIAS, "trap": said}}
    documents: dict[Protocol, dict[str, object]] = {
        Protocol.CHAT: {
            "messages": [
                {"role": "user", "content": said},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": arguments},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "stream_options": {"include_usage": True},
        },
        Protocol.RESPONSES: {
            "input": [
                {"role": "user", "content": said},
                {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": arguments},
                {"type": "function_call_output", "call_id": "call_1", "output": arguments},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": schema}],
        },
        Protocol.MESSAGES: {
            "max_tokens": 900,
            "messages": [
                {"role": "user", "content": said},
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": arguments}]},
            ],
            "tools": [{"name": "f", "input_schema": schema}],
        },
    }
    document = {"model": name, "stream": True, **documents[protocol]}
    return Spelling(seed, name, ("model",)).write(document)


Writer = Callable[[random.Random, Protocol, str, str], bytes]


def both(writer: Writer, protocol: Protocol, seed: str, sent: str, wanted: str) -> tuple[bytes, bytes]:
    """The same text twice, with either name of the model."""
    first, second = (writer(random.Random(seed), protocol, seed, name) for name in (sent, wanted))
    assert first != second
    return first, second


def test_s7_only_the_models_name_is_other() -> None:
    dice = random.Random(SEED)
    count = scaled(5_000)
    for number in range(count):
        seed = f"{SEED}.{number}"
        protocol = dice.choice(list(Protocol))
        named = dice.choice([MODEL, "up-2026-05-13", 'quoted "up"', "ü\u2028"])
        machine = exchange(protocol, protocol)
        match number % 3:
            case 0:
                sent, wanted = both(rewritten_request, protocol, seed, ALIAS, MODEL)
                (request,) = fed(machine, Request(sent)).requests
                assert request.body == wanted, seed
            case 1:
                sent, wanted = both(rewritten_document, protocol, seed, named, ALIAS)
                got = fed(machine, asked(protocol, stream=False), Head(200, JSON), Data(sent), Eof())
                assert (got.status, got.body) == (200, wanted), seed
            case _:
                sent, wanted = both(rewritten_stream, protocol, seed, named, ALIAS)
                got = fed(machine, asked(protocol), Head(), Data(sent), Eof())
                assert (got.status, got.body) == (200, wanted), seed
    tell(f"S7: {count} requests, answers and streams: byte for byte the sender's but for the model's name")


# -- S8 -----------------------------------------------------------------------------------------------------------

_SCALARS: Final = (
    "0",
    "-0.0",
    "1e999",
    "12345678901234567890123",
    "1.10",
    "true",
    "null",
    '""',
    '"\\u00e9\\n"',
    '"\\ud83d\\ude00"',
)
_WORDS: Final = (
    "Hello",
    " ",
    "\n\n",
    "Grüße ",
    "\u2028",
    "\U0001f600",
    '"quoted"',
    "<tag>",
    "data: [DONE]\n\n",
    "\\",
    "\t",
    "\x7f",
)


def arguments_of(dice: random.Random, depth: int = 0) -> str:
    """The text of a JSON object, spelled at random."""
    gap = dice.choice(["", " ", "\n  "])
    members = []
    for at in range(dice.randrange(4)):
        match dice.randrange(4 if depth < 2 else 2):
            case 0 | 1:
                value = dice.choice(_SCALARS)
            case 2:
                value = arguments_of(dice, depth + 1)
            case _:
                value = f"[{gap}{dice.choice(_SCALARS)},{arguments_of(dice, depth + 1)}]"
        members.append(f"{json.dumps(dice.choice(_WORDS) + str(at))}:{gap}{value}")
    return "{" + gap + f",{gap}".join(members) + gap + "}"


def meant(arguments: str) -> object:
    """What the text means, with each number as it was spelled and members in their order."""
    return json.loads(arguments or "{}", parse_int=str, parse_float=str, object_pairs_hook=tuple)


def reply_of(dice: random.Random) -> Reply:
    blocks: list[ReplyText | ToolCall] = []
    if dice.random() < 0.8:
        blocks.append(ReplyText("".join(dice.choices(_WORDS, k=dice.randrange(1, 9)))))
    blocks += [
        ToolCall(f"call_{at}", ToolRef(dice.choice(["get_weather", "f", "a-b_" * 12])), arguments_of(dice))
        for at in range(dice.choice([0, 1, 1, 2, 3]) if blocks else dice.randrange(1, 4))
    ]
    calls = any(isinstance(block, ToolCall) for block in blocks)
    reasons = [FinishReason.LENGTH] + ([FinishReason.TOOL_CALLS] * 3 if calls else [FinishReason.STOP] * 3)
    counts = [dice.choice([0, 1, dice.randrange(2**40)]) for _ in range(5)]
    return Reply("r1", "m", tuple(blocks), Finish(dice.choice(reasons)), Usage(*counts))


def kept(reply: Reply) -> object:
    """What an answer keeps in any protocol. Words and calls stand apart in Chat."""
    text = "".join(block.text for block in reply.blocks if isinstance(block, ReplyText))
    calls = [block for block in reply.blocks if isinstance(block, ToolCall)]
    return text, [(call.id, call.tool, meant(call.arguments)) for call in calls], reply.usage, reply.finish.reason


def translation(upstream: Protocol, client: Protocol) -> Translation:
    return Translation(CODECS[upstream], CODECS[client], Envelope("req_1", "m", now_s=9), Ledger(), ToolNames())


def through_documents(reply: Reply, chain: Sequence[Protocol]) -> Reply:
    body = CODECS[chain[0]].encode_reply(reply, Envelope("req_1", "m"), Ledger())
    for upstream, client in pairwise(chain):
        body = translation(upstream, client).whole(body).body
    return CODECS[chain[-1]].decode_reply(body, Ledger())


def through_streams(dice: random.Random, reply: Reply, chain: Sequence[Protocol]) -> Reply:
    stream = CODECS[chain[0]].stream_encoder(Envelope("req_1", "m"), Ledger()).encode(reply.deltas())
    for upstream, client in pairwise(chain):
        machine = translation(upstream, client).stream(max_event_bytes=1 << 20)
        at = dice.randrange(len(stream))
        stream = machine.receive_data(stream[:at]) + machine.receive_data(stream[at:]) + machine.finish()
        checker = checker_for(client)
        checker.receive_data(stream)
        checker.finish()
        assert checker.violations == ()
    decoder = CODECS[chain[-1]].stream_decoder(Ledger(), max_event_bytes=1 << 20)
    found = assemble([*decoder.receive_data(stream), *decoder.finish()])
    assert isinstance(found, Reply)
    return found


def test_s8_an_answer_is_the_same_after_any_chain_of_protocols() -> None:
    dice = random.Random(SEED)
    count = scaled(5_000)
    hops = 0
    for number in range(count):
        reply = reply_of(dice)
        chain = dice.choices(list(Protocol), k=dice.randrange(2, 5))
        hops += len(chain) - 1
        came = through_documents(reply, chain) if number % 2 else through_streams(dice, reply, chain)
        assert kept(came) == kept(reply), (SEED, number, chain)
    tell(f"S8: {count} answers, {hops} translations, half of them streams: text, arguments, usage and reason equal")
