"""Request ids."""

import re

from capi_trio.ids import new_request_id


def test_an_id_says_what_it_is_and_fits_a_header() -> None:
    assert re.fullmatch(r"req_[0-9a-f]{24}", new_request_id())


def test_no_two_are_the_same() -> None:
    assert len({new_request_id() for _ in range(10_000)}) == 10_000
