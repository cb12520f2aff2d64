"""What an upstream is told of versions and betas is well formed, whatever the client sent."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.protocols.messages.versions import TRANSLATED_VERSION, merge_betas, upstream_version


@pytest.mark.parametrize(
    ("sent", "translated", "told"),
    [
        (b"2026-10-21", False, b"2026-10-21"),
        (b"2026-10-21", True, b"2023-06-01"),
        (None, False, b"2023-06-01"),
        (b"latest", False, b"2023-06-01"),
        (b"2026-10-21\n", False, b"2023-06-01"),
    ],
)
def test_a_clients_version_passes_with_its_own_request_only(sent: bytes | None, translated: bool, told: bytes) -> None:
    assert upstream_version(sent, translated=translated) == told
    assert upstream_version(None, translated=True) == TRANSLATED_VERSION


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ((), None),
        ((None, b"", b" , "), None),
        ((b"a-1, b-2", None, b"b-2,c-3\t"), b"a-1,b-2,c-3"),
        ((b"a b, c\r\nd, ok, \xff", b"x" * 129), b"ok"),
    ],
)
def test_betas_are_one_list_without_repeats(lists: tuple[bytes | None, ...], told: bytes | None) -> None:
    assert merge_betas(*lists) == told


def test_no_more_than_64_betas_are_told() -> None:
    told = merge_betas(b",".join(b"b%d" % number for number in range(100)), b"b3,late")
    assert told is not None
    assert told.split(b",") == [b"b%d" % number for number in range(64)]


@given(st.lists(st.binary(max_size=40) | st.none(), max_size=4))
def test_any_bytes_make_a_legal_header_value(lists: list[bytes | None]) -> None:
    told = merge_betas(*lists)
    assert told is None or re.fullmatch(rb"[\x21-\x2b\x2d-\x7e]+(,[\x21-\x2b\x2d-\x7e]+)*", told)
    assert merge_betas(told) == told
