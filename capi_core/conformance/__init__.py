"""What a legal event stream is: one automaton per protocol, to which our own streams and any gateway's can be held.

    checker = checker_for(Protocol.MESSAGES)
    checker.receive_data(data)      # any chunking
    checker.finish()                # the stream is over
    checker.violations

MUST: an official SDK fails on it, or a client gets a wrong answer. SHOULD: SDKs tolerate it, the protocol's own server
never does it (wire.md 1.7). What a checker holds is bounded: lengths and digests stand for texts.
"""

from __future__ import annotations

from capi_core.conformance.checker import RULES, StreamChecker, checker_for
from capi_core.conformance.rules import Rule, Severity, Violation

__all__ = ["RULES", "Rule", "Severity", "StreamChecker", "Violation", "checker_for"]
