"""The response object, apart from what a request makes of it."""

from attrs import evolve

from capi_trio.demo.prompt import Call, Finish, Reply
from capi_trio.demo.response_object import Echo, Plan, Usage, incomplete_reason, output_items, response_json

REPLY = Reply(("Hm. ",), ("Yes",), (Call("shell", ('{"input":"ls"}',)),), Finish.TOOL_CALLS, 1, 9)
PLAN = Plan(
    id="resp_1",
    created=1,
    model="demo-gpt",
    reply=REPLY,
    item_ids=("rs_1", "msg_1", "ctc_1"),
    call_ids=("call_1",),
    custom=frozenset({"shell"}),
    summarised=True,
    sealed=False,
    usage=Usage(5, 1, 1, 9, 1),
    echo=Echo(),
)


def test_items_come_in_the_order_in_which_they_are_said() -> None:
    entries = output_items(PLAN)
    assert [(entry.item["id"], entry.item["type"]) for entry in entries] == [
        ("rs_1", "reasoning"),
        ("msg_1", "message"),
        ("ctc_1", "custom_tool_call"),
    ]
    assert [entry.text for entry in entries] == ["Hm. ", "Yes", "ls"]


def test_only_the_last_item_is_incomplete() -> None:
    cut = evolve(PLAN, reply=evolve(REPLY, finish=Finish.LENGTH))
    assert incomplete_reason(cut.reply) == "max_output_tokens"
    assert [entry.item.get("status") for entry in output_items(cut)] == [None, "completed", "incomplete"]
    thinking = evolve(PLAN, reply=Reply(("Hm.",), (), (), Finish.LENGTH, 1, 1), call_ids=())
    assert [entry.item.get("status") for entry in output_items(thinking)] == [None]


def test_a_reply_of_nothing_has_no_items() -> None:
    assert output_items(evolve(PLAN, reply=Reply((), (), (), Finish.LENGTH, 0, 0), call_ids=())) == ()


def test_usage_comes_when_a_response_has_ended() -> None:
    ended = response_json(PLAN, "completed")
    assert ended["usage"] == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 1},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 14,
    }
    assert (ended["error"], ended["incomplete_details"]) == (None, None)
    assert response_json(PLAN, "in_progress")["usage"] is None
    failed = response_json(PLAN, "failed", error={"code": "server_error"})
    assert (failed["usage"], failed["error"]) == (None, {"code": "server_error"})
