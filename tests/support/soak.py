"""A gateway whose world never stays as it is, on trio's clock: what `tests/e2e/test_soak.py` puts together.

`Outside` is all that the gateway asks: GitHub, Copilot, a metered upstream and a free one, each with its faults. It
keeps the account that counts: which request was open where, from when until when. What an upstream does to a request
depends on the seed and the request's number alone, not on the order in which tasks happen to run.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import httpx
import msgspec
import trio
from attrs import define, field, frozen
from typing_extensions import override

from capi_core.credentials import Credential, find_credential
from capi_core.errors import Problem
from capi_core.identities import IdentityRecord
from capi_core.keys import KeyRecord, key_hash
from capi_trio.access import Access, OpenDoor
from capi_trio.demo.answers import Refused, Request, World, Write
from capi_trio.demo.app import IdCounter
from capi_trio.demo.github import Call, DemoGitHub
from capi_trio.storage.errors import IdentityNotFound
from capi_trio.upstream import Secret
from tests.support.fakes import DONE, chat_answer, chunk, finish

__all__ = ["BASE", "NOW", "Asked", "Caps", "KeyDoor", "Outside", "Shelf"]

NOW: Final = 1_800_000_000.0
BASE: Final = "http://127.0.0.1:4000"
_MARK: Final = re.compile(rb"ask-(\d{6})")
_SETTLING_S: Final = 90.0
"""How long a request may go on that was let in under a larger cap."""


@define(eq=False)
class Asked:
    """One request as an upstream saw it. `closed_at`: None, it is open."""

    number: int
    label: str
    began: float
    closed_at: float | None = None


class Caps:
    """How many requests each identity may have in flight, now and a short while ago."""

    def __init__(self) -> None:
        self._told: dict[str, list[tuple[float, float]]] = {}

    def set(self, label: str, cap: float) -> None:
        """From now on; `math.inf`: no cap."""
        self._told.setdefault(label, []).append((trio.current_time(), cap))

    def allowed(self, label: str) -> float:
        """The largest cap under which a request may have been let in that is open now."""
        since = trio.current_time() - _SETTLING_S
        told = self._told[label]
        first = max((i for i, (at, _) in enumerate(told) if at <= since), default=0)
        return max(cap for _, cap in told[first:])


Step = bytes | float | httpx.HTTPError


class _Body(httpx.AsyncByteStream):
    """Not a generator: one that is left early would have to be closed by somebody."""

    def __init__(self, steps: Iterable[Step], closed: Callable[[], None]) -> None:
        self._steps = iter(steps)
        self._closed = closed

    @override
    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for step in self._steps:
            match step:
                case bytes():
                    return step
                case httpx.HTTPError():
                    raise step
                case _:
                    await trio.sleep(step)
        raise StopAsyncIteration

    @override
    async def aclose(self) -> None:
        self._closed()


@frozen
class _Plan:
    """What an upstream does: its head after so many seconds (an exception instead of it), then the steps of a body."""

    head_s: float = 0.05
    failure: httpx.HTTPError | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    steps: tuple[Step, ...] = ()


_SSE: Final = (("content-type", "text/event-stream"),)
_JSON: Final = (("content-type", "application/json"),)
_ERROR: Final = b'{"error":{"message":"m","type":"t","code":"c","param":null}}'


def _sound(rng: random.Random, *, stream: bool, slow: float = 0.3) -> _Plan:
    head_s = rng.uniform(0.01, 2)
    if not stream:
        return _Plan(head_s, headers=_JSON, steps=(rng.uniform(0, slow), msgspec.json.encode(chat_answer())))
    steps: list[Step] = []
    for number in range(rng.randint(1, 12)):
        steps += [rng.uniform(0, slow), chunk(f"{number} ")]
    return _Plan(head_s, headers=_SSE, steps=(*steps, finish(), DONE))


def _error(rng: random.Random, status: int, retry_after: int | None = None) -> _Plan:
    pause = () if retry_after is None else (("retry-after", str(retry_after)),)
    return _Plan(rng.uniform(0.01, 1), status=status, headers=(*_JSON, *pause), steps=(_ERROR,))


def _plan(rng: random.Random, *, stream: bool) -> _Plan:
    """Three of four go well."""
    sound = _sound(rng, stream=stream, slow=rng.choice((0.1, 0.3, 3.0)))
    half = sound.steps[: len(sound.steps) // 2]
    reset = httpx.ReadError("reset")
    faults: tuple[_Plan, ...] = (
        _error(rng, 429, rng.randint(1, 4)),
        _error(rng, 429),
        _error(rng, 503, rng.randint(1, 4)),
        _error(rng, 500),
        _error(rng, 403),
        _error(rng, 400),
        _Plan(failure=httpx.ConnectError("refused")),
        _Plan(failure=httpx.ConnectTimeout("no route")),
        _Plan(rng.uniform(0, 2), failure=reset),
        _Plan(rng.uniform(0, 2), failure=httpx.RemoteProtocolError("no HTTP")),
        _Plan(math.inf),
        _Plan(sound.head_s, headers=sound.headers, steps=(*half, math.inf)),
        _Plan(sound.head_s, headers=sound.headers, steps=(*half, reset)),
        _Plan(sound.head_s, headers=sound.headers, steps=half),
        _Plan(sound.head_s, headers=sound.headers, steps=(*sound.steps, math.inf)),
        _Plan(sound.head_s, headers=sound.headers, steps=(*sound.steps, reset)),
        _Plan(headers=(("content-type", "text/html"),), steps=(b"<html>",)),
        _Plan(headers=sound.headers, steps=(b"data: garbage\n\n",)),
    )
    return sound if rng.random() < 0.75 else rng.choice(faults)


class Outside(httpx.AsyncBaseTransport):
    """Everything that the gateway asks. `asked` has each request to a model; `faults` what must never be."""

    def __init__(self, seed: int) -> None:
        self.github = DemoGitHub(base_url=BASE)
        self.github.entitlement = 1_000_000
        self.caps = Caps()
        self.asked: list[Asked] = []
        self.in_flight: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.faults: list[str] = []
        self.unauthorized = 0
        self._seed = seed
        self._attempts: Counter[int] = Counter()
        self._riders: dict[str, str] = {}  # GitHub token by Copilot token
        self._logins: dict[str, str] = {}
        self._world = World(lambda: NOW + trio.current_time(), IdCounter(), 0.0)

    def link(self, token: str, login: str) -> None:
        """An account, and a GitHub token of it."""
        self.github.link(token, login)
        self._logins[token] = login

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if request.url.host == "127.0.0.1":
            headers = tuple((name.lower(), value) for name, value in request.headers.raw)
            asked = Request(request.method, request.url.path, headers, body)
            if request.url.path.startswith(("/login", "/user", "/copilot_internal")):
                return await self._github(asked)
            try:
                self.github.admit(asked, self._world.clock())
            except Refused as refused:
                await trio.sleep(0.05)
                self.unauthorized += 1
                return httpx.Response(refused.problem.status, stream=httpx.ByteStream(b"{}"))
            return await self._model(f"gh:{self._logins[self._riders[_bearer(asked)]]}", body)
        return await self._model(request.url.host.partition(".")[0], body)

    async def _github(self, asked: Request) -> httpx.Response:
        await trio.sleep(0.1)
        answer = self.github.answer(asked, self._world)
        assert answer is not None, f"{asked.path} is not GitHub's"
        await trio.sleep(answer.delay_s)
        body = b"".join(step.data for step in answer.steps if isinstance(step, Write))
        if asked.path == Call.COPILOT_TOKEN.value[1] and answer.status == 200 and answer.sound:
            self._riders[msgspec.json.decode(body, type=dict[str, object])["token"]] = _bearer(asked)  # type: ignore[index]  # a text
        return httpx.Response(answer.status, headers=[*answer.headers], stream=httpx.ByteStream(body))

    async def _model(self, label: str, body: bytes) -> httpx.Response:
        mark = _MARK.search(body)
        assert mark is not None
        number = int(mark[1])
        self._attempts[number] += 1
        rng = random.Random(f"{self._seed} {number} {self._attempts[number]}")
        plan = _plan(rng, stream=b'"stream":true' in body)
        asked = self._begin(number, label)
        try:
            await trio.sleep(plan.head_s)
            if plan.failure is not None:
                raise plan.failure
        except BaseException:
            self._end(asked)
            raise
        stream = _Body(plan.steps, lambda: self._end(asked))
        return httpx.Response(plan.status, headers=list(plan.headers), stream=stream)

    def _begin(self, number: int, label: str) -> Asked:
        asked = Asked(number, label, trio.current_time())
        self.asked.append(asked)
        self.in_flight[label] += 1
        self.peak[label] = max(self.peak[label], self.in_flight[label])
        if self.in_flight[label] > self.caps.allowed(label):
            self.faults.append(f"{label}: {self.in_flight[label]} in flight at {trio.current_time():.3f}")
        return asked

    def _end(self, asked: Asked) -> None:
        if asked.closed_at is None:
            asked.closed_at = trio.current_time()
            self.in_flight[asked.label] -= 1


def _bearer(request: Request) -> str:
    return (request.header(b"authorization") or b"").decode().partition(" ")[2]


@define(eq=False)
class Shelf:
    """Identities in memory, in the place of `IdentityBook`."""

    records: dict[str, IdentityRecord] = field(factory=dict)
    tokens: dict[str, str] = field(factory=dict)
    _watchers: list[Callable[[tuple[IdentityRecord, ...]], None]] = field(factory=list)

    def live(self) -> tuple[IdentityRecord, ...]:
        return tuple(self.records[name] for name in sorted(self.records))

    async def token(self, name: str) -> Secret:
        await trio.lowlevel.checkpoint()
        if name not in self.tokens:
            raise IdentityNotFound(name)
        return Secret(self.tokens[name])

    def watch(self, watcher: Callable[[tuple[IdentityRecord, ...]], None]) -> None:
        self._watchers.append(watcher)
        watcher(self.live())

    def put(self, record: IdentityRecord) -> None:
        self.records[record.name] = record
        self._tell()

    def drop(self, name: str) -> None:
        del self.records[name]
        self._tell()

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher(self.live())


class KeyDoor(OpenDoor):
    """Whose key it is, by its text."""

    def __init__(self, keys: Mapping[str, KeyRecord]) -> None:
        self._by_hash = {key_hash(text): key for text, key in keys.items()}

    @override
    def enter(self, headers: Iterable[tuple[bytes, bytes]], *, ip: str | None, admin: bool = False) -> Access | Problem:
        found = find_credential(headers)
        return Access(self._by_hash[found.hash]) if isinstance(found, Credential) else Problem(401, "no_key", "no key")
