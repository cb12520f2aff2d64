"""A request to a model in no protocol's shape: what the three protocols' requests are decoded to and encoded from.

It is only made when a request is translated; between two sides that speak the same protocol the request passes as text.
A `Conversation` is plain, immutable data. Turns keep the order of the sender's document, system and developer turns
included; neighbours may have the same role, and an encoder merges what its protocol wants merged. What a protocol gives
as raw JSON (schemas, arguments) stays raw JSON.

`at` on a part is its JSON path in the sender's document, for the fidelity ledger. It does not count for equality.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from capi_core.protocols.kinds import Protocol

__all__ = [
    "Audio",
    "Block",
    "CacheMark",
    "Conversation",
    "CustomTool",
    "Document",
    "Effort",
    "FunctionTool",
    "HostedTool",
    "Image",
    "Opaque",
    "OutputFormat",
    "OutputKind",
    "Reasoning",
    "ReasoningRequest",
    "Refusal",
    "ResultBlock",
    "Role",
    "Signature",
    "Source",
    "SourceKind",
    "Text",
    "ThinkingMode",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "ToolKind",
    "ToolMode",
    "ToolRef",
    "ToolResult",
    "Turn",
]


class Role(enum.Enum):
    """Who speaks. Results of tools are USER turns, as in Messages."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"


class SourceKind(enum.Enum):
    """How a file's content is given."""

    URL = "url"
    BASE64 = "base64"
    FILE_ID = "file_id"
    """An id of the sender's own provider: means nothing to another one."""
    TEXT = "text"


class ToolKind(enum.Enum):
    """FUNCTION: arguments are a JSON object. CUSTOM: the input is free text, perhaps held to a grammar."""

    FUNCTION = "function"
    CUSTOM = "custom"


class ToolMode(enum.Enum):
    """Whether the model may call a tool, must not, or must."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ThinkingMode(enum.Enum):
    """Whether the model is to reason. DEFAULT: the sender said nothing about it."""

    DEFAULT = "default"
    OFF = "off"
    ENABLED = "enabled"
    """With a budget in tokens, if `budget_tokens` is there."""
    ADAPTIVE = "adaptive"


class Effort(enum.Enum):
    """How hard the model is to reason, weakest first."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class OutputKind(enum.Enum):
    """What the answer's text must be."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@frozen
class CacheMark:
    """A point up to which the provider shall cache the prompt. `ttl` as the sender wrote it (`5m`, `1h`), or `None`."""

    ttl: str | None = None


@frozen
class ToolRef:
    """A tool's name; `namespace` is only known to Responses."""

    name: str
    namespace: str | None = None


@frozen
class Source:
    """The content of an image or a document. `value`: the URL, the base64 text, the id or the text."""

    kind: SourceKind
    value: str = field(repr=False)
    media_type: str | None = None


@frozen
class Signature:
    """What a provider needs to take its own reasoning back: Messages' `signature` or `data`, Responses'
    `encrypted_content`, Copilot's `reasoning_opaque`. Means nothing to a provider of another `origin`."""

    origin: Protocol
    value: str = field(repr=False)


@frozen
class Text:
    text: str = field(repr=False)
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Image:
    """`detail`: `auto`, `low`, `high` or `original`; `None` when the sender did not say."""

    source: Source
    detail: str | None = None
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Document:
    """A file for the model to read. `title` is its name."""

    source: Source
    title: str | None = None
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Audio:
    """`data` is base64; `format` as OpenAI names it: `wav`, `mp3`."""

    data: str = field(repr=False)
    format: str
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Reasoning:
    """What the model thought, to be given back to it. `parts`: the texts of its summary or the one text of its
    thinking; empty when the provider only gave the signature (`redacted_thinking`, a reasoning item without
    summary)."""

    parts: tuple[str, ...] = field(repr=False)
    signature: Signature | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Refusal:
    """The model's words where it declined to answer."""

    text: str = field(repr=False)
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class ToolCall:
    """`arguments` is JSON text as the model wrote it (empty means `{}`), or the free text for a custom tool."""

    id: str
    tool: ToolRef
    arguments: str = field(repr=False)
    kind: ToolKind = ToolKind.FUNCTION
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


ResultBlock = Text | Image | Document


@frozen
class ToolResult:
    """What the tool that was called by `call_id` gave back."""

    call_id: str
    content: tuple[ResultBlock, ...]
    is_error: bool = False
    kind: ToolKind = ToolKind.FUNCTION
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class Opaque:
    """A part that only its own protocol knows (server tools and their results, item references). Always dropped by an
    encoder of another protocol."""

    protocol: Protocol
    type: str
    raw: bytes = field(repr=False)
    at: str = field(default="", eq=False, kw_only=True)


Block = Text | Image | Document | Audio | Reasoning | Refusal | ToolCall | ToolResult | Opaque


@frozen
class Turn:
    """What one side said. Results of tools are in USER turns; reasoning, refusals and calls in ASSISTANT turns."""

    role: Role
    blocks: tuple[Block, ...]
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class FunctionTool:
    """`parameters`: the JSON Schema of the arguments, raw; `None` when the sender gave none."""

    ref: ToolRef
    description: str | None = None
    parameters: bytes | None = field(default=None, repr=False)
    strict: bool | None = None
    cache: CacheMark | None = None
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class CustomTool:
    """A tool that takes free text. `format`: OpenAI's grammar object in the shape of Responses, raw."""

    ref: ToolRef
    description: str | None = None
    format: bytes | None = field(default=None, repr=False)
    at: str = field(default="", eq=False, kw_only=True)


@frozen
class HostedTool:
    """A tool that the provider runs itself. `type` as its protocol names it; `web_search`: it searches the web, which
    all three protocols know in some form."""

    protocol: Protocol
    type: str
    raw: bytes = field(repr=False)
    web_search: bool = False
    at: str = field(default="", eq=False, kw_only=True)


Tool = FunctionTool | CustomTool | HostedTool


@frozen
class ToolChoice:
    """`only`: the model may call no other tool; empty means any. "Must call X" is REQUIRED with `only=(X,)`.

    `parallel`: several calls in one answer; `None` when the sender did not say.
    """

    mode: ToolMode = ToolMode.AUTO
    only: tuple[ToolRef, ...] = ()
    parallel: bool | None = None


@frozen
class ReasoningRequest:
    """`summary`: how the reasoning is to be told (`auto`, `concise`, `detailed`, `omitted`); `encrypted`: the sender
    asks for the opaque form, to give it back later."""

    mode: ThinkingMode = ThinkingMode.DEFAULT
    effort: Effort | None = None
    budget_tokens: int | None = None
    summary: str | None = None
    encrypted: bool = False


@frozen
class OutputFormat:
    """`schema`: raw JSON Schema, with JSON_SCHEMA only."""

    kind: OutputKind = OutputKind.TEXT
    name: str | None = None
    schema: bytes | None = field(default=None, repr=False)
    strict: bool | None = None
    description: str | None = None


@frozen
class Conversation:
    """A whole request. `None` and empty: the sender did not say.

    `user` identifies the sender's end user, `cache_key` the prompts that share a cache. `service_tier` is in the words
    of `protocol`, the sender's protocol. `metadata`: raw JSON object of OpenAI's request.
    """

    protocol: Protocol
    model: str
    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    reasoning: ReasoningRequest = ReasoningRequest()
    output: OutputFormat = OutputFormat()
    verbosity: str | None = None
    user: str | None = None
    cache_key: str | None = None
    service_tier: str | None = None
    metadata: bytes | None = field(default=None, repr=False)
