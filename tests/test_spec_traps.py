"""Where other proxies of this kind break (spec.md, section 5), and the tests that show that this one does not.

Each entry of that list is here under its number. What a capability that is not built yet will have to show is said in
`later`; it moves to `shown` with that capability. Entries about something that this gateway does not do say so there.
"""

import ast
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

TESTS: Final = Path(__file__).parent
ENTRIES: Final = 34

CORE: Final = "capi_core/"
CHAT: Final = "capi_core/protocols/chat/"
RESPONSES: Final = "capi_core/protocols/responses/"
MESSAGES: Final = "capi_core/protocols/messages/"
TRIO: Final = "capi_trio/"
E2E: Final = "e2e/"

# Capabilities that are still to come, in words.
IMAGE: Final = "the container image"
CAPABILITIES: Final = frozenset({IMAGE})


@frozen
class Trap:
    """What goes wrong elsewhere; test functions, relative to tests/; and what has still to come, by capability."""

    what: str
    shown: tuple[str, ...] = ()
    later: Mapping[str, str] = {}


TRAPS: Final[Mapping[int, Trap]] = {
    1: Trap(
        "calls whose arguments come by turns: pieces arrive for a block that was told to be over",
        (
            f"{E2E}test_quirks.py::test_1_and_6_blocks_are_closed_once_and_the_message_ends_once",
            f"{E2E}test_quirks.py::test_a_stream_is_legal_whatever_the_upstreams_was",
            f"{MESSAGES}test_stream_encoder.py::test_blocks_that_overlap_go_out_one_after_the_other",
            f"{RESPONSES}test_stream_encoder.py::test_blocks_that_overlap_are_items_of_their_own",
        ),
    ),
    2: Trap(
        "text that goes on between the pieces of a call's arguments: the same",
        (
            f"{CORE}test_translation.py::test_text_between_the_pieces_of_a_calls_arguments_costs_neither",
            f"{CHAT}test_stream_decoder.py::test_prose_closes_before_a_call_and_calls_at_the_finish",
        ),
    ),
    3: Trap(
        "a call's id and name in different chunks: the call is never told",
        (
            f"{CHAT}test_call_reader.py::test_id_and_name_may_come_apart_and_arguments_are_held_for_them",
            f"{RESPONSES}test_item_reader.py::test_a_call_starts_when_its_id_and_name_are_known",
            f"{E2E}test_quirks.py::test_a_streamed_answer_is_what_it_would_be_without_the_quirk",
        ),
    ),
    4: Trap(
        "usage that comes after the finish is lost",
        (
            f"{E2E}test_quirks.py::test_4_usage_arrives_wherever_the_upstream_puts_it",
            f"{CHAT}test_stream_decoder.py::test_usage_may_come_with_the_finish_after_it_or_never",
            f"{MESSAGES}test_stream_encoder.py::test_the_figures_may_come_after_the_finish",
        ),
    ),
    5: Trap(
        "a stream that breaks off or turns into garbage ends without an error",
        (
            f"{E2E}test_cut_streams.py::test_s6_a_stream_cut_at_any_byte_ends_in_an_error",
            f"{E2E}test_quirks.py::test_5_a_stream_that_breaks_off_never_ends_well",
            f"{E2E}test_upstream_faults.py::test_a_stream_that_breaks_ends_with_an_error_event",
            f"{CORE}test_translation.py::test_garbage_breaks_it_and_what_came_before_still_goes_out",
        ),
    ),
    6: Trap(
        "a second finish ends the message twice; an unknown reason, or a chunk without choices, is a fault",
        (
            f"{E2E}test_quirks.py::test_1_and_6_blocks_are_closed_once_and_the_message_ends_once",
            f"{CHAT}test_stream_decoder.py::test_finish_reasons",
            f"{CHAT}test_stream_decoder.py::test_an_error_of_the_upstream_ends_the_stream",
            f"{MESSAGES}test_stream_decoder.py::test_a_reason_that_is_not_known_is_noted",
            f"{CORE}test_translation.py::test_an_upstreams_error_goes_on_in_the_clients_shape",
        ),
    ),
    7: Trap(
        "reasoning under its other names is lost; of several choices only the first one is streamed",
        (
            f"{CHAT}test_stream_decoder.py::test_reasoning_is_read_under_every_name",
            f"{CHAT}test_stream_decoder.py::test_choices_of_one_chunk_are_one_answer_and_others_are_dropped",
            f"{CHAT}test_reply.py::test_copilots_split_choices_are_one_answer",
            f"{E2E}test_quirks.py::test_7_a_signature_comes_in_one_delta",
        ),
    ),
    8: Trap(
        "silence is not bridged and the upstream's own signs of life are swallowed",
        (
            f"{TRIO}test_relay.py::test_a_stream_is_kept_alive_through_silence_before_its_head_too",
            f"{E2E}test_upstream_faults.py::test_a_silent_upstream_is_bridged_by_comments",
            f"{CORE}test_translation.py::test_a_ping_is_no_part_of_the_answer",
            f"{MESSAGES}test_stream_encoder.py::test_a_ping_is_an_event",
        ),
    ),
    9: Trap(
        "the upstream goes on for a client that has left; nothing has a time limit",
        (
            f"{E2E}test_cancellation.py::test_the_upstream_sees_a_client_leave",
            f"{E2E}test_cancellation.py::test_a_thousand_clients_that_leave_at_random_leave_nothing_behind",
            f"{TRIO}test_relay.py::test_an_upstream_that_takes_too_long_is_given_up",
            f"{TRIO}test_relay.py::test_a_json_answer_that_takes_too_long_is_given_up",
        ),
    ),
    10: Trap(
        "the reader of event streams loses the last event, comments, zeros of an id and leading spaces",
        (
            f"{E2E}test_event_streams.py::test_s1_mutated_streams_read_as_the_standard_says_however_they_are_cut",
            f"{E2E}test_event_streams.py::test_s2_the_formats_of_the_web_platform_tests",
            f"{CORE}test_sse.py::test_an_unterminated_block_is_discarded_or_leniently_completed",
            f"{CORE}test_sse.py::test_id_is_the_last_one_without_nul",
            f"{CHAT}test_passthrough.py::test_a_whole_stream_passes_byte_for_byte",
            f"{E2E}test_quirks.py::test_10_a_stream_without_its_end_mark",
            f"{E2E}test_quirks.py::test_10_every_shape_of_event_stream",
        ),
    ),
    11: Trap(
        "names of models with a version and a date are cut to another model's, or go upstream as they are",
        (
            f"{CORE}test_model_names.py::test_spellings_of_one_model",
            f"{CORE}test_model_names.py::test_names_of_two_models",
            f"{CORE}test_exchange.py::test_a_dated_name_goes_upstream_in_the_listed_spelling_on_every_path",
        ),
    ),
    12: Trap(
        "results, documents, hidden thinking and hosted tools are lost, emptied or put in another order",
        (
            f"{E2E}test_quirks.py::test_12_a_tool_result_of_every_kind",
            f"{E2E}test_quirks.py::test_12_thinking_that_is_not_shown_goes_back_too",
            f"{CHAT}test_message_encoder.py::test_a_failure_is_said_in_the_text",
            f"{CHAT}test_message_encoder.py::test_images_of_results_follow_as_the_users_before_its_own_words",
            f"{CHAT}test_message_encoder.py::test_reasoning_that_nothing_follows_is_no_message",
            f"{CHAT}test_message_encoder.py::test_what_stands_between_a_call_and_its_result_comes_after_both",
            f"{CHAT}test_tool_encoder.py::test_only_chats_own_hosted_tools_are_sent",
            f"{RESPONSES}test_item_encoder.py::test_the_assistants_items_keep_their_order",
            f"{RESPONSES}test_item_encoder.py::test_results_come_before_the_words_of_the_same_turn",
            f"{RESPONSES}test_tool_encoder.py::test_hosted_tools_are_the_upstreams_own_or_none",
            f"{MESSAGES}test_content_decoder.py::test_results",
            f"{MESSAGES}test_content_encoder.py::test_documents",
            f"{MESSAGES}test_tool_decoder.py::test_a_wrong_choice_is_told_with_its_path",
        ),
    ),
    13: Trap(
        "a whole answer with a call without arguments is a fault; empty text becomes a block",
        (
            f"{CORE}test_translation.py::test_a_whole_answer_with_empty_arguments_and_no_words_is_one_call",
            f"{E2E}test_quirks.py::test_13_a_tool_without_arguments",
        ),
    ),
    14: Trap(
        "a client's beta features and version are ignored; who began a turn is not told",
        (
            f"{CORE}test_exchange.py::test_the_headers_of_messages_go_to_messages_upstreams",
            f"{CORE}test_planning.py::test_they_go_to_messages_upstreams_only",
            f"{MESSAGES}test_versions.py::test_a_clients_version_passes_with_its_own_request_only",
            f"{CORE}test_planning.py::test_copilot_is_told_who_began_a_request",
        ),
    ),
    15: Trap(
        "the form of thinking is guessed from a model's name; effort and format are lost on the way",
        (
            f"{MESSAGES}test_thinking_encoder.py::test_no_form_is_guessed_from_a_models_name",
            f"{MESSAGES}test_thinking_encoder.py::test_the_models_form_wins",
            f"{MESSAGES}test_thinking_encoder.py::test_the_nearest_effort_that_the_model_takes",
            f"{MESSAGES}test_request_encoder.py::test_what_messages_can_say_comes_back_the_same",
            f"{CORE}test_routing.py::test_the_form_of_thinking_that_a_model_takes",
        ),
    ),
    16: Trap(
        "images inside results are not announced",
        (
            f"{CORE}github/test_initiator.py::test_an_image_is_seen_wherever_it_stands",
            f"{CORE}test_planning.py::test_copilot_is_told_of_a_tools_result_and_of_images",
        ),
    ),
    17: Trap(
        "what a model can do is guessed from its kind, and a record without it is a fault",
        (
            f"{CORE}test_routing.py::test_the_models_record_outweighs_the_configuration",
            f"{CORE}test_routing.py::test_copilots_record_says_what_the_model_takes",
            f"{CORE}test_routing.py::test_no_record_is_a_fault",
            f"{CORE}test_planning.py::test_the_models_own_record_decides_before_the_configuration",
        ),
    ),
    18: Trap(
        "a model that does not speak the client's protocol is asked in it all the same",
        (
            f"{CORE}test_routing.py::test_otherwise_the_nearest_one",
            f"{CORE}test_planning.py::test_a_request_goes_in_the_upstreams_protocol_under_its_name",
            f"{CORE}test_exchange.py::test_a_model_that_no_protocol_serves_is_refused",
            f"{E2E}test_matrix.py::test_text",
        ),
    ),
    19: Trap(
        "a limit is put into requests under a name that the model does not take",
        (
            f"{CHAT}test_request_encoder.py::test_the_least_request",
            f"{CHAT}test_request_encoder.py::test_the_limit_is_kept_to_what_the_model_gives",
            f"{CHAT}test_passthrough.py::test_only_the_model_and_the_usage_option_of_a_request_change",
            f"{E2E}test_quirks.py::test_19_the_old_limit_of_chat_holds_everywhere",
        ),
    ),
    20: Trap(
        "a status of null inside a response breaks clients; every event is written anew",
        (
            f"{E2E}test_quirks.py::test_20_no_status_is_null_and_one_that_comes_back_does_no_harm",
            f"{RESPONSES}test_passthrough.py::test_a_steady_stream_is_not_touched",
            f"{E2E}test_rewriting.py::test_s7_only_the_models_name_is_other",
        ),
    ),
    21: Trap(
        "items without a type and outputs of other tools are passed over; no input, or no output, is a fault",
        (
            f"{E2E}test_quirks.py::test_21_untyped_items_and_images_in_a_tools_output",
            f"{E2E}test_quirks.py::test_28_a_body_that_is_no_request_is_told_once_and_in_the_clients_shape",
            f"{RESPONSES}test_request_decoder.py::test_what_is_refused",
            f"{RESPONSES}test_input_items.py::test_unknown_items_are_opaque_on_the_side_that_makes_them",
            f"{CORE}test_translation.py::test_a_success_without_an_answer_in_it_is_the_upstreams_fault",
            f"{CORE}github/test_initiator.py::test_each_item_of_responses_has_its_side",
        ),
    ),
    22: Trap(
        "an error in the middle of a stream is told twice, and in no protocol's shape",
        (
            f"{E2E}test_quirks.py::test_22_an_error_in_the_middle_is_told_once_and_in_the_clients_shape",
            f"{CORE}test_exchange.py::test_a_failure_after_any_event_is_told_in_the_clients_protocol",
            f"{RESPONSES}test_stream_encoder.py::test_a_failure_is_a_failed_response_after_created_and_nothing_follows",
        ),
    ),
    23: Trap(
        "a token that cannot be refreshed ends the process, or is asked for by everybody at once",
        (
            f"{TRIO}github/test_tokens.py::test_a_hundred_callers_at_a_tokens_end_are_one_exchange",
            f"{TRIO}github/test_tokens.py::test_failures_are_tried_again_at_a_growing_interval_that_has_an_end",
            f"{TRIO}github/test_tokens.py::test_a_refused_token_is_renewed_once_for_all_that_it_was_refused_to",
            f"{TRIO}github/test_tokens.py::test_after_a_sleep_a_dead_token_is_renewed_before_it_is_used",
        ),
    ),
    24: Trap(
        "signing in waits for ever; tokens and prompts are logged, or shown by ps",
        (
            f"{TRIO}test_app.py::test_no_log_line_holds_what_was_asked_or_answered",
            f"{TRIO}test_upstream.py::test_a_credential_is_never_shown",
            f"{CORE}github/test_device_flow.py::test_any_answers_in_any_order_come_to_at_most_one_end_and_no_poll_is_too_early",
            f"{TRIO}test_token_files.py::test_a_token_is_kept_for_its_owner_only_under_any_umask",
        ),
    ),
    25: Trap(
        "any page that the user visits may read the token and use the gateway; it listens everywhere",
        (
            f"{TRIO}test_app.py::test_a_client_gets_no_cors_headers",
            f"{TRIO}test_app.py::test_nobody_passes_the_door_without_a_key",
            f"{TRIO}test_perimeter.py::test_pages_of_other_sites_are_refused",
            f"{E2E}test_boot_matrix.py::test_who_may_listen_where",
            f"{E2E}test_identities.py::test_a_change_reaches_the_server_and_outlives_its_kill_and_no_token_is_shown",
        ),
    ),
    26: Trap(
        "the upstream's address is made of text that nobody checked, and what the token says of it is ignored",
        (
            f"{CORE}test_config.py::test_anything_else_is_refused_whatever_is_allowed",
            f"{TRIO}github/test_api_base.py::test_any_other_place_is_refused",
        ),
    ),
    27: Trap(
        "models are asked for once",
        (f"{TRIO}test_catalog.py::test_lists_are_refreshed_every_hour_and_sooner_while_one_is_missing",),
    ),
    28: Trap(
        "errors inside errors, in another protocol's shape, with the wrong status and no time to come again",
        (
            f"{E2E}test_json_edges.py::test_a_body_is_taken_or_refused_as_the_standard_says",
            f"{E2E}test_json_edges.py::test_a_value_is_taken_or_refused_as_the_standard_says",
            f"{E2E}test_quirks.py::test_28_a_body_that_is_no_request_is_told_once_and_in_the_clients_shape",
            f"{CORE}test_exchange.py::test_every_failure_before_the_answer_has_the_clients_shape",
            f"{CORE}test_exchange.py::test_an_error_keeps_its_status_and_its_words_but_no_secret",
            f"{CORE}test_headers.py::test_what_helps_a_client_to_retry_crosses",
            f"{CORE}test_translation.py::test_a_success_without_an_answer_in_it_is_the_upstreams_fault",
            f"{E2E}test_upstream_faults.py::test_an_upstream_at_fault_before_its_first_event_is_a_status",
            f"{E2E}test_upstream_faults.py::test_an_upstream_that_is_down",
        ),
    ),
    29: Trap(
        "who waits for the rate wakes together; a rate that is no number refuses for ever; nobody is told when to come",
        (
            f"{CORE}test_limits.py::test_who_waits_as_told_is_granted",
            f"{CORE}test_limits.py::test_a_clock_that_is_no_number_is_the_embedders_fault",
            f"{CORE}test_limits.py::test_no_rate_is_no_rate",
            f"{CORE}test_config.py::test_each_rule_tells_its_place",
            f"{TRIO}test_app.py::test_over_its_rate_a_key_is_told_when_to_come_again",
            f"{TRIO}test_websocket.py::test_the_rate_limit_and_the_size_hold_as_over_http",
            f"{CORE}test_pacing.py::test_each_that_waits_has_an_instant_of_its_own",
            f"{TRIO}test_admission.py::test_who_waits_goes_in_turn_and_one_at_a_time",
            f"{TRIO}test_approval.py::test_one_question_at_a_time_in_the_order_of_arrival",
            f"{E2E}test_manual.py::test_without_a_terminal_it_refuses_instead_of_hanging",
        ),
    ),
    30: Trap(
        "counts of tokens fall to 1 at special tokens and unknown models; images count as text; every request pays",
        (
            f"{TRIO}test_tokenizers.py::test_names_of_special_tokens_are_ordinary_text",
            f"{TRIO}test_tokenizers.py::test_other_models_are_counted_with_o200k_and_that_is_no_exact_count",
            f"{TRIO}test_tokenizers.py::test_only_claudes_tokens_are_more",
            f"{CORE}test_counting.py::test_text_that_looks_like_a_special_token_is_text",
            f"{CORE}test_tokens.py::test_an_image_is_width_times_height_by_750_up_to_a_cap",
            f"{CORE}test_exchange.py::test_nothing_is_counted_but_for_who_asks_for_a_count",
        ),
    ),
    31: Trap(
        "the lines for a shell are quoted wrongly",
        (
            f"{TRIO}test_client_setup.py::test_a_shell_reads_back_exactly_what_was_meant",
            f"{TRIO}test_client_setup.py::test_powershell_and_cmd_have_their_own_quoting",
            f"{TRIO}test_client_setup.py::test_what_cmd_cannot_take_is_refused",
        ),
    ),
    32: Trap(
        "an account without quotas ends the command that shows them; the image runs as root",
        (
            f"{CORE}github/test_quota.py::test_a_plan_without_quotas_is_an_empty_report",
            f"{CORE}github/test_quota.py::test_a_free_plan_gives_totals_and_what_is_left_of_them",
            f"{TRIO}test_quotas.py::test_a_report_without_figures_is_one_without_quotas",
        ),
        {IMAGE: "it runs as a user of its own"},
    ),
    33: Trap(
        "who the client's user is goes to another provider; the log has whole answers",
        (
            f"{CORE}test_exchange.py::test_who_asks_by_an_anthropic_client_is_no_secret_told_to_another_provider",
            f"{TRIO}test_app.py::test_no_log_line_holds_what_was_asked_or_answered",
            f"{E2E}test_byte_identity.py::test_no_header_of_the_client_reaches_the_upstream",
        ),
    ),
    34: Trap(
        "any earlier answer makes a turn the agent's, so that it costs nothing",
        (
            f"{CORE}github/test_initiator.py::test_the_rule",
            f"{CORE}github/test_initiator.py::test_what_the_user_says_last_is_the_users_whatever_was_before",
        ),
    ),
}


@cache
def functions_of(file: str) -> Collection[str]:
    """The test functions at the top of a test file, unless they are marked as skipped or failing."""
    tree = ast.parse((TESTS / file).read_text())
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any("skip" in ast.unparse(mark) or "xfail" in ast.unparse(mark) for mark in node.decorator_list)
    }


def test_every_entry_is_here() -> None:
    assert list(TRAPS) == list(range(1, ENTRIES + 1))


@pytest.mark.parametrize("number", TRAPS)
def test_an_entry_is_shown_by_tests_or_by_a_capability_to_come(number: int) -> None:
    trap = TRAPS[number]
    assert trap.what
    assert trap.shown or trap.later
    assert set(trap.later) <= CAPABILITIES
    assert len(set(trap.shown)) == len(trap.shown)
    for test in trap.shown:
        file, _, name = test.partition("::")
        assert name.startswith("test_")
        assert (TESTS / file).is_file(), test
        assert name in functions_of(file), test
