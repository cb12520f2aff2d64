"""What people see of records."""

import pytest

from capi_trio.cli.tables import columns, instant


def test_columns_are_as_wide_as_they_must_be_and_lines_have_no_spaces_at_their_end() -> None:
    assert columns([("A", "B"), ("long", ""), ("", "x")]) == "A     B\nlong\n      x"


def test_what_somebody_else_named_does_not_command_the_terminal() -> None:
    assert columns([("\x1b[2Jgpt", "a\nb\x9bc"), ("é", "x")]) == "?[2Jgpt  a?b?c\né        x"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01 00:00:00Z"),
        (1_790_000_000_999, "2026-09-21 14:13:20Z"),
        (1_709_164_800_000, "2024-02-29 00:00:00Z"),
    ],
)
def test_an_instant_is_in_utc_to_the_second(ms: int, text: str) -> None:
    assert instant(ms) == text
