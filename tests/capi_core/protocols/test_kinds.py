from capi_core.protocols.kinds import Protocol


def test_the_names_are_those_of_options_and_records() -> None:
    assert [protocol.value for protocol in Protocol] == ["chat", "responses", "messages"]
