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
        Alias Catalog Fallback ListedModel MayCall ModelRefusedError OutOfScopeError Resolution UpstreamModels
        anybody
    """,
    "capi_core.attempts": "Attempts Settings may_fall_back",
    "capi_core.audit": """
        Action AuditDraft AuditEntry Fault GENESIS Link MAX_LINE_BYTES START Verdict day_of encode_line
        file_name line_hash link_of repair_tail verify
    """,
    "capi_core.budgets": """
        Account AccountKind Amounts Balance BudgetWarning Claim Exceeded Ledger Reserved Settled WARN_PERCENT
    """,
    "capi_core.commands": """
        Command EndResponse ExchangeLimits Failure Operation Outcome Record SendBody SendRequest StartResponse
    """,
    "capi_core.config": """
        Config ConfigError ConfigProblem FallbackConfig FanoutConfig FeaturesConfig LimitsConfig ModelConfig
        RetentionConfig UpstreamConfig is_loopback_host json_schema parse
    """,
    "capi_core.conformance": "RULES Rule Severity StreamChecker Violation checker_for",
    "capi_core.conformance.chat": "ChatGrammar RULES",
    "capi_core.conformance.checker": "Grammar RULES SSE_RULES StreamChecker checker_for",
    "capi_core.conformance.messages": "MessagesGrammar RULES",
    "capi_core.conformance.responses": "RULES ResponsesGrammar",
    "capi_core.conformance.rules": "Json Rule Running Severity Violation integer items members text",
    "capi_core.conversation": """
        Audio Block CacheMark Conversation CustomTool Document Effort FunctionTool HostedTool Image Opaque
        OutputFormat OutputKind Reasoning ReasoningRequest Refusal ResultBlock Role Signature Source SourceKind
        Text ThinkingMode Tool ToolCall ToolChoice ToolKind ToolMode ToolRef ToolResult Turn
    """,
    "capi_core.conversation_key": "conversation_key",
    "capi_core.counting": "count_request estimate_request",
    "capi_core.credentials": """
        ADMIN_REQUIRED Credential CredentialForm FOREIGN_TOKEN INVALID_API_KEY decide find_credential
    """,
    "capi_core.delta_filters": "MAX_CUSTOM_INPUT StopFilter ToolNameFilter",
    "capi_core.deltas": """
        Annotated Annotation AnswerDelta BlockKind BlockStart BlockStop Delta End Failed Finish FinishReason
        PART_BREAK Ping Reply ReplyBlock ReplyText Signed Start UsageReport assemble
    """,
    "capi_core.errors": "CoreError LocalError Problem ProtocolError",
    "capi_core.exchange": """
        Command EndResponse Exchange ExchangeLimits Failure Operation Outcome Record SendBody SendRequest
        Settings StartResponse State
    """,
    "capi_core.failures": "failure_of own_problem",
    "capi_core.fair_queue": "FairQueue Waiter",
    "capi_core.fanout": """
        Distinct FanoutMeter FanoutReport FanoutThresholds FanoutWarning MAX_DISTINCT Measure
    """,
    "capi_core.fidelity": "Change Entry Ledger",
    "capi_core.framing": "FramingError FramingFault FramingLimits FramingState Head RequestFraming",
    "capi_core.gate": "Gate",
    "capi_core.gate_events": """
        Event GateLimits GateSnapshot GateState Granted PauseCause Queued Refusal Refused TicketState
        problem_refused
    """,
    "capi_core.github": """
        Account Authorized ClientTraits CopilotToken Denied DeviceFlow DeviceFlowEvent DeviceFlowState Endpoint
        Expired Failed FlowFailure GITHUB GitHubHost GitHubRequest Initiator Quota QuotaReport Refresh
        RefreshSchedule Refuse ShowCode TokenDecision TokenProblem TokenRefusal Use Wait has_images initiator_of
        read_account read_copilot_token read_quota
    """,
    "capi_core.github.account": "Account read_account",
    "capi_core.github.copilot_token": "CopilotToken TokenProblem TokenRefusal read_copilot_token",
    "capi_core.github.device_flow": """
        Authorized Denied DeviceFlow DeviceFlowEvent DeviceFlowState Expired Failed FlowFailure ShowCode Wait
    """,
    "capi_core.github.endpoints": "Endpoint GITHUB GitHubHost GitHubRequest base_url",
    "capi_core.github.headers": "ClientTraits RESERVED_NAMES",
    "capi_core.github.initiator": "Initiator has_images initiator_of",
    "capi_core.github.quota": "CHAT COMPLETIONS PREMIUM_INTERACTIONS Quota QuotaReport read_quota",
    "capi_core.github.refresh": "Refresh RefreshSchedule Refuse TokenDecision Use",
    "capi_core.headers": "Headers client_response_headers find retry_after_s upstream_request_headers",
    "capi_core.histogram": "Histogram MAX_MS MIN_MS RELATIVE_ERROR",
    "capi_core.identities": """
        IdentityDraft IdentityEdit IdentityRecord IdentityState Linked Standing canonical_host choose
        is_identity_name validate
    """,
    "capi_core.keys": """
        Budget BudgetPeriod BudgetUnit DEBUG_MAX_MS FieldProblem KEY_PREFIX KeyDraft KeyEdit KeyRecord KeyState
        Tier UNCHANGED Unchanged changed effective_rpm format_key hash_prefix is_well_formed key_hash mask_keys
        may_call shown_hash text_fault validate
    """,
    "capi_core.limits": "Buckets Granted RetryAfter TokenBucket problem_rate_limited",
    "capi_core.members": "JSONObject MemberRewriter MembersError decode is_crowded",
    "capi_core.model_names": "ModelName find_same",
    "capi_core.pacing": "Go Pacer TooEarly Wait problem_too_early",
    "capi_core.planning": "Answers Plan Planner",
    "capi_core.price_table": "DEFAULT_PRICES PRICE_TABLE",
    "capi_core.prices": "LongPromptConfig MICROS Price PriceConfig Prices",
    "capi_core.protocols.call_pairing": "PairedCall pair_calls",
    "capi_core.protocols.carriage": "MARK unwrap wrap",
    "capi_core.protocols.chat.answer_parts": "answer_created answer_id citation finish_word",
    "capi_core.protocols.chat.answer_wire": """
        CHUNK CallPart Choice Chunk FINISH_REASONS Message read_annotation
    """,
    "capi_core.protocols.chat.call_reader": "CallReader",
    "capi_core.protocols.chat.call_repair": "CallRepair",
    "capi_core.protocols.chat.chunk_repair": "Identity is_nameless read_identity without_repeated",
    "capi_core.protocols.chat.errors": "UNREADABLE decode_error encode_error",
    "capi_core.protocols.chat.message_decoder": "read_messages",
    "capi_core.protocols.chat.message_encoder": "MessageEncoder",
    "capi_core.protocols.chat.passthrough": """
        ChatRequest ChatStream StreamState encode_request pass_through read
    """,
    "capi_core.protocols.chat.quiet_chunks": "pass_quiet",
    "capi_core.protocols.chat.replay": "own_messages",
    "capi_core.protocols.chat.reply": "decode_reply encode_reply pass_answer",
    "capi_core.protocols.chat.request_decoder": "decode_request",
    "capi_core.protocols.chat.request_encoder": "MOST_STOPS encode_request",
    "capi_core.protocols.chat.request_wire": """
        CHOICE Choice CustomFormat FORMAT MESSAGE Message NamedTool PART Part REQUEST Request TOOL Tool WireCall
        WireFunction
    """,
    "capi_core.protocols.chat.row": "CHAT ChatCodec",
    "capi_core.protocols.chat.stream_decoder": "ChatDecoder",
    "capi_core.protocols.chat.stream_encoder": "ChatEncoder",
    "capi_core.protocols.chat.tool_encoder": "put_tool_choice put_tools wire_name",
    "capi_core.protocols.codec": "ClientRequest Codec EncodedRequest Envelope Passage PassedAnswer",
    "capi_core.protocols.embeddings": "EmbeddingsRequest decode_request encode_request",
    "capi_core.protocols.kinds": "Protocol",
    "capi_core.protocols.messages.answer_wire": """
        BLOCK ContentBlock REASONS StopDetails UNSHOWN UNSIGNED annotation_of message_id stop_members
    """,
    "capi_core.protocols.messages.block_encoder": """
        annotation_is_lost block_start delta_frame encode_block input_piece opaque_is_lost signature_text
    """,
    "capi_core.protocols.messages.block_reader": "BlockDelta BlockReader",
    "capi_core.protocols.messages.cache_marks": "CacheMarks MOST_MARKS trim",
    "capi_core.protocols.messages.content_decoder": "ContentReader note_options",
    "capi_core.protocols.messages.content_encoder": "ContentEncoder",
    "capi_core.protocols.messages.errors": "ErrorBody decode_error encode_error error_event problem_of",
    "capi_core.protocols.messages.passthrough": "MessagesStream",
    "capi_core.protocols.messages.replay": "encode_passed_request",
    "capi_core.protocols.messages.reply": "decode_reply encode_reply pass_answer",
    "capi_core.protocols.messages.request_decoder": "decode_request",
    "capi_core.protocols.messages.request_encoder": "DEFAULT_MAX_TOKENS encode_request",
    "capi_core.protocols.messages.request_wire": """
        BILLING_MARK BUDGETS CacheControl LEAST_BUDGET MOST_TYPE NULL TYPED effort_of invalid is_one_of
        untranslatable
    """,
    "capi_core.protocols.messages.row": "MESSAGES MessagesCodec",
    "capi_core.protocols.messages.stream_decoder": "Message MessagesDecoder",
    "capi_core.protocols.messages.stream_encoder": "MessagesEncoder",
    "capi_core.protocols.messages.thinking_encoder": "put_thinking",
    "capi_core.protocols.messages.tool_decoder": "read_tool_choice read_tools",
    "capi_core.protocols.messages.tool_encoder": "ToolEncoder wire_name",
    "capi_core.protocols.messages.turn_encoder": "Message TurnEncoder plain",
    "capi_core.protocols.messages.versions": "TRANSLATED_VERSION merge_betas upstream_version",
    "capi_core.protocols.openai": """
        decode_answer decode_string encode_error encode_model encode_models json_string read_request
        required_model says_error
    """,
    "capi_core.protocols.openai_requests": "short_identity taken_effort wanted_effort",
    "capi_core.protocols.passage": "DONE_MARK PassedStream field_names with_data",
    "capi_core.protocols.quiet": "Quiet QuietReader",
    "capi_core.protocols.reading": "EventReader invalid is_json read_json shown_path untranslatable",
    "capi_core.protocols.registry": "CODECS",
    "capi_core.protocols.responses.errors": "ErrorBody decode_error encode_error problem_of response_code",
    "capi_core.protocols.responses.history": "ResponseHistory",
    "capi_core.protocols.responses.input_items": "read_input",
    "capi_core.protocols.responses.item_encoder": "ItemEncoder",
    "capi_core.protocols.responses.item_reader": "ItemReader",
    "capi_core.protocols.responses.output_items": "OpenItem",
    "capi_core.protocols.responses.passthrough": "ResponsesStream",
    "capi_core.protocols.responses.replay": "Replay encode_passed_request",
    "capi_core.protocols.responses.reply": "decode_reply encode_reply pass_answer",
    "capi_core.protocols.responses.request_decoder": "decode_request",
    "capi_core.protocols.responses.request_encoder": "encode_request",
    "capi_core.protocols.responses.response_object": "INCOMPLETE ResponseObject",
    "capi_core.protocols.responses.row": "RESPONSES RESPONSES_WITHOUT_IDS ResponsesCodec",
    "capi_core.protocols.responses.spoken": "PartKey Spoken TEXTS",
    "capi_core.protocols.responses.stream_decoder": "ResponsesDecoder",
    "capi_core.protocols.responses.stream_encoder": "ResponsesEncoder",
    "capi_core.protocols.responses.tool_decoder": "read_additional_tools read_tool_choice read_tools",
    "capi_core.protocols.responses.tool_encoder": "encode_tool_choice encode_tools wire_name",
    "capi_core.protocols.responses.upstream_frames": "UpstreamFrame encode_create read_frame",
    "capi_core.protocols.responses.websocket": """
        ClientFrame FrameEncoder FrameError encode_error_frame in_lane read_client_frame
    """,
    "capi_core.protocols.responses.wire": "CALLS ITEM ItemPart OutputItem TYPED Typed",
    "capi_core.protocols.splice": "edit_items one_line without",
    "capi_core.protocols.stream": "ENDED StreamDecoder StreamEncoder StreamMachine StreamState",
    "capi_core.protocols.writing": "json_bytes json_text",
    "capi_core.request_head": "CRLF FIELD FramingError FramingFault FramingLimits Head HeadReader TOKEN",
    "capi_core.rollups": """
        ENDINGS Ending MAX_SUM RollupKey Span UsageRollup coarser fold is_usage_unknown merge merge_all regroup
    """,
    "capi_core.routing": "ModelFacts UpstreamTraits choose_protocol model_facts target_for",
    "capi_core.sse": "DecoderState Event KEEP_ALIVE SSEDecoder SSEError comment encode",
    "capi_core.target": "ReasoningMember Target ThinkingSupport",
    "capi_core.tokens": "ESTIMATOR TextCounter TokenCount count_conversation encode_count",
    "capi_core.tool_names": "CUSTOM_INPUT_SCHEMA MAX_TOOL_NAME ToolNames",
    "capi_core.translation": "TranslatedStream Translation",
    "capi_core.usage": """
        Usage UsageSource anthropic_usage encode_anthropic_usage encode_openai_usage encode_responses_usage
        merge_anthropic_usage openai_usage responses_usage
    """,
    "capi_core.usage_events": "UsageEvent",
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
