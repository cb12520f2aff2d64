"""Whose token it is."""

import pytest

from capi_core.errors import ProtocolError
from capi_core.github.account import Account, read_account


def test_an_account_is_its_number_and_its_name() -> None:
    body = b'{"login":"octo-cat_corp","id":583231,"node_id":"x","plan":{"name":"pro"}}'
    assert read_account(body) == Account(583231, "octo-cat_corp")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"login":"a"}',
        b'{"id":"1","login":"a"}',
        b'{"id":0,"login":"a"}',
        b'{"id":1,"login":""}',
        b'{"id":1,"login":"a\\r\\nb"}',
        b'{"id":1,"login":"<b>"}',
    ],
)
def test_what_is_no_account_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        read_account(body)
    assert (refused.value.code, refused.value.status_hint) == ("upstream_garbage", 502)
