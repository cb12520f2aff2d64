"""How the gateway presents itself: little, truthfully, and one header each."""

import pytest

from capi_core.errors import LocalError
from capi_core.github.headers import ClientTraits
from capi_core.github.initiator import Initiator
from capi_core.headers import Headers

TRAITS = ClientTraits(user_agent="capi/1.0", editor_version="capi/1.0")


def test_github_is_asked_with_its_own_scheme() -> None:
    assert TRAITS.github_headers("gho_1") == (
        (b"accept", b"application/json"),
        (b"authorization", b"token gho_1"),
        (b"user-agent", b"capi/1.0"),
        (b"editor-version", b"capi/1.0"),
        (b"x-github-api-version", b"2025-04-01"),
    )


def test_copilot_gets_the_least_that_it_takes() -> None:
    """And nothing about who began it or images where no model is asked."""
    assert TRAITS.copilot_headers("tid=1;exp=2:sig") == (
        (b"authorization", b"Bearer tid=1;exp=2:sig"),
        (b"user-agent", b"capi/1.0"),
        (b"copilot-integration-id", b"vscode-chat"),
        (b"editor-version", b"capi/1.0"),
        (b"x-github-api-version", b"2025-05-01"),
    )


@pytest.mark.parametrize("initiator", list(Initiator))
def test_a_model_is_told_who_began_and_whether_there_are_images(initiator: Initiator) -> None:
    plain = dict(TRAITS.copilot_headers("t", initiator=initiator))
    assert plain[b"x-initiator"] == initiator.value.encode()
    assert b"copilot-vision-request" not in plain
    assert dict(TRAITS.copilot_headers("t", initiator=initiator, images=True))[b"copilot-vision-request"] == b"true"


def test_further_headers_are_added_and_replace_the_usual_ones() -> None:
    extra = ((b"openai-intent", b"conversation-panel"), (b"editor-version", b"vscode/1.2.3"))
    headers = ClientTraits("capi/1.0", "capi/1.0", extra=extra).copilot_headers("t")
    assert headers[-2:] == extra
    assert len(headers) == len(dict(headers)) == 6


@pytest.mark.parametrize("text", ["", " ", "a\r\nx: y", "é", "a\0"])
def test_a_value_that_is_no_header_is_the_embedders_fault(text: str) -> None:
    with pytest.raises(LocalError, match="user_agent"):
        ClientTraits(user_agent=text, editor_version="e/1")
    with pytest.raises(LocalError, match="integration_id"):
        ClientTraits("a", "e/1", integration_id=text)


@pytest.mark.parametrize(
    "extra",
    [
        ((b"authorization", b"x"),),
        ((b"x-initiator", b"agent"),),
        ((b"copilot-vision-request", b"true"),),
        ((b"Editor-Version", b"x"),),
        ((b"a b", b"x"),),
        ((b"a", b"x\r\nb: c"),),
        ((b"a", b"\xff"),),
    ],
)
def test_no_configuration_sets_what_is_ours_to_say_or_breaks_the_head(extra: Headers) -> None:
    with pytest.raises(LocalError):
        ClientTraits("a", "e/1", extra=extra)


@pytest.mark.parametrize("token", ["", "gho_1\n", "gho 1", "gho_é"])
def test_a_token_that_would_break_the_head_is_never_sent_nor_told(token: str) -> None:
    """A token's file with a line feed at its end (spec.md 5, 24)."""
    for make in (TRAITS.github_headers, TRAITS.copilot_headers):
        with pytest.raises(LocalError) as refused:
            make(token)
        assert "gho" not in str(refused.value)
