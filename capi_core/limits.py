"""Requests per minute: one token bucket for each key, as a pure machine with the clock passed in.

Theory of operation. A bucket is kept as a meter that fills by one with each granted request and drains at the rate; a
request is granted when it still fits under the brim. That is the token bucket seen from the other side (tokens = brim
- level), and a change of the rate needs no conversion: what was used stays used, the brim and the drain move at once.

The brim is a whole minute's worth of requests. A key that was idle may use its minute at once, as agents do when they
fan out; how many of these run at the same time is the in-flight gate's business, not this one's. In any window of W
seconds a key thus gets at most `rpm * (1 + W / 60)` requests, and its long-term rate is exact.

The clock must be monotonic. Should it go back all the same, the meter stands still until the clock is again where it
was: time that has drained the meter once never does so again.
"""

import math
from collections import OrderedDict
from typing import Final

from attrs import frozen

from capi_core.errors import LocalError, Problem

__all__ = ["Buckets", "Granted", "RetryAfter", "TokenBucket", "problem_rate_limited"]

_CLOCK_SLACK_S: Final = 1e-4
"""A float that counts seconds for years is exact to 1e-7. Without slack, a client that waited exactly as long as it was
told could be refused again for the last digit."""


@frozen
class Granted:
    """The request may go on, and was counted."""


@frozen
class RetryAfter:
    """The request is refused, and was not counted. Asked again after `seconds` (1 to 60), one is granted."""

    seconds: int


_GRANTED: Final = Granted()


class TokenBucket:
    """Grants `rpm` requests per minute, and as many at once after a minute of silence. `rpm` is at least 1."""

    def __init__(self, rpm: int) -> None:
        self._rpm = _positive(rpm)
        self._level = 0.0  # requests that have not drained away yet: never below 0, never above the brim
        self._at = -math.inf  # the latest instant seen

    @property
    def rpm(self) -> int:
        """Requests per minute: the drain, and the brim."""
        return self._rpm

    def set_rpm(self, rpm: int) -> None:
        """Changes the rate from now on. Requests that were granted keep counting. Raises `LocalError` below 1."""
        self._rpm = _positive(rpm)
        self._level = min(self._level, rpm)

    def take(self, now: float) -> Granted | RetryAfter:
        """Asks for one request at `now`, in seconds of a monotonic clock. Raises `LocalError` when not finite."""
        if not math.isfinite(now):
            raise LocalError("the clock must be a finite number of seconds")
        if now > self._at:
            self._level = max(0.0, self._level - (now - self._at) * self._rpm / 60)
            self._at = now
        wait = (self._level + 1 - self._rpm) * 60 / self._rpm
        if wait <= _CLOCK_SLACK_S:
            self._level = min(self._level + 1, self._rpm)
            return _GRANTED
        return RetryAfter(math.ceil(wait - _CLOCK_SLACK_S / 2))


class Buckets:
    """A bucket for each key, made when first asked for. At most `capacity` of them: the longest unused goes first.

    A bucket unused for a minute is empty, so dropping it changes nothing. Only with more than `capacity` keys active
    within one minute does a dropped key start anew; the alternative is memory that callers can make grow.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise LocalError("without room for a bucket, nothing would be limited")
        self._capacity = capacity
        self._by_key: OrderedDict[str, TokenBucket] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, key_id: str, rpm: int, now: float) -> Granted | RetryAfter:
        """Asks for one request of this key at `now` (monotonic seconds), at today's `rpm`, which may have changed.

        Raises `LocalError` when `rpm` is below 1 or `now` is not finite.
        """
        bucket = self._by_key.get(key_id)
        if bucket is None:
            bucket = self._by_key[key_id] = TokenBucket(rpm)
        elif bucket.rpm != rpm:
            bucket.set_rpm(rpm)
        self._by_key.move_to_end(key_id)
        if len(self._by_key) > self._capacity:
            self._by_key.popitem(last=False)
        return bucket.take(now)


def problem_rate_limited(rpm: int, refused: RetryAfter) -> Problem:
    """What a caller over its rate is told: 429 with `retry-after` (RFC 6585 section 4)."""
    return Problem(
        429,
        "rate_limit_exceeded",
        f"this key may make {rpm} requests per minute; retry in {refused.seconds} s",
        retry_after_s=refused.seconds,
    )


def _positive(rpm: int) -> int:
    if rpm < 1:
        raise LocalError("a rate limit is at least one request per minute")
    return rpm
