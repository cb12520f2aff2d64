"""Token counts: every text is counted, what is not text by its stated rule, and nothing that comes in can break it."""

import base64
import struct
import time
from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from capi_core.conversation import (
    Audio,
    Block,
    CacheMark,
    Conversation,
    CustomTool,
    Document,
    FunctionTool,
    HostedTool,
    Image,
    Opaque,
    OutputFormat,
    OutputKind,
    Reasoning,
    Refusal,
    Role,
    Signature,
    Source,
    SourceKind,
    Text,
    Tool,
    ToolCall,
    ToolRef,
    ToolResult,
    Turn,
)
from capi_core.errors import LocalError
from capi_core.protocols.kinds import Protocol
from capi_core.tokens import (
    ESTIMATOR,
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    PAGE_TOKENS,
    REPLY_TOKENS,
    TOOL_TOKENS,
    TOOLS_TOKENS,
    TokenCount,
    count_conversation,
    encode_count,
)


@frozen
class ByCharacter:
    """A token is a character: sums are easy to see."""

    exact: bool = True

    def count(self, text: str) -> int:
        return len(text)


def asking(*blocks: Block, tools: tuple[Tool, ...] = (), output: OutputFormat | None = None) -> Conversation:
    """A request of one turn."""
    turns = (Turn(Role.USER, blocks),)
    return Conversation(Protocol.MESSAGES, "m", turns, tools=tools, output=output or OutputFormat())


def beyond_frame(request: Conversation, factor: float = 1.0) -> int:
    """Tokens of a request of one turn, less those of the turn and of the opening of the answer."""
    return count_conversation(request, ByCharacter(), vendor_factor=factor).tokens - MESSAGE_TOKENS - REPLY_TOKENS


def of_block(block: Block) -> int:
    """Tokens of a block; what is not text makes the count an estimate."""
    request = asking(block)
    assert not count_conversation(request, ByCharacter()).exact
    return beyond_frame(request)


def in_base64(data: bytes, media_type: str = "image/png") -> Source:
    return Source(SourceKind.BASE64, base64.b64encode(data).decode(), media_type)


# -- The estimator


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("a", 1),
        ("Hello, world!", 4),
        ("The quick brown fox jumps over the lazy dog.", 10),
        ("def f(x: int) -> int:\n    return x ** 2\n", 16),
        ('{"city":"Paris","days":3}', 9),
        ("snake_case camelCase HTTP", 6),
        ("1234567", 3),
        ("人人生而自由", 6),
        ("동등하다 동등", 3),
        ("abcdefghij", 1),
        ("abcdefghijk", 2),
        ("люди людям", 4),
        ("-" * 64, 1),
        (" " * 100, 2),
        ("\r\n\r\n", 1),
        ("🚀🚀", 2),
        ("\ud83d", 1),
        ("\x00", 1),
    ],
)
def test_the_estimators_rule(text: str, tokens: int) -> None:
    assert ESTIMATOR.count(text) == tokens


def test_the_estimator_says_that_it_is_one() -> None:
    assert not ESTIMATOR.exact
    assert repr(ESTIMATOR) == "ESTIMATOR"


def test_names_of_special_tokens_are_ordinary_text() -> None:
    assert ESTIMATOR.count("<|endoftext|>") > 1


any_text: Final = st.text(st.characters(exclude_categories=()))  # with unpaired surrogates


@given(any_text, any_text)
def test_an_estimate_is_deterministic_between_one_and_a_token_a_character_and_grows_with_the_text(
    text: str, more: str
) -> None:
    tokens = ESTIMATOR.count(text)
    assert tokens == ESTIMATOR.count(text)
    assert bool(text) <= tokens <= len(text)
    assert ESTIMATOR.count(text + more) >= tokens  # only the last piece may change


@pytest.mark.parametrize("part", ["a", " ", "\n", " \n", "-", "<>", "---a", "é\u0301", "\t\x00", "A"])
def test_an_estimate_takes_linear_time_whatever_the_text(part: str) -> None:
    started = time.process_time()
    ESTIMATOR.count(part * 100_000)
    assert time.process_time() - started < 2  # takes 0.1 s; were it quadratic, minutes


# -- The parts of a request


def test_a_request_of_text_is_the_texts_the_frame_of_each_turn_and_the_opening_of_the_answer() -> None:
    request = Conversation(
        Protocol.MESSAGES,
        "m",
        (
            Turn(Role.SYSTEM, (Text("four"), Text("five5", CacheMark()))),
            Turn(Role.USER, (Text(""),)),
            Turn(Role.ASSISTANT, (Refusal("no"),)),
        ),
    )
    tokens = 4 + 5 + 2 + 3 * MESSAGE_TOKENS + REPLY_TOKENS
    assert count_conversation(request, ByCharacter()) == TokenCount(tokens, exact=True)
    assert count_conversation(request, ByCharacter(exact=False)) == TokenCount(tokens, exact=False)


def test_a_request_without_turns_is_counted_too() -> None:
    assert count_conversation(Conversation(Protocol.MESSAGES, "m", ()), ESTIMATOR).tokens == REPLY_TOKENS


def test_the_factor_is_for_texts_only_and_makes_the_count_an_estimate() -> None:
    image = Image(Source(SourceKind.URL, "https://example.org/cat.png"))
    assert beyond_frame(asking(Text("x" * 101), image), 1.5) == 152 + IMAGE_TOKENS
    assert not count_conversation(asking(Text("x")), ByCharacter(), vendor_factor=1.5).exact


@pytest.mark.parametrize("factor", [0.0, -1.0, 101.0, float("inf"), float("nan")])
def test_a_factor_without_sense_is_the_embedders_error(factor: float) -> None:
    with pytest.raises(LocalError, match="vendor_factor"):
        count_conversation(asking(), ESTIMATOR, vendor_factor=factor)


def test_a_call_is_its_name_and_arguments_in_a_frame_of_its_own() -> None:
    call = ToolCall("toolu_1", ToolRef("read", "fs"), '{"a":1}')
    assert of_block(call) == MESSAGE_TOKENS + len("read") + len("fs") + len('{"a":1}')
    assert of_block(ToolCall("toolu_1", ToolRef("now"), "")) == MESSAGE_TOKENS + len("now")


def test_a_result_is_all_that_it_holds_in_a_frame_of_its_own() -> None:
    image = Image(in_base64(PNG))
    assert of_block(ToolResult("toolu_1", (Text("abc"), image))) == MESSAGE_TOKENS + 3 + 1_067
    assert of_block(ToolResult("toolu_1", ())) == MESSAGE_TOKENS


def test_reasoning_is_its_words_or_where_they_are_hidden_a_share_of_their_cipher() -> None:
    sealed = Signature(Protocol.MESSAGES, "x" * 161)
    assert of_block(Reasoning(("abc", "de"), sealed)) == 5
    assert of_block(Reasoning((), sealed)) == 31
    assert of_block(Reasoning(("",), sealed)) == 31
    assert of_block(Reasoning(())) == 0


def test_what_only_one_protocol_knows_is_its_raw_text() -> None:
    raw = b'{"type":"server_tool_use"}'
    assert of_block(Opaque(Protocol.MESSAGES, "server_tool_use", raw)) == len(raw)
    assert of_block(Opaque(Protocol.MESSAGES, "broken", b"\xff")) == 1


@pytest.mark.parametrize(("form", "tokens"), [("wav", 10), ("mp3", 30), ("", 30)])
def test_audio_is_ten_tokens_a_second(form: str, tokens: int) -> None:
    assert of_block(Audio(base64.b64encode(bytes(48_000)).decode(), form)) == tokens


def test_tools_are_name_description_and_schema_a_frame_each_and_instructions_once() -> None:
    tools = (
        FunctionTool(ToolRef("read"), "Reads.", b'{"type":"object"}'),
        FunctionTool(ToolRef("now", "clock")),
        CustomTool(ToolRef("sql"), "Asks.", b'{"type":"text"}'),
        HostedTool(Protocol.MESSAGES, "web_search_20250305", b'{"name":"web_search"}'),
    )
    words = 'readReads.{"type":"object"}nowclocksqlAsks.{"type":"text"}{"name":"web_search"}'
    request = asking(tools=tools)
    assert beyond_frame(request) == len(words) + TOOLS_TOKENS + 4 * TOOL_TOKENS
    assert not count_conversation(request, ByCharacter()).exact


def test_the_schema_of_the_answer_is_shown_to_the_model() -> None:
    output = OutputFormat(OutputKind.JSON_SCHEMA, "n", b"{}", description="abc")
    assert beyond_frame(asking(output=output)) == 1 + 2 + 3
    assert not count_conversation(asking(output=output), ByCharacter()).exact
    assert count_conversation(asking(output=OutputFormat(OutputKind.JSON_OBJECT)), ByCharacter()).exact


# -- Documents

PAGE_OBJECTS: Final = b"%PDF-1.4 /Type /Pages /Kids [] <</Type /Page>> <</Type/Page/Parent 1 0 R>> /Type /PageLabel"


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        (Source(SourceKind.TEXT, "abc", "text/plain"), 3),
        (in_base64("äbc".encode(), "text/plain"), 3),
        (Source(SourceKind.URL, "https://example.org/a.pdf"), PAGE_TOKENS),
        (Source(SourceKind.FILE_ID, "file_1"), PAGE_TOKENS),
        (in_base64(PAGE_OBJECTS, "application/pdf"), 2 * PAGE_TOKENS),
        (in_base64(b"%PDF-1.7", "application/pdf"), PAGE_TOKENS),
        (in_base64(bytes(3 * 65_536), "application/pdf"), 3 * PAGE_TOKENS),
        (in_base64(b"/Type /Page " * 1_000, "application/pdf"), 600 * PAGE_TOKENS),
        (Source(SourceKind.BASE64, "", None), PAGE_TOKENS),
        (Source(SourceKind.BASE64, "é" * 100_000, None), 2 * PAGE_TOKENS),
    ],
)
def test_documents(source: Source, tokens: int) -> None:
    """Text is counted; a PDF is its page objects, or its size by 64 KiB where they are compressed."""
    assert of_block(Document(source)) == tokens
    assert of_block(Document(source, "title")) == tokens + len("title")


def test_no_document_is_more_than_the_most_pages_however_long() -> None:
    assert of_block(Document(Source(SourceKind.BASE64, "é" * 601 * 87_382))) == 600 * PAGE_TOKENS


# -- Images


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II5B", width, height, 8, 6, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH3B", width, height, 0, 0, 0)


def jpeg(width: int, height: int, before: bytes = b"", frame: int = 0xC0) -> bytes:
    app0 = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    return b"\xff\xd8" + app0 + before + struct.pack(">BBHBHHB", 0xFF, frame, 17, 8, height, width, 3)


def webp(chunk: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + chunk + struct.pack("<I", len(body)) + body


def lossy(width: int, height: int) -> bytes:
    scaled = 1 << 14  # the two upper bits are a scale for showing it
    return webp(b"VP8 ", b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", width | scaled, height | scaled))


def lossless(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", width - 1 | (height - 1) << 14 | 1 << 28) + b"\x00")


def extended(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", b"\x10\x00\x00\x00" + size)


PNG: Final = png(1_000, 800)
FORMATS: Final[list[Callable[[int, int], bytes]]] = [png, gif, jpeg, lossy, lossless, extended]


def of_image(data: bytes) -> int:
    return of_block(Image(in_base64(data)))


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (1_000, 800, 1_067),  # rounded up
        (300, 5, 2),
        (1, 1, 1),
        (1_000, 1_200, IMAGE_TOKENS),
        (16_000, 16_000, IMAGE_TOKENS),
    ],
)
def test_an_image_is_width_times_height_by_750_up_to_a_cap(
    make: Callable[[int, int], bytes], width: int, height: int, tokens: int
) -> None:
    assert of_image(make(width, height)) == tokens


def test_an_extended_webp_may_be_wider_than_16_bits_can_say() -> None:
    assert of_image(extended(70_000, 3)) == of_image(extended(3, 70_000)) == 280


def test_a_real_image_of_each_common_kind() -> None:
    """A red dot of one pixel, as encoders write it."""
    written = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    blank = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    for text in (written, blank):
        assert of_block(Image(Source(SourceKind.BASE64, text))) == 1


@pytest.mark.parametrize("frame", [0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCF])
def test_a_jpegs_frame_of_any_kind_is_found_behind_tables_and_fill_bytes(frame: int) -> None:
    tables = (
        b"\xff\xc4\x00\x04\x00\x00\xff\xcc\x00\x02\xff\xff\xff\xdb\x00\x03\x00"
        + b"\xff\xe1"
        + struct.pack(">H", 60_000)
    )
    assert of_image(jpeg(300, 5, tables + bytes(59_998), frame)) == 2


UNKNOWN: Final = {
    "nothing": b"",
    "no image": b"BM" + bytes(64),
    "no width": png(0, 100),
    "no height": jpeg(100, 0),
    "not a segment": b"\xff\xd8\xff\xe0\x00\x02" + bytes(64),
    "no frame": b"\xff\xd8" + b"\xff\xe0\x00\x02" * 64,
    "frame too far": jpeg(300, 5, (b"\xff\xe1\xff\xff" + bytes(65_533)) * 4),
    "only fill bytes": b"\xff\xd8" + b"\xff" * 64,
    "another kind of chunk": webp(b"ALPH", bytes(64)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_image_of_unknown_size_is_the_most(name: str) -> None:
    assert of_image(UNKNOWN[name]) == IMAGE_TOKENS


@pytest.mark.parametrize("kind", [SourceKind.URL, SourceKind.FILE_ID, SourceKind.TEXT])
def test_an_image_that_is_elsewhere_is_the_most(kind: SourceKind) -> None:
    assert of_block(Image(Source(kind, base64.b64encode(PNG).decode()))) == IMAGE_TOKENS


@pytest.mark.parametrize("make", FORMATS)
def test_an_image_cut_off_anywhere_is_the_most_until_its_size_is_there(make: Callable[[int, int], bytes]) -> None:
    data = make(300, 5)
    counts = [of_image(data[:end]) for end in range(len(data) + 1)]
    assert set(counts) == {2, IMAGE_TOKENS}
    assert counts == sorted(counts, reverse=True)


def test_base64_may_be_broken_into_lines_and_cut_off_anywhere() -> None:
    text = base64.encodebytes(PNG + bytes(90)).decode()
    for end in range(40, len(text)):
        assert of_block(Image(Source(SourceKind.BASE64, text[:end]))) == 1_067


# -- Whatever comes in

raw: Final = st.binary(max_size=40)
sources: Final = st.builds(
    Source,
    st.sampled_from(SourceKind),
    any_text
    | raw.map(lambda data: base64.b64encode(data).decode())
    | st.tuples(st.sampled_from(FORMATS), raw).map(
        lambda drawn: base64.b64encode(drawn[0](7, 7)[:-10] + drawn[1]).decode()
    ),
    st.sampled_from([None, "text/plain", "application/pdf", ""]),
)
refs: Final = st.builds(ToolRef, any_text, st.none() | any_text)
results: Final = st.builds(Text, any_text) | st.builds(Image, sources) | st.builds(Document, sources, any_text)
blocks: Final[st.SearchStrategy[Block]] = st.one_of(
    results,
    st.builds(Audio, any_text, any_text),
    st.builds(
        Reasoning,
        st.lists(any_text, max_size=2).map(tuple),
        st.none() | st.builds(Signature, st.sampled_from(Protocol), any_text),
    ),
    st.builds(Refusal, any_text),
    st.builds(ToolCall, any_text, refs, any_text),
    st.builds(ToolResult, any_text, st.lists(results, max_size=2).map(tuple)),
    st.builds(Opaque, st.sampled_from(Protocol), any_text, raw),
)
tools_drawn: Final[st.SearchStrategy[Tool]] = st.one_of(
    st.builds(FunctionTool, refs, st.none() | any_text, st.none() | raw),
    st.builds(CustomTool, refs, st.none() | any_text, st.none() | raw),
    st.builds(HostedTool, st.sampled_from(Protocol), any_text, raw),
)
conversations: Final = st.builds(
    Conversation,
    st.sampled_from(Protocol),
    any_text,
    st.lists(
        st.builds(Turn, st.sampled_from(Role), st.lists(blocks, max_size=3).map(tuple)), min_size=1, max_size=3
    ).map(tuple),
    tools=st.lists(tools_drawn, max_size=2).map(tuple),
    output=st.builds(OutputFormat, st.sampled_from(OutputKind), st.none() | any_text, st.none() | raw),
)


@given(conversations, blocks)
def test_any_conversation_is_counted_and_more_of_it_is_never_less(request: Conversation, block: Block) -> None:
    count = count_conversation(request, ESTIMATOR)
    assert count.tokens >= REPLY_TOKENS + MESSAGE_TOKENS
    assert not count.exact
    longer = evolve(request, turns=(*request.turns, Turn(Role.USER, (block,))))
    assert count_conversation(longer, ESTIMATOR).tokens >= count.tokens + MESSAGE_TOKENS
    assert count_conversation(request, ESTIMATOR, vendor_factor=2.0).tokens >= count.tokens


def test_the_examples_of_anthropics_guide_are_met_within_a_tenth_or_a_few_tokens() -> None:
    """Their counts are 14 and 403 ("Token counting" in Anthropic's documentation)."""
    bare = Conversation(
        Protocol.MESSAGES,
        "claude-opus-4-6",
        (Turn(Role.SYSTEM, (Text("You are a scientist"),)), Turn(Role.USER, (Text("Hello, Claude"),))),
    )
    assert count_conversation(bare, ESTIMATOR, vendor_factor=1.15).tokens == pytest.approx(14, abs=7)
    where = {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}
    schema = msgspec.json.encode({"type": "object", "properties": {"location": where}, "required": ["location"]})
    tool = FunctionTool(ToolRef("get_weather"), "Get the current weather in a given location", schema)
    request = asking(Text("What's the weather like in San Francisco?"), tools=(tool,))
    assert count_conversation(request, ESTIMATOR, vendor_factor=1.15).tokens == pytest.approx(403, rel=0.1)


def test_the_answer_of_the_endpoint() -> None:
    assert encode_count(TokenCount(2_095, exact=False)) == b'{"input_tokens":2095}'
