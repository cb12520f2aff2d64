"""What the end-to-end tests share: one `capi demo`, and processes of their own.

None of them may log a fault of its own code.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.process import Capi, demo, gateway

Start = Callable[[Mapping[str, object]], AbstractContextManager[Capi]]


@contextmanager
def faultless(running: AbstractContextManager[Capi]) -> Iterator[Capi]:
    with running as capi:
        yield capi
    assert capi.faults == []


@pytest.fixture(scope="session")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Capi]:
    """A `capi demo` that all tests of a run share: for tests that leave it as they found it."""
    with faultless(demo(tmp_path_factory.mktemp("demo"))) as capi:
        yield capi


@pytest.fixture
def start_demo(tmp_path: Path) -> Callable[[], AbstractContextManager[Capi]]:
    """Starts a `capi demo` of the test's own: `with start_demo() as capi:`."""
    return lambda: faultless(demo(tmp_path / "demo"))


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a gateway with the given configuration: `with start({...}) as capi:`."""
    return lambda config: faultless(gateway(tmp_path / "capi", config))
