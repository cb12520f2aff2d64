"""Who may import whom, and what the pure core may touch.

Two checkers: import-linter holds the contracts in pyproject.toml, which see imports through third modules; the
walk over the syntax trees below holds what a graph of modules cannot tell, down to single names and calls.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import importlinter.api  # noqa: F401  (importing it configures the application that the next line imports)
import pytest
from importlinter.application import use_cases

ROOT = Path(__file__).parent.parent
PACKAGES = ("capi_core", "capi_trio", "capi_admin")

# The pure subset of the standard library: no clock, randomness, files, sockets, threads, environment, logging.
CORE_MAY_IMPORT: Final = """
    __future__ abc base64 binascii bisect codecs collections contextlib copy datetime decimal enum fractions
    functools hashlib heapq hmac html ipaddress itertools json math operator re string struct textwrap types
    typing unicodedata urllib.parse
    attrs msgspec typing_extensions capi_core
"""
# Named although they are not in the list above, so that widening it by mistake still fails.
CORE_NEVER_IMPORTS: Final = """
    asyncio trio anyio socket ssl select threading multiprocessing subprocess sqlite3 os pathlib tempfile time
    random secrets logging http urllib.request
"""
CORE_NEVER_CALLS: Final = "open print input breakpoint eval exec compile __import__"
# datetime may format an instant that it was given; asking for the present one is a clock.
CLOCK_METHODS: Final = frozenset({"now", "utcnow", "today"})

# What only some modules may import: the seam behind which it can be replaced.
SEAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "httpx": ("capi_trio.upstream",),
    "httpcore": ("capi_trio.upstream",),
    "hypercorn": ("capi_trio.connection",),
    "capi_admin": ("capi_trio.cli", "capi_admin"),
}
# ASGI's types are a vocabulary, not the server: free for all of the runtime.
SEAM_EXCEPTIONS: Final = ("hypercorn.typing",)


def modules() -> Iterator[tuple[str, str]]:
    """Dotted name and source of each module of the project's packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()


def within(name: str, *roots: str) -> bool:
    """Whether `name` is one of `roots` or lies below one."""
    return any(name == root or name.startswith(root + ".") for root in roots)


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, int]]:
    """Each imported name in full, with its line; relative imports are resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: -(node.level - 1) or None] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{prefix}.{alias.name}", node.lineno


def core_violations(module: str, source: str) -> list[str]:
    """What in this source makes the core impure; empty when it is pure."""
    tree = ast.parse(source)
    package = module.rpartition(".")[0] or module
    found = [
        f"{module}:{line}: imports {name}"
        for name, line in imports(tree, package)
        if not within(name, *CORE_MAY_IMPORT.split()) or within(name, *CORE_NEVER_IMPORTS.split())
    ]
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in CORE_NEVER_CALLS.split():
                found.append(f"{module}:{node.lineno}: calls {name}()")
            case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id=owner) | ast.Attribute(attr=owner))):
                if name in CLOCK_METHODS and owner in ("datetime", "date"):
                    found.append(f"{module}:{node.lineno}: reads the clock by {owner}.{name}()")
            case ast.AsyncFunctionDef() | ast.Await():
                found.append(f"{module}:{node.lineno}: is asynchronous")
            case _:
                pass
    return found


def seam_violations(module: str, source: str) -> list[str]:
    """Which imports of this source are kept to other modules by `SEAMS`; empty when none is."""
    package = module.rpartition(".")[0] or module
    return [
        f"{module}:{line}: imports {name}, which is kept to {', '.join(allowed)}"
        for name, line in imports(ast.parse(source), package)
        for root, allowed in SEAMS.items()
        if within(name, root) and not within(name, *SEAM_EXCEPTIONS) and not within(module, *allowed)
    ]


def test_contracts_in_pyproject_are_kept() -> None:
    """The layers, and what may not know what: see [tool.importlinter]."""
    # By its use case and not by its command: the command reconfigures this process's logging.
    assert use_cases.lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None, no_logo=True)


def test_core_is_pure() -> None:
    """capi_core embeds anywhere: it touches nothing but its arguments."""
    core = ((module, source) for module, source in modules() if within(module, "capi_core"))
    assert [violation for module, source in core for violation in core_violations(module, source)] == []


def test_replaceable_parts_stay_behind_their_seams() -> None:
    """One module builds HTTP clients, one drives the server below its API, one mounts the admin plane."""
    assert [violation for module, source in modules() for violation in seam_violations(module, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "import http.client",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import requests",
        "from capi_trio import app",
        "from ..capi_trio import app",
        "def f():\n    import time",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now(datetime.UTC)",
        "open('x')",
        "print('x')",
        "__import__('os')",
        "async def f(): ...",
    ],
)
def test_the_purity_checker_sees(source: str) -> None:
    """Each way to be impure that it is there to catch."""
    assert len(core_violations("capi_core.sse", source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import re, urllib.parse",
        "from urllib import parse",
        "from collections.abc import Iterator",
        "from . import errors",
        "from .errors import ProtocolError",
        "import msgspec\nfrom attrs import frozen",
        "from datetime import UTC, datetime\ndatetime.fromtimestamp(0, UTC)",
        "class Reader:\n    def open(self): ...\nReader().open()",
    ],
)
def test_the_purity_checker_allows(source: str) -> None:
    """What pure code needs."""
    assert core_violations("capi_core.sse", source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("capi_trio.relay", "import httpx"),
        ("capi_trio.relay", "from httpx import AsyncClient"),
        ("capi_trio.upstream_pool", "import httpx"),
        ("capi_trio.app", "from hypercorn.config import Config"),
        ("capi_trio.app", "from hypercorn import trio"),
        ("capi_trio.app", "import capi_admin.app"),
        ("capi_core.sse", "def f():\n    from capi_admin import app"),
    ],
)
def test_the_seam_checker_sees(module: str, source: str) -> None:
    """An import on the wrong side of a seam."""
    assert len(seam_violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("capi_trio.upstream", "import httpx"),
        ("capi_trio.connection", "from hypercorn.trio.tcp_server import TCPServer"),
        ("capi_trio.app", "from hypercorn.typing import Scope"),
        ("capi_trio.cli", "from capi_admin.app import build"),
        ("capi_trio.cli.start", "from capi_admin.app import build"),
        ("capi_admin.app", "from capi_admin import pages"),
    ],
)
def test_the_seam_checker_allows(module: str, source: str) -> None:
    """The right side of each seam."""
    assert seam_violations(module, source) == []
