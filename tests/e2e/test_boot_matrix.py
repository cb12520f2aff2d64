"""Who may listen where, in every combination, and replicas that start at the same moment: A7, A9, A10.

CAPI_FULL=1 tries every combination by the real command line, the default each tenth.
"""

import itertools
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import msgspec

from capi_core.audit import Action
from capi_core.keys import Tier
from capi_trio.bootstrap import ADMIN_KEY_NAME
from capi_trio.control import ask
from capi_trio.operations import CreateKey, KeysAnswer, ListKeys
from capi_trio.storage.audit_log import read_lines
from tests.capi_trio.storage.conftest import PostgresServer, postgres_server
from tests.e2e.conftest import faultless
from tests.support.process import Capi, gateway, issue_key
from tests.support.scale import FULL, tell

__all__ = ["postgres_server"]

DEMO: Final = {"demo": {"kind": "demo"}}
RISK: Final = "--i-accept-account-suspension-risk"
PROXY: Final = ("--trusted-proxy", "10.0.0.0/8")
LOCAL: Final = ("127.0.0.1", "localhost")
HOSTS: Final = (*LOCAL, "0.0.0.0", "::")  # noqa: S104 - what is tested is that it needs more than a word
DOORS: Final = ("auth", "flag", "config")
FLAGS: Final = ((), (RISK,), PROXY, (RISK, *PROXY))
CELLS: Final = list(itertools.product(HOSTS, DOORS, FLAGS))


def allowed(host: str, door: str, flags: tuple[str, ...]) -> bool:
    """Off this machine: auth, or the risk accepted; and never in clear text, for which a proxy answers here."""
    return host in LOCAL or ((door == "auth" or RISK in flags) and PROXY[0] in flags)


def test_who_may_listen_where(tmp_path: Path) -> None:
    cells = CELLS if FULL else CELLS[::10] + CELLS[-1:]
    for number, (host, door, flags) in enumerate(cells):
        data_dir = tmp_path / f"{number}"
        data_dir.mkdir(mode=0o700)
        config: Mapping[str, object] = {"upstreams": DEMO, "features": {"auth": door != "config"}}
        (data_dir / "config.json").write_bytes(msgspec.json.encode(config))
        options = ("--no-auth",) if door == "flag" else ()
        capi = Capi("start", "--host", host, "--port", "0", "--data-dir", str(data_dir), *options, *flags)
        try:
            capi.wait_for(lambda capi=capi: not capi.alive or bool(capi.events("listening")), 20)  # type: ignore[misc]  # binds it
            served = bool(capi.events("listening"))
            assert served == allowed(host, door, flags), (host, door, flags, capi.text)
            if served:
                assert capi.events("listening")[0]["auth_mode"] == ("on" if door == "auth" else "off")
                capi.send_signal(signal.SIGTERM)
            assert capi.wait() == (0 if served else 2)
        finally:
            capi.close()
        assert (data_dir / "capi.db").exists() == served
    tell(f"{len(cells)} of {len(CELLS)} combinations: each as the table says")


def test_a_client_key_reaches_nothing_of_an_admin(tmp_path: Path) -> None:
    """There are no routes for admins over HTTP: what looks like one is not there, for nobody."""
    with faultless(gateway(tmp_path, {"upstreams": DEMO}, auth=True)) as capi:
        key = issue_key(tmp_path, CreateKey(label="client"))
        paths = ("/admin", "/admin/", "/admin/keys", "/v1/admin", "//admin", "/%61dmin", "/keys", "/config", "/metrics")
        with httpx.Client(timeout=10) as client:
            for path, method in itertools.product(paths, ("GET", "POST", "PUT", "DELETE", "PATCH")):
                for held in (key.text, capi.admin_key or ""):
                    status = client.request(method, capi.url + path, headers={"x-api-key": held}).status_code
                    assert status in {400, 404, 405}, (method, path, status)
                assert client.request(method, capi.url + path).status_code in {400, 401}
    tell(f"{len(paths) * 5} routes: nothing served")


def test_of_two_replicas_that_start_at_once_one_makes_the_admin_key(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """On one new PostgreSQL database: both serve, both know the one key, and one of them has it in its file."""
    url = postgres_server.new_database()
    directories = [tmp_path / "one", tmp_path / "two"]
    replicas = [
        Capi("start", "--port", "0", "--data-dir", str(directory), "--database", url) for directory in directories
    ]
    try:
        for capi in replicas:
            capi.wait_ready()
        files = [directory / ADMIN_KEY_NAME for directory in directories if (directory / ADMIN_KEY_NAME).exists()]
        assert len(files) == 1
        key = files[0].read_text().strip()
        os.unlink(files[0])
        for capi in replicas:
            assert httpx.get(f"{capi.url}/v1/models", headers={"x-api-key": key}).status_code == 200
        for directory in directories:
            answer = ask(directory, ListKeys())
            assert isinstance(answer, KeysAnswer)
            assert [found.tier for found in answer.keys] == [Tier.ADMIN.value]
        for capi in replicas:
            capi.terminate()
            assert capi.wait() == 0
            assert capi.faults == []
    finally:
        for capi in replicas:
            capi.close()
    lines = b"".join(itertools.chain(*(read_lines(directory) for directory in directories)))
    assert lines.count(Action.AUTH_BOOTSTRAP.value.encode()) == 1
