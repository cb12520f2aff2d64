"""A target of which nothing is known takes everything."""

from capi_core.target import ReasoningMember, Target, ThinkingSupport


def test_unknown_is_not_no() -> None:
    target = Target("m")
    assert (target.thinking, target.images, target.efforts) == (ThinkingSupport.UNKNOWN, None, None)
    assert (target.sampling, target.image_urls, target.developer_role, target.ask_usage) == (True, True, True, True)


def test_reasoning_is_only_given_back_to_who_is_known_to_take_it() -> None:
    assert Target("m").reasoning_member is ReasoningMember.NONE
