"""Pins the public names of the core, so that a change of what embedders use is deliberate.

When this fails on purpose, take the entries that the failure prints into the table, and say so in CHANGELOG.md.
"""

import importlib
import pkgutil
import textwrap
from collections.abc import Mapping
from typing import Final

import pytest

import capi_core

# Module: the names in its `__all__`, sorted.
PUBLIC: Final[Mapping[str, str]] = {
    "capi_core.aliases": """
        Alias Catalog ListedModel MayCall ModelRefusedError OutOfScopeError Resolution UpstreamModels anybody
    """,
    "capi_core.audit": """
        Action AuditEntry Fault GENESIS Link MAX_LINE_BYTES START Verdict day_of encode_line file_name line_hash
        link_of repair_tail verify
    """,
    "capi_core.commands": """
        Command EndResponse ExchangeLimits Failure Operation Outcome Record SendBody SendRequest StartResponse
    """,
    "capi_core.config": """
        Config ConfigError ConfigProblem FeaturesConfig LimitsConfig ModelConfig RetentionConfig UpstreamConfig
        is_loopback_host json_schema parse
    """,
    "capi_core.credentials": """
        ADMIN_REQUIRED Credential CredentialForm FOREIGN_TOKEN INVALID_API_KEY decide find_credential
    """,
    "capi_core.errors": "CoreError LocalError Problem ProtocolError",
    "capi_core.exchange": """
        Command EndResponse Exchange ExchangeLimits Failure Operation Outcome Record SendBody SendRequest
        StartResponse State
    """,
    "capi_core.framing": "FramingError FramingFault FramingLimits FramingState Head RequestFraming",
    "capi_core.headers": "Headers client_response_headers find upstream_request_headers",
    "capi_core.keys": """
        Budget BudgetPeriod BudgetUnit DEBUG_MAX_MS FieldProblem KEY_PREFIX KeyDraft KeyEdit KeyRecord KeyState
        Tier UNCHANGED Unchanged effective_rpm format_key hash_prefix is_well_formed key_hash mask_keys may_call
        shown_hash validate
    """,
    "capi_core.limits": "Buckets Granted RetryAfter TokenBucket problem_rate_limited",
    "capi_core.members": "JSONObject MemberRewriter MembersError decode",
    "capi_core.protocols.chat.passthrough": """
        ChatRequest ChatStream StreamState decode_request encode_request encode_stream_error
    """,
    "capi_core.protocols.embeddings": "EmbeddingsRequest decode_request encode_request",
    "capi_core.protocols.openai": """
        Answer decode_answer decode_string encode_error encode_model encode_models json_string read_request
        required_model says_error
    """,
    "capi_core.request_head": "CRLF FIELD FramingError FramingFault FramingLimits Head HeadReader TOKEN",
    "capi_core.sse": "DecoderState Event KEEP_ALIVE SSEDecoder SSEError comment encode",
    "capi_core.usage": "Usage UsageSource openai_usage",
}


def exports(module: str) -> list[str]:
    """A module's `__all__`, sorted; empty for a package that exports nothing itself."""
    return sorted(getattr(importlib.import_module(module), "__all__", []))


def core_modules() -> list[str]:
    return ["capi_core", *(info.name for info in pkgutil.walk_packages(capi_core.__path__, "capi_core."))]


def entry(module: str, names: list[str]) -> str:
    """The table's entry for a module, as it stands in the source."""
    lines = textwrap.wrap(" ".join(names), 104)
    if len(lines) == 1 and len(module) + len(lines[0]) < 100:
        return f'    "{module}": "{lines[0]}",'
    return "\n".join([f'    "{module}": """', *(f"        {line}" for line in lines), '    """,'])


def test_the_public_names_are_as_pinned() -> None:
    pinned = {module: names.split() for module, names in PUBLIC.items()}
    actual = {module: names for module in core_modules() if (names := exports(module))}
    changed = [entry(module, names) for module, names in actual.items() if pinned.get(module) != names]
    gone = sorted(pinned.keys() - actual.keys())
    assert actual == pinned, "\n".join(["the table should hold:", *changed, *(f"and no longer {m}" for m in gone)])


@pytest.mark.parametrize("module", core_modules())
def test_each_module_has_what_it_exports(module: str) -> None:
    loaded = importlib.import_module(module)
    is_package = hasattr(loaded, "__path__")
    assert is_package or hasattr(loaded, "__all__"), "every module says what it exports"
    assert [name for name in exports(module) if not hasattr(loaded, name)] == []
