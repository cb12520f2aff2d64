"""The table of what a client may send (tests/support/framing_cases.py), over a real socket to a running gateway.

Accepted: as many HTTP answers as there are requests, and a connection still in step. Refused: that status, then the end
of the connection; what was smuggled behind it is not executed.
"""

from contextlib import suppress
from typing import Final

import pytest
import trio

from tests.e2e.peers import Client, connect, request
from tests.support.framing_cases import CASES, FramingCase, drive, read_back
from tests.support.process import Capi

# The table's own requests are for the host `h`, which is not served: only this one is answered like that.
FOLLOW_UP: Final = request(b"GET", b"/healthz")
SERVED: Final = b"ok\n"


def case_name(case: FramingCase) -> str:
    return case.name


@pytest.mark.parametrize("case", [case for case in CASES if case.status is None], ids=case_name)
async def test_an_accepted_request_is_answered(shared_demo: Capi, case: FramingCase) -> None:
    requests = read_back(case.canonical)
    async with connect(shared_demo.port) as client:
        await client.send(case.data)
        for asked in requests:
            response = await client.response(asked.method)
            assert response.complete
            assert response.status < 500
            assert response.header(b"x-request-id")
        if (b"connection", b"close") in requests[-1].headers:
            assert await client.ended() == b""
        else:
            await client.send(FOLLOW_UP)
            assert (await client.response()).body == SERVED


@pytest.mark.parametrize("case", [case for case in CASES if case.status is not None], ids=case_name)
async def test_a_refused_request_ends_the_connection(shared_demo: Capi, case: FramingCase) -> None:
    requests = [asked for asked in read_back(drive([case.data]).canonical) if asked.whole]
    async with connect(shared_demo.port) as client:
        with suppress(trio.BrokenResourceError):
            await client.send(case.data + FOLLOW_UP)
        for asked in requests:
            if case.code == "pipeline_too_long":  # the refusal may overtake the answer, or be left out after it
                break
            assert (await client.response(asked.method)).complete
        else:
            await _assert_refused(client, case)
        assert SERVED not in await client.ended()


async def _assert_refused(client: Client, case: FramingCase) -> None:
    response = await client.response()
    assert (response.status, response.error.code) == (case.status, case.code)
    assert response.header(b"connection") == b"close"
    assert response.header(b"x-request-id")


@pytest.mark.parametrize("size", [1, 7])
async def test_how_a_head_is_cut_into_packets_does_not_matter(shared_demo: Capi, size: int) -> None:
    """The machine's own tests cut every case everywhere; here a few show that the socket loop does as they do."""
    for case in CASES:
        if len(case.data) > 120 or case.status is None:
            continue
        async with connect(shared_demo.port) as client:
            with suppress(trio.BrokenResourceError):
                for at in range(0, len(case.data), size):
                    await client.send(case.data[at : at + size])
            if not drive([case.data]).canonical:
                await _assert_refused(client, case)
            assert SERVED not in await client.ended()
