"""What is timed is a whole answer in each protocol, and it arrives whole in each."""

import pytest

from bench.protocols import machine, measure_pairs, render_pairs, upstream_stream
from capi_core.conformance import checker_for
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.stream import StreamState
from capi_core.usage import Usage


@pytest.mark.parametrize("upstream", Protocol)
@pytest.mark.parametrize("client", Protocol)
def test_the_answer_arrives_whole(client: Protocol, upstream: Protocol) -> None:
    stream = machine(client, upstream)
    told = stream.receive_data(upstream_stream(upstream, 5))
    assert stream.state is StreamState.DONE
    checker = checker_for(client)
    checker.receive_data(told)
    checker.finish()
    assert checker.violations == ()
    assert b"token4" in told
    assert stream.usage is not None
    assert (stream.usage.uncached_input, stream.usage.output) == (10, 5)
    assert stream.usage == Usage(10, stream.usage.cache_read, stream.usage.cache_write, 5, stream.usage.reasoning)


def test_every_pair_has_its_row() -> None:
    figures = measure_pairs(10, 1000, 1)
    assert len({(figure.client, figure.upstream) for figure in figures}) == 9
    assert all(figure.mb_per_s > 0 for figure in figures)
    assert render_pairs(figures).count("translated") == 6
