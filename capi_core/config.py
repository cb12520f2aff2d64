"""The configuration: its schema, its validation, and what it means for routing.

`parse` takes the text of `config.json` and gives a `Config`, or a `ConfigError` that lists every problem with its
path. Members that this version does not know are kept out of the way and reported as warnings, so that a file written
by a newer version still starts an older one. Secrets never sit in the file: an upstream names the environment variable
or the file that holds its key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from attrs import frozen
from typing_extensions import override

from capi_core.aliases import Alias, Catalog, Fallback, UpstreamModels
from capi_core.errors import CoreError
from capi_core.fanout import MAX_DISTINCT, FanoutThresholds
from capi_core.github.headers import RESERVED_NAMES
from capi_core.members import JSONObject, MembersError
from capi_core.prices import PriceConfig
from capi_core.protocols.kinds import Protocol
from capi_core.routing import UpstreamTraits
from capi_core.target import ReasoningMember

__all__ = [
    "Config",
    "ConfigError",
    "ConfigProblem",
    "FallbackConfig",
    "FanoutConfig",
    "FeaturesConfig",
    "LimitsConfig",
    "ModelConfig",
    "RetentionConfig",
    "UpstreamConfig",
    "is_loopback_host",
    "json_schema",
    "parse",
]

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400, description="seconds")]
_Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1024**3, description="bytes")]
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Distinct = Annotated[int, msgspec.Meta(ge=1, le=MAX_DISTINCT)]
# `(?!\n)`, because Python's `$` also matches before a newline at the end.
_ModelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,127}(?!\n)$")]
_HeaderValue = Annotated[str, msgspec.Meta(pattern=r"^[!-~]([ -~]{0,254}[!-~])?(?!\n)$")]
_PriceName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,127}\*?(?!\n)$")]
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_UpstreamName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}(?!\n)$")]


class FallbackConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Another model that can take an alias's place."""

    upstream: _ModelName
    """The model's name at its upstream."""
    via: _UpstreamName | None = None
    """Which upstream serves it; only needed when several do."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An alias: the operator's own name for an upstream's model."""

    upstream: _ModelName
    """The model's name at the upstream."""
    enabled: bool = True
    via: _UpstreamName | None = None
    """Which upstream serves it; only needed when several do."""
    allowed_keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("*",)
    """Ids of the keys that may use it; `["*"]`: every key."""
    fallbacks: Annotated[tuple[FallbackConfig, ...], msgspec.Meta(max_length=8)] = ()
    """What is asked, in this order, when that upstream fails before the client has anything of an answer."""

    def alias(self, name: str) -> Alias:
        """What routing makes of it."""
        spare = tuple(Fallback(other.upstream, other.via) for other in self.fallbacks)
        return Alias(name, self.upstream, self.enabled, self.via, self.allowed_keys, spare)


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model server behind the gateway."""

    kind: Literal["openai", "anthropic", "copilot", "demo"]
    """`openai`: any server that speaks OpenAI's API. `anthropic`: any that speaks Anthropic's Messages. `copilot`:
    GitHub Copilot, by the seats linked with `capi auth`. `demo`: the simulated provider that capi brings along."""
    base_url: str | None = None
    """Not for `demo` and `copilot`: the URL up to and including `/v1`."""
    protocols: Annotated[tuple[Protocol, ...], msgspec.Meta(min_length=1)] | None = None
    """What it speaks, where its model list does not say (`supported_endpoints`). Unset: `["chat"]` for `openai`,
    `["messages"]` for `anthropic`, all three for `demo`."""
    strict_fidelity: bool = False
    """Refuse a request that would lose something when it is translated into another protocol."""
    websocket: bool = False
    """It takes Responses over WebSocket too: clients that come by WebSocket are served over one to it."""
    count_tokens: bool | None = None
    """It has POST /messages/count_tokens. Unset: yes for `anthropic` and `demo`; else tokens are counted here."""
    reasoning_member: ReasoningMember = ReasoningMember.NONE
    """Where a Chat upstream takes a model's earlier reasoning back; `none` leaves it out."""
    max_tokens_member: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """How a Chat upstream calls the limit on an answer's tokens. Older servers only know `max_tokens`."""
    image_urls: bool = True
    """It takes images by URL. Off, a translated request that has one is refused."""
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    """How many requests may be under way at once; the others wait, each key in its turn. Unset: no cap."""
    on_client_gone: Literal["cancel", "drain_to_usage"] = "cancel"
    """What becomes of a running answer when its client leaves. `drain_to_usage`: it is read on, for nobody, so that the
    upstream tells what it cost; its slot stays taken meanwhile."""
    drain_max_s: _Seconds = 30.0
    """How long at most, with `drain_to_usage`."""
    editor_version: _HeaderValue | None = None
    """`copilot`: the header `editor-version`, `NAME/VERSION`. Unset: capi's own."""
    integration_id: _HeaderValue = "vscode-chat"
    """`copilot`: the header `copilot-integration-id`; Copilot only takes those that it knows."""
    extra_headers: dict[str, _HeaderValue] = {}
    """`copilot`: further headers of each request to it. None that says who asks or how a request is billed."""
    betas: tuple[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,100}(?!\n)$")], ...] = ()
    """`anthropic-beta` values that go with each Messages request, besides the client's own."""
    api_key_env: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(?!\n)$")] | None = None
    """The environment variable that holds the upstream's key."""
    api_key_file: str | None = None
    """A file (0600) that holds the upstream's key."""
    allow_http: bool = False
    """Accept a plain http:// base_url that is not on the loopback interface: the key then travels in clear text."""
    models: list[_ModelName] | None = None
    """What the upstream serves, when it has no model list of its own to ask."""
    ask_usage: bool = True
    """Ask for token usage on Chat streams (`stream_options`). Turn off for servers that refuse the member."""
    connect_timeout_s: _Seconds = 10.0
    head_timeout_s: _Seconds = 300.0
    """From the request to the first byte of the answer; long, because a non-streaming answer comes whole."""
    idle_timeout_s: _Seconds = 300.0
    """Between two pieces of an answer."""
    total_timeout_s: _Seconds = 3600.0

    @property
    def traits(self) -> UpstreamTraits:
        """What routing asks of it."""
        counts = self.kind in {"anthropic", "demo"} if self.count_tokens is None else self.count_tokens
        return UpstreamTraits(
            protocols=self.protocols or _SPOKEN[self.kind],
            count_tokens=counts,
            strict_fidelity=self.strict_fidelity,
            ask_usage=self.ask_usage,
            reasoning_member=self.reasoning_member,
            max_tokens_member=self.max_tokens_member,
            image_urls=self.image_urls,
            betas=self.betas,
            copilot=self.kind == "copilot",
        )


class FanoutConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How widely a GitHub identity may be used within one hour before there is a warning. Nothing is refused."""

    owners: _Distinct = 1
    """Different owners of keys; keys without an owner count as one more. An identity that is shared on purpose may have
    any number."""
    keys: _Distinct = 5
    """Different keys."""
    addresses: _Distinct = 5
    """Different client addresses; an IPv6 one counts by its /64."""

    def thresholds(self) -> FanoutThresholds:
        """What the meter makes of it."""
        return FanoutThresholds(owners=self.owners, keys=self.keys, addresses=self.addresses)


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what clients and upstreams can make the gateway hold or wait for."""

    max_body_bytes: _Bytes = 32 * 1024 * 1024
    max_event_bytes: _Bytes = 4 * 1024 * 1024
    max_answer_bytes: _Bytes = 64 * 1024 * 1024
    max_connections: _Count = 4096
    max_connections_per_address: _Count = 1024
    head_timeout_s: _Seconds = 10.0
    """From a request's first byte to the end of its head."""
    body_timeout_s: _Seconds = 30.0
    """Grace for a request body, on top of what `min_body_rate` allows."""
    min_body_rate: Annotated[int, msgspec.Meta(ge=1, description="bytes per second")] = 4096
    idle_connection_s: _Seconds = 75.0
    write_stall_s: _Seconds = 30.0
    """A client that takes no byte for this long is dropped."""
    max_in_flight_per_identity: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """How many requests may be under way at once on one Copilot identity, unless it has a cap of its own."""
    max_queued_per_identity: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 64
    """How many requests may wait for an upstream with a cap; more are refused with 429."""
    queue_timeout_s: _Seconds = 60.0
    """How long a request may wait for a slot."""
    fanout: FanoutConfig = FanoutConfig()
    """When the use of an identity is warned about; see "Fan-out"."""
    keep_alive_s: _Seconds = 15.0
    """Silence after which a waiting stream gets a comment."""
    requests_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300
    """Model requests a minute of each key that has no rate of its own."""
    grace_s: _Seconds = 30.0
    """How long running requests may finish after SIGTERM."""


class FeaturesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is switched on."""

    auth: bool = True
    """Callers need a key. Off, capi only listens where `--no-auth` could."""
    telemetry: bool = True
    """Each request to a model leaves a row: who, which model, how long, how many tokens, what it cost; no words."""


class RetentionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long records are kept."""

    audit_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 365
    events_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 90
    """How long the rows of requests are kept, and their sums."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `upstreams` and `models` keep the file's order, which is the order of preference."""

    version: Literal[1] = 1
    strict: bool = False
    """Only aliases can be called; every other name is refused."""
    default_model: _ModelName | None = None
    """The alias that takes the place of an unknown name."""
    models: dict[_ModelName, ModelConfig] = {}
    upstreams: dict[_UpstreamName, UpstreamConfig] = {}
    limits: LimitsConfig = LimitsConfig()
    features: FeaturesConfig = FeaturesConfig()
    retention: RetentionConfig = RetentionConfig()
    prices: dict[_PriceName, PriceConfig] = {}
    """In US dollars for a million tokens, by the upstream's name of a model, or its beginning and `*`; before what capi
    knows of prices by itself."""

    def catalog(self, models: Mapping[str, Mapping[str, bytes] | None]) -> Catalog:
        """The routing snapshot. `models`: per upstream the model list it gave, raw record by id; `None` if none."""
        return Catalog(
            aliases={name: model.alias(name) for name, model in self.models.items()},
            upstreams=tuple(UpstreamModels(name, models.get(name)) for name in self.upstreams),
            strict=self.strict,
            default_model=self.default_model,
        )


@frozen
class ConfigProblem:
    """One thing wrong with a configuration. `path` is like `$.upstreams.openai.base_url`."""

    path: str
    message: str

    @override
    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(CoreError):
    """The configuration cannot be used. `problems` is never empty."""

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def parse(text: bytes) -> tuple[Config, tuple[ConfigProblem, ...]]:
    """Validates the text of `config.json`; returns the configuration and its warnings. Raises `ConfigError`.

    Each section, model and upstream is judged on its own, so that one run tells everything that is wrong.
    """
    sections = _members(text, "$")
    problems: list[ConfigProblem] = []
    for name in sections.keys() & _SECTIONS.keys():
        problems += _section_problems(name, sections[name])
    if problems:
        raise ConfigError(tuple(sorted(problems, key=str)))
    config = msgspec.json.decode(text, type=Config)
    problems = [*_model_rules(config), *_seat_rules(config)]
    for name, upstream in config.upstreams.items():
        problems += _upstream_rules(f"$.upstreams.{name}", upstream)
    if problems:
        raise ConfigError(tuple(problems))
    return config, tuple(_unknown_members(sections))


def json_schema() -> bytes:
    """JSON Schema (2020-12) of the file, indented."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Config)), indent=2)


def is_loopback_host(host: str) -> bool:
    """Whether a host as it stands in a URL or a bind option is on the loopback interface.

    Names and look-alikes are judged by their text, never by a look-up: `127.0.0.1.example.com` is not loopback, nor
    is `127.0.0.999`, nor `127.1`.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


# The whole of it: `urlsplit` takes `[::1].example.com` and `example.com[::1]` for the host `::1`.
_HOST_AND_PORT: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
# Clients take such a host for an address, and each reads the odd forms its own way: `127.1`, `0x7f.1`, `0177.0.0.1`.
_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")

_SPOKEN: Final[Mapping[str, tuple[Protocol, ...]]] = {
    "openai": (Protocol.CHAT,),
    "anthropic": (Protocol.MESSAGES,),
    "copilot": (Protocol.CHAT,),
    "demo": tuple(Protocol),
}
"""What each kind of upstream speaks when its configuration and its model list do not say."""

_RawMembers = dict[str, msgspec.Raw]
_SECTIONS: Final = {member.name: member.type for member in msgspec.structs.fields(Config)}
_PLAIN_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "limits": LimitsConfig,
    "features": FeaturesConfig,
    "retention": RetentionConfig,
}
_ENTRIES: Final[Mapping[str, tuple[type[ModelConfig | UpstreamConfig | PriceConfig], object]]] = {
    "prices": (PriceConfig, _PriceName),
    "models": (ModelConfig, _ModelName),
    "upstreams": (UpstreamConfig, _UpstreamName),
}


def _members(raw: bytes | msgspec.Raw, path: str) -> _RawMembers:
    try:
        members = msgspec.json.decode(raw, type=_RawMembers)
        JSONObject(bytes(raw))  # refuses a name that stands twice, of which msgspec keeps the last
    except (msgspec.DecodeError, MembersError, RecursionError, UnicodeError) as error:
        raise ConfigError((_problem(path, error),)) from error
    return members


def _section_problems(name: str, raw: msgspec.Raw) -> list[ConfigProblem]:
    path = f"$.{name}"
    if name not in _ENTRIES:
        return _decode_problems(raw, _SECTIONS[name], path)
    entry_type, name_type = _ENTRIES[name]
    try:
        entries = _members(raw, path)
    except ConfigError as error:
        return list(error.problems)
    problems = []
    for key, entry in entries.items():
        try:
            msgspec.convert(key, name_type)
        except msgspec.ValidationError as error:
            problems.append(ConfigProblem(f"{path}.{key}", f"this name cannot be used: {error}"))
        problems += _decode_problems(entry, entry_type, f"{path}.{key}")
    return problems


def _decode_problems(raw: msgspec.Raw, wanted: object, path: str) -> list[ConfigProblem]:
    try:
        msgspec.json.decode(raw, type=wanted)
        if bytes(raw).startswith(b"{"):
            _members(raw, path)
    except ConfigError as error:
        return list(error.problems)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        return [_problem(path, error)]
    return []


def _problem(path: str, error: Exception) -> ConfigProblem:
    """msgspec ends its messages with "- at `$.inner.path`": that path goes where ours is."""
    message, _, inner = str(error).partition(" - at `$")
    return ConfigProblem(path + inner.rstrip("`"), message)


def _seat_rules(config: Config) -> list[ConfigProblem]:
    seated = [name for name, upstream in config.upstreams.items() if upstream.kind == "copilot"]
    text = f"every identity is a seat of {seated[0]!r} already: one upstream of this kind is enough" if seated else ""
    return [ConfigProblem(f"$.upstreams.{name}.kind", text) for name in seated[1:]]


def _model_rules(config: Config) -> list[ConfigProblem]:
    problems = []
    for name, model in config.models.items():
        ways = {"via": model.via} | {f"fallbacks[{at}].via": spare.via for at, spare in enumerate(model.fallbacks)}
        for member, via in ways.items():
            if via is not None and via not in config.upstreams:
                problems.append(ConfigProblem(f"$.models.{name}.{member}", f"there is no upstream {via!r}"))
        leads = {"upstream": model.upstream}
        leads |= {f"fallbacks[{at}].upstream": spare.upstream for at, spare in enumerate(model.fallbacks)}
        for member, upstream in leads.items():
            target = config.models.get(upstream)
            if target is not None and target.upstream != upstream:
                text = f"{upstream!r} is itself an alias; name the upstream's model, {target.upstream!r}"
                problems.append(ConfigProblem(f"$.models.{name}.{member}", text))
        if "*" in model.allowed_keys and len(model.allowed_keys) > 1:
            problems.append(ConfigProblem(f"$.models.{name}.allowed_keys", "'*' is every key; leave the others out"))
    if config.default_model is not None and config.default_model not in config.models:
        problems.append(ConfigProblem("$.default_model", f"there is no alias {config.default_model!r}"))
    return problems


def _upstream_rules(path: str, upstream: UpstreamConfig) -> list[ConfigProblem]:
    problems = []
    if upstream.kind in {"demo", "copilot"} and upstream.base_url is not None:
        problems.append(ConfigProblem(f"{path}.base_url", f"{upstream.kind} has its own address; leave this out"))
    if upstream.kind == "copilot":
        problems += _copilot_rules(path, upstream)
    elif upstream.kind != "demo":
        message = _base_url_fault(upstream.base_url, allow_http=upstream.allow_http)
        if message is not None:
            problems.append(ConfigProblem(f"{path}.base_url", message))
    if upstream.api_key_env is not None and upstream.api_key_file is not None:
        problems.append(ConfigProblem(path, "name either api_key_env or api_key_file, not both"))
    return problems


def _copilot_rules(path: str, upstream: UpstreamConfig) -> list[ConfigProblem]:
    problems = []
    if upstream.api_key_env is not None or upstream.api_key_file is not None:
        text = "Copilot takes no api key: leave it out, and link a seat with `capi auth`"
        problems.append(ConfigProblem(path, text))
    for name in upstream.extra_headers:
        if name in RESERVED_NAMES or not _HEADER_NAME.fullmatch(name):
            text = f"{name!r} is not the name of a header, in small letters, that is free to be set"
            problems.append(ConfigProblem(f"{path}.extra_headers", text))
    return problems


def _base_url_fault(url: str | None, *, allow_http: bool) -> str | None:
    """What is wrong with a base URL; `None` when nothing is. A URL decides who gets the upstream's key."""
    if url is None:
        return "an upstream of this kind needs its URL, up to and including /v1"
    if not re.fullmatch(r"[!-~]+", url):
        return "a URL has only visible ASCII characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" in host or _ENDS_IN_A_NUMBER.fullmatch(host):
            ipaddress.ip_address(host)
    except ValueError as error:
        return f"this is not a URL: {error}"
    if "@" in parts.netloc or "?" in url or "#" in url or "\\" in url:
        return "a base URL has no user, password, query or fragment; a key belongs in api_key_env or api_key_file"
    if parts.scheme not in {"https", "http"} or not _HOST_AND_PORT.fullmatch(parts.netloc):
        return "this is not an http(s) URL with a host name or address"
    if port == 0:
        return "port 0 cannot be connected to"
    if parts.scheme == "http" and not allow_http and not is_loopback_host(host):
        return "http:// would send the key and the prompts in clear text; use https://, or set allow_http to true"
    return None


def _unknown_members(sections: _RawMembers) -> list[ConfigProblem]:
    unknown = [f"$.{name}" for name in sections.keys() - _SECTIONS.keys()]
    for section, struct in _PLAIN_SECTIONS.items():
        if section in sections:
            unknown += _unknown_in(f"$.{section}", sections[section], struct)
    for section, (entry_type, _) in _ENTRIES.items():
        for key, entry in _members(sections.get(section, b"{}"), "$").items():
            unknown += _unknown_in(f"$.{section}.{key}", entry, entry_type)
    return [
        ConfigProblem(path, "this version does not know this member; it is kept and ignored")
        for path in sorted(unknown)
    ]


def _unknown_in(path: str, raw: msgspec.Raw, struct: type[msgspec.Struct]) -> list[str]:
    known = {member.name: member.type for member in msgspec.structs.fields(struct)}
    unknown = []
    for name, value in _members(raw, path).items():
        inner = known.get(name)
        if name not in known:
            unknown.append(f"{path}.{name}")
        elif isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            unknown += _unknown_in(f"{path}.{name}", value, inner)
    return unknown
