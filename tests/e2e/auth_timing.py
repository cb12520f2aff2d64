"""A3: how long a refusal takes tells nothing about the key that was tried. `make reliability` runs it.

Its name keeps it out of the ordinary tests: a busy machine is no leak.
"""

import random
import socket
import statistics
import time
from pathlib import Path
from typing import Final

from capi_core.keys import KEY_PREFIX
from capi_trio.control import ask
from capi_trio.operations import CreateKey, KeyAnswer, RevokeKey
from tests.e2e.conftest import faultless
from tests.support.process import gateway, issue_key
from tests.support.scale import scaled, tell

SAMPLES: Final = scaled(20_000)
WARM_UP: Final = 500
ROUNDS_EACH: Final = 100
"""So many rounds on one connection: a gateway closes one that has asked very often."""
SEED: Final = 3
MOST: Final = 0.02
HEAD: Final = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {}\r\n\r\n"


def exchange(stream: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Nanoseconds until the whole answer was there, and the answer."""
    began = time.perf_counter_ns()
    stream.sendall(request)
    data = stream.recv(65536)
    while not complete(data):
        part = stream.recv(65536)
        assert part, data
        data += part
    return time.perf_counter_ns() - began, data


def complete(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return False
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return len(body) >= length


def same_form(data: bytes) -> bytes:
    """An answer without what is new in each."""
    new = (b"x-request-id:", b"request-id:", b"date:")
    return b"\n".join(line for line in data.split(b"\r\n") if not line.lower().startswith(new))


def test_every_refusal_takes_as_long_as_every_other(tmp_path: Path) -> None:
    """The medians of all kinds of bad key, asked in turn at random, lie within 2 % of that of an unknown one."""
    data_dir = tmp_path / "capi"
    with faultless(gateway(data_dir, {"upstreams": {"demo": {"kind": "demo"}}}, auth=True)) as capi:
        good = issue_key(data_dir, CreateKey(label="good"))
        revoked = issue_key(data_dir, CreateKey(label="revoked"))
        assert isinstance(ask(data_dir, RevokeKey(revoked.id)), KeyAnswer)
        last = "B" if good.text[-2] != "B" else "C"
        tried = {
            "unknown": KEY_PREFIX + "A" * 52,
            "unknown again": KEY_PREFIX + "B" * 51 + "Q",
            "one letter off a good one": good.text[:-2] + last + good.text[-1],
            "revoked": revoked.text,
            "malformed": KEY_PREFIX + "a" * 52,
        }
        requests = {kind: HEAD.format(text).encode() for kind, text in tried.items()}
        times: dict[str, list[int]] = {kind: [] for kind in requests}
        forms = set()
        order = list(requests)
        dice = random.Random(SEED)
        for begin in range(0, WARM_UP + SAMPLES, ROUNDS_EACH):
            with socket.create_connection(("127.0.0.1", capi.port)) as stream:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number in range(begin, begin + ROUNDS_EACH):
                    dice.shuffle(order)
                    for kind in order:
                        took, answer = exchange(stream, requests[kind])
                        if number >= WARM_UP:
                            times[kind].append(took)
                            forms.add(same_form(answer))
    assert len(forms) == 1, forms
    assert next(iter(forms)).startswith(b"HTTP/1.1 401")
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratios = {kind: median / medians["unknown"] for kind, median in medians.items()}
    listed = ", ".join(f"{kind} {ratio:.4f}" for kind, ratio in ratios.items())
    tell(f"{SAMPLES} each, median of unknown {medians['unknown'] / 1000:.0f} us; ratios to it: {listed}")
    assert all(abs(ratio - 1) < MOST for ratio in ratios.values()), ratios
