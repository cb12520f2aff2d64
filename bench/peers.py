"""What is measured: each peer is an entry of one table, started as its users would start it.

To add one, say how it is started in front of an OpenAI-compatible upstream, and where it answers.
"""

from __future__ import annotations

import getpass
import grp
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import trio
from attrs import field, frozen

from bench.procfs import pinned
from bench.upstream import MODEL
from capi_core.keys import KeyDraft, Tier, format_key
from capi_trio.clock import now_ms
from capi_trio.keyring import CLI, Keyring
from capi_trio.storage.audit_writer import open_audit_writer
from capi_trio.storage.database import open_database
from capi_trio.storage.lock import DirectoryLock

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "PEERS",
    "Peer",
    "Process",
    "Site",
    "available",
    "free_port",
    "header_fields",
    "start_peer",
    "start_upstream",
]

_ALIAS: Final = "house-model"
_PATH: Final = "/v1/chat/completions"
_START_S: Final = 60.0
_POLL_S: Final = 0.005
_STOP_S: Final = 10.0


@frozen
class Site:
    """Where a peer runs: the port it must answer on, the upstream's root URL, and a folder of its own."""

    port: int
    upstream_url: str
    folder: Path


@frozen
class Peer:
    """`command` gives the arguments that start it, after writing what it needs; `None`: the upstream itself is asked.

    `reference` peers are there for scale and run in the first rounds only.
    """

    name: str
    command: Callable[[Site], list[str]] | None
    reference: bool = False
    program: str | None = None
    """A program that must be on this machine."""
    model: str = MODEL
    headers: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)


def _relay(site: Site) -> list[str]:
    return [sys.executable, "-m", "bench.relay", str(site.port), site.upstream_url]


def _capi(site: Site) -> list[str]:
    """With everything on: auth, audit, log. The keys are made beforehand, from bytes that the load generator knows."""
    trio.run(_make_keys, site.folder)
    upstream = {"kind": "openai", "base_url": f"{site.upstream_url}/v1", "api_key_env": "BENCH_UPSTREAM_KEY"}
    config = {
        "version": 1,
        "upstreams": {"bench": upstream},
        "models": {_ALIAS: {"upstream": MODEL}},
        "limits": {"requests_per_minute": 1_000_000},
    }
    (site.folder / "config.json").write_bytes(msgspec.json.encode(config))
    return [sys.executable, "-m", "capi_trio.cli", "start", "--port", str(site.port), "--data-dir", str(site.folder)]


async def _make_keys(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        lock = stack.enter_context(DirectoryLock.take(folder))
        database = await stack.enter_async_context(open_database(lock))
        await stack.enter_async_context(open_audit_writer(database, lock))
        for tier, secret in ((Tier.ADMIN, b"\x01"), (Tier.CLIENT, b"\x02")):
            keyring = Keyring(database, now_ms=now_ms, random_bytes=secret.__mul__, default_rpm=lambda: 1)
            await keyring.create(KeyDraft(label=tier.value, tier=tier), CLI)


_NGINX_CONF: Final = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 32m;
    upstream model {{
        server {upstream};
        keepalive 256;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def _nginx(site: Site) -> list[str]:
    # As root it would give its worker, and the folders above, to another user.
    user = f"user {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name};" if os.getuid() == 0 else ""
    conf = site.folder / "nginx.conf"
    conf.write_text(
        _NGINX_CONF.format(folder=site.folder, user=user, port=site.port, upstream=urlsplit(site.upstream_url).netloc)
    )
    return [_find("nginx") or "nginx", "-e", str(site.folder / "error.log"), "-c", str(conf)]


_KEY: Final = {"BENCH_UPSTREAM_KEY": "sk-bench-not-a-secret"}
_AUTH: Final = ("authorization: Bearer " + format_key(b"\x02" * 32),)

PEERS: Final = (
    Peer("direct", None, reference=True),
    Peer("nginx", _nginx, reference=True, program="nginx"),
    Peer("relay", _relay),
    Peer("capi", _capi, environment=_KEY, headers=_AUTH),
    Peer("capi+alias", _capi, environment=_KEY, headers=_AUTH, model=_ALIAS),
)
"""Of those that are no references, the first is what the others are compared with."""


def available() -> list[Peer]:
    """The peers that this machine has."""
    return [peer for peer in PEERS if peer.program is None or _find(peer.program)]


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running process that answers; a context manager that ends it."""

    def __init__(self, argv: list[str], *, environment: Mapping[str, str], core: int | None, log: Path) -> None:
        self.started_s = 0.0
        self._began = time.monotonic()
        self._log = log
        with pinned(core), log.open("wb") as output:
            self._process = subprocess.Popen(
                argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_it_answers(self, url: str, model: str, headers: tuple[str, ...] = ()) -> None:
        """Asks until there is an answer; then `started_s` says how long that took.

        Raises `RuntimeError`, and ends the process, when none comes.
        """
        parts = urlsplit(url)
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        while not _answers(parts.netloc, parts.path, body, header_fields(headers)):
            if self._process.poll() is not None or time.monotonic() - self._began > _START_S:
                self.stop()
                raise RuntimeError(f"{self._process.args!r} does not answer:\n{self._log.read_text()[-2000:]}")
            time.sleep(_POLL_S)
        self.started_s = time.monotonic() - self._began

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def header_fields(headers: tuple[str, ...]) -> dict[str, str]:
    """`name: value` lines as a mapping."""
    return {name: value.strip() for name, _, value in (header.partition(":") for header in headers)}


def _answers(netloc: str, path: str, body: bytes, headers: Mapping[str, str]) -> bool:
    connection = http.client.HTTPConnection(netloc, timeout=_START_S)
    try:
        connection.request("POST", path, body, {"content-type": "application/json", **headers})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_upstream(folder: Path, *, events: int, gap_ms: float, core: int | None) -> tuple[Process, str]:
    """The upstream, and its root URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--events", str(events), "--gap-ms", str(gap_ms)]
    argv = [sys.executable, "-m", "bench.upstream", str(port), *options]
    process = Process(argv, environment={}, core=core, log=folder / "upstream.log")
    process.wait_until_it_answers(url + _PATH, MODEL)
    return process, url + _PATH


def start_peer(peer: Peer, upstream_url: str, folder: Path, *, core: int | None) -> tuple[Process, str]:
    """The peer, once it answers, and the URL at which it does. Its files are made in `folder`."""
    assert peer.command is not None
    folder.mkdir(mode=0o700)
    site = Site(free_port(), upstream_url.removesuffix(_PATH), folder)
    argv = peer.command(site)
    process = Process(argv, environment=peer.environment, core=core, log=folder / "output.log")
    url = f"http://127.0.0.1:{site.port}{_PATH}"
    process.wait_until_it_answers(url, peer.model, peer.headers)
    return process, url
