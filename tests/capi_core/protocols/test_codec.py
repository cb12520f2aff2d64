"""What a row is asked for and answers: plain data that does not show what it holds."""

from capi_core.members import JSONObject
from capi_core.protocols.codec import ClientRequest, EncodedRequest, Envelope, Passage, PassedAnswer
from capi_core.tool_names import ToolNames


def test_usage_is_told_unless_a_protocol_leaves_it_to_the_client() -> None:
    request = ClientRequest(JSONObject(b"{}"), "m", stream=False)
    assert (request.asks_usage, Envelope("r", "m").include_usage) == (True, True)


def test_bodies_are_not_shown() -> None:
    """A log line or a traceback that holds one must not hold a prompt."""
    secret = b'{"x":"secret"}'
    held = (
        Passage(secret, None),
        PassedAnswer(secret, None, error=False),
        EncodedRequest(secret, ToolNames()),
        Envelope("r", "m", request=JSONObject(secret)),
    )
    assert "secret" not in repr(held)
