"""What pytest-trio offers to import; the package itself ships no types."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["trio_fixture"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

def trio_fixture(func: Callable[_P, _R]) -> Callable[_P, _R]: ...
