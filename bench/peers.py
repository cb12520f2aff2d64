"""What is measured: each peer is an entry of one table, started as its users would start it.

To add one, say how it is started in front of an OpenAI-compatible upstream, and where it answers.
"""

from __future__ import annotations

import contextlib
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
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
from attrs import field, frozen

from bench.procfs import pinned
from bench.upstream import MODEL

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PEERS", "Launch", "Peer", "Process", "Site", "available", "free_port", "start_peer", "start_upstream"]

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
class Launch:
    """How a peer is started once its files are written, and what its clients must send."""

    argv: list[str]
    environment: Mapping[str, str] = field(factory=dict)
    headers: tuple[str, ...] = ()


@frozen
class Peer:
    """`prepare` writes what the peer needs and says how it is started; `None`: the upstream itself is asked.

    `reference` peers are there for scale and run in the first rounds only.
    """

    name: str
    prepare: Callable[[Site], Launch] | None
    reference: bool = False
    program: str | None = None
    """A program that must be on this machine."""
    model: str = MODEL


def _relay(site: Site) -> Launch:
    return Launch([sys.executable, "-m", "bench.relay", str(site.port), site.upstream_url])


def _capi(site: Site) -> Launch:
    """As an operator sets it up: keys, an alias, an upstream with a key and a model list. Logs go to a file.

    The limit on requests is in force, and wide enough for a load that no person makes.
    """
    upstream = {"kind": "openai", "base_url": f"{site.upstream_url}/v1", "api_key_env": "BENCH_UPSTREAM_KEY"}
    config = {
        "version": 1,
        "upstreams": {"bench": upstream},
        "models": {_ALIAS: {"upstream": MODEL}},
        "limits": {"requests_per_minute": 1_000_000},
    }
    file = site.folder / "config.json"
    file.write_bytes(msgspec.json.encode(config))
    file.chmod(0o600)
    capi = [sys.executable, "-m", "capi_trio.cli"]
    where = ["--data-dir", str(site.folder)]
    keys = {tier: site.folder / f"{tier}.key" for tier in ("admin", "client")}  # no admin key: nothing would be served
    for tier, key_file in keys.items():
        create = [*capi, "keys", "create", tier, "--tier", tier, "--key-file", str(key_file), *where]
        subprocess.run(create, check=True, capture_output=True)
    return Launch(
        [*capi, "start", "--port", str(site.port), *where],
        environment={"BENCH_UPSTREAM_KEY": "sk-bench-not-a-secret"},
        headers=(f"authorization: Bearer {keys['client'].read_text().strip()}",),
    )


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


def _nginx(site: Site) -> Launch:
    # As root it would give its worker, and the folders above, to another user.
    user = f"user {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name};" if os.getuid() == 0 else ""
    conf = site.folder / "nginx.conf"
    conf.write_text(
        _NGINX_CONF.format(folder=site.folder, user=user, port=site.port, upstream=urlsplit(site.upstream_url).netloc)
    )
    return Launch([_find("nginx") or "nginx", "-e", str(site.folder / "error.log"), "-c", str(conf)])


PEERS: Final = (
    Peer("direct", None, reference=True),
    Peer("nginx", _nginx, reference=True, program="nginx"),
    Peer("relay", _relay),
    Peer("capi", _capi),
    Peer("capi+alias", _capi, model=_ALIAS),
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
    """A running process that answers; a context manager that ends it. `url` is where, `headers` what it wants."""

    def __init__(self, launch: Launch, url: str, *, core: int | None, log: Path) -> None:
        self.url = url
        self.headers = launch.headers
        self.started_s = 0.0
        self._began = time.monotonic()
        self._log = log
        with pinned(core), log.open("wb") as output:
            self._process = subprocess.Popen(
                launch.argv,
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_it_answers(self, model: str) -> None:
        """Asks until there is an answer; then `started_s` says how long that took.

        Raises `RuntimeError`, and ends the process, when none comes.
        """
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        while self.post(body) != 200:
            if self._process.poll() is not None or time.monotonic() - self._began > _START_S:
                self.stop()
                raise RuntimeError(f"{self._process.args!r} does not answer:\n{self._log.read_text()[-2000:]}")
            time.sleep(_POLL_S)
        self.started_s = time.monotonic() - self._began

    def post(self, body: bytes) -> int:
        """The status of the answer to a request; 0 if there is none."""
        parts = urlsplit(self.url)
        headers = dict(header.split(": ", 1) for header in self.headers)
        with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=_START_S)) as connection:
            try:
                connection.request("POST", parts.path, body, {"content-type": "application/json", **headers})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return 0
            return answer.status

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


def start_upstream(folder: Path, *, events: int, gap_ms: float, core: int | None) -> Process:
    """The upstream, once it answers."""
    port = free_port()
    argv = [sys.executable, "-m", "bench.upstream", str(port), "--events", str(events), "--gap-ms", str(gap_ms)]
    process = Process(Launch(argv), f"http://127.0.0.1:{port}{_PATH}", core=core, log=folder / "upstream.log")
    process.wait_until_it_answers(MODEL)
    return process


def start_peer(peer: Peer, upstream: Process, folder: Path, *, core: int | None) -> Process:
    """The peer, once it answers. Its files are made in `folder`."""
    assert peer.prepare is not None
    folder.mkdir(mode=0o700)
    site = Site(free_port(), upstream.url.removesuffix(_PATH), folder)
    launch = peer.prepare(site)
    process = Process(launch, f"http://127.0.0.1:{site.port}{_PATH}", core=core, log=folder / "output.log")
    process.wait_until_it_answers(peer.model)
    return process
