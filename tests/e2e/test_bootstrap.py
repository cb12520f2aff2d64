"""The first start, and who may listen where: by the real command line, with a terminal and without one."""

import os
import pty
import shutil
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import httpx
import msgspec
import pytest
from attrs import frozen

from capi_core.audit import Action
from capi_core.keys import KEY_PREFIX, Tier, is_well_formed
from capi_trio.bootstrap import ADMIN_KEY_NAME
from capi_trio.control import ask
from capi_trio.operations import KeysAnswer, ListKeys
from capi_trio.storage.audit_log import read_lines
from tests.e2e.conftest import faultless
from tests.support.process import Capi, command, gateway

ROOT: Final = Path(__file__).parents[2]
DEMO: Final[Mapping[str, object]] = {"upstreams": {"demo": {"kind": "demo"}}}
PROCESSES: Final = 8
RISK: Final = "--i-accept-account-suspension-risk"
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - what is tested is that it needs more than a word


@contextmanager
def started(data_dir: Path, *arguments: str) -> Iterator[Capi]:
    """`capi start` as somebody runs it for the first time: nothing is prepared, nothing is taken away."""
    capi = Capi("start", "--port", "0", "--data-dir", str(data_dir), *arguments)
    try:
        capi.wait_ready()
        yield capi
    finally:
        capi.close()
    assert capi.faults == []


def status(capi: Capi, key: str | None = None, path: str = "/v1/models", **more: str) -> int:
    headers = more if key is None else {"x-api-key": key, **more}
    return httpx.get(capi.url + path, headers=headers).status_code


def stop(capi: Capi) -> None:
    capi.terminate()
    assert capi.wait() == 0


def audited(data_dir: Path, action: Action) -> list[Mapping[str, object]]:
    """The audit lines of that action."""
    lines = [msgspec.json.decode(line, type=dict[str, object]) for line in read_lines(data_dir)]
    return [line for line in lines if line["action"] == action.value]


def admins(data_dir: Path) -> int:
    """How many admin keys there are, revoked ones too, as the running server knows them."""
    answer = ask(data_dir, ListKeys())
    assert isinstance(answer, KeysAnswer)
    return sum(key.tier == Tier.ADMIN.value for key in answer.keys)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.iterdir()}


# -- the first admin key ----------------------------------------------------------------------------------------


def test_a_first_start_without_a_terminal(tmp_path: Path) -> None:
    """The key lies in a file for the operator alone; nothing but health is served until it was read and deleted.

    The next start makes no other, and lets no second server in beside it.
    """
    data_dir = tmp_path / "new" / "capi"
    key_file = data_dir / ADMIN_KEY_NAME
    with started(data_dir) as capi:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert {"capi.db", "capi.lock", "config.json", "control.sock", ADMIN_KEY_NAME} <= modes(data_dir).keys()
        assert set(modes(data_dir).values()) == {0o600}
        key = key_file.read_text().removesuffix("\n")
        assert is_well_formed(key)
        waiting = capi.log_line("admin_key_unread")
        assert waiting["path"] == str(key_file)
        assert [status(capi, path=path) for path in ("/healthz", "/readyz")] == [200, 503]
        for tried in (None, key, KEY_PREFIX + "A" * 52):
            sealed = httpx.get(f"{capi.url}/v1/models", headers={} if tried is None else {"x-api-key": tried})
            assert (sealed.status_code, sealed.json()["error"]["code"]) == (503, "admin_key_unread")
        key_file.unlink()
        assert [status(capi, path="/readyz"), status(capi), status(capi, key)] == [200, 401, 200]
        stop(capi)
    assert "sk-cap-" not in str(capi.logs) + str(capi.text) + str(capi.output)
    with started(data_dir) as again:
        second = command("start", "--port", "0", "--data-dir", str(data_dir))
        assert second.returncode == 1
        assert f"process {again.pid}" in second.stderr
        assert not key_file.exists()
        assert status(again, key) == 200
        assert admins(data_dir) == 1
        stop(again)
    assert set(modes(data_dir).values()) == {0o600}
    assert len(audited(data_dir, Action.AUTH_BOOTSTRAP)) == 1


def test_a_restart_before_the_key_was_read_keeps_it(tmp_path: Path) -> None:
    key_file = tmp_path / "capi" / ADMIN_KEY_NAME
    keys = []
    for _ in range(2):
        with started(tmp_path / "capi") as capi:
            keys.append(key_file.read_text().strip())
            assert status(capi, keys[0]) == 503
            assert admins(tmp_path / "capi") == 1
            if len(keys) == 2:
                key_file.unlink()
                assert status(capi, keys[0]) == 200
    assert keys[0] == keys[1]


class Terminal:
    """`capi start` whose standard output is a terminal. `shown` is what it has printed there so far."""

    def __init__(self, data_dir: Path) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(  # noqa: S603 - the program is our own
            [sys.executable, "-m", "capi_trio.cli", "start", "--port", "0", "--data-dir", str(data_dir)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
        )
        os.close(slave)
        self.shown = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: "stop with Ctrl-C" in self.shown, 20), self.shown

    def end(self) -> bytes:
        """Ends it; returns what it had to log."""
        self._process.terminate()
        log = self._process.communicate(timeout=10)[1]
        assert self._process.returncode == 0
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._reader.join(5)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the terminal's other side is closed
                return
            with self._news:
                self.shown += data.decode()
                self._news.notify_all()


def test_a_first_start_on_a_terminal_shows_the_key_once_and_writes_no_file(tmp_path: Path) -> None:
    data_dir = tmp_path / "capi"
    with Terminal(data_dir) as first:
        first.wait_ready()
        (key,) = [line.strip() for line in first.shown.splitlines() if "sk-cap-" in line]
        assert is_well_formed(key)
        url = first.shown.partition("is listening on ")[2].split()[0]
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).status_code == 200
        assert not (data_dir / ADMIN_KEY_NAME).exists()
        assert b"sk-cap-" not in first.end()
    with Terminal(data_dir) as again:
        again.wait_ready()
        assert "sk-cap-" not in again.shown
        assert b"sk-cap-" not in again.end()
    assert len(audited(data_dir, Action.AUTH_BOOTSTRAP)) == 1


def test_a_lost_admin_key_is_recovered_while_the_server_runs_and_while_it_does_not(tmp_path: Path) -> None:
    data_dir = tmp_path / "capi"
    files = [tmp_path / "first", tmp_path / "second"]
    recover = ("admin", "recover", "--data-dir", str(data_dir), "--key-file")
    with faultless(gateway(data_dir, DEMO, auth=True)) as capi:
        assert command(*recover, str(files[0])).returncode == 0
        assert status(capi, files[0].read_text().strip()) == 200
        assert command(*recover, str(files[0])).returncode == 2  # a file that is there is not overwritten
        stop(capi)
    assert command(*recover, str(files[1])).returncode == 0
    with faultless(gateway(data_dir, None, auth=True)) as capi:
        assert [status(capi, file.read_text().strip()) for file in files] == [200, 200]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert len(audited(data_dir, Action.AUTH_RECOVER)) == 2


def test_of_eight_first_starts_at_once_one_serves_and_there_is_one_admin_key(tmp_path: Path) -> None:
    data_dir = tmp_path / "capi"
    all_of_them = [Capi("start", "--port", "0", "--data-dir", str(data_dir)) for _ in range(PROCESSES)]
    try:
        for capi in all_of_them:
            capi.wait_for(lambda capi=capi: not capi.alive or bool(capi.events("listening")), 60)  # type: ignore[misc]  # binds it
        (serving,) = [capi for capi in all_of_them if capi.alive]
        refused = [capi for capi in all_of_them if capi is not serving]
        assert {capi.wait() for capi in refused} == {1}
        for capi in refused:
            assert f"process {serving.pid}" in capi.text[-1]
        assert admins(data_dir) == 1
        stop(serving)
    finally:
        for capi in all_of_them:
            capi.close()
    assert len(audited(data_dir, Action.AUTH_BOOTSTRAP)) == 1
    assert msgspec.json.decode((data_dir / "config.json").read_bytes(), type=dict[str, object])["version"] == 1


# -- who may listen where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "options", "config", "reason"),
    [
        (EVERYWHERE, ("--no-auth",), DEMO, "without auth"),
        ("capi.example", ("--no-auth", "--trusted-proxy", "10.0.0.0/8"), DEMO, "without auth"),
        (EVERYWHERE, (), {**DEMO, "features": {"auth": False}}, "without auth"),
        (EVERYWHERE, ("--no-auth", RISK), DEMO, "in clear text"),
        ("::", (), DEMO, "in clear text"),
    ],
)
def test_other_addresses_need_auth_and_a_private_line(
    tmp_path: Path, host: str, options: tuple[str, ...], config: Mapping[str, object], reason: str
) -> None:
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    done = command("start", "--host", host, "--port", "0", "--data-dir", str(tmp_path), *options)
    assert done.returncode == 2
    assert f"will not listen on {host} {reason}" in done.stderr
    assert not (tmp_path / "capi.db").exists()


def test_no_auth_on_this_machine_lets_everybody_in_and_is_audited(tmp_path: Path) -> None:
    """The flag is heeded, not just parsed; the next start without it has auth on again."""
    with started(tmp_path, "--no-auth") as capi:
        assert [status(capi), status(capi, "not-needed")] == [200, 200]
        assert capi.events("listening")[0]["auth_mode"] == "off"
        assert not (tmp_path / ADMIN_KEY_NAME).exists()
        stop(capi)
    with started(tmp_path) as capi:
        (tmp_path / ADMIN_KEY_NAME).unlink()
        assert status(capi) == 401
        stop(capi)
    assert len(audited(tmp_path, Action.SERVER_START_NO_AUTH)) == 1
    assert len(audited(tmp_path, Action.SERVER_START)) == 1


def test_behind_a_trusted_proxy_it_listens_and_answers_to_its_names_only(tmp_path: Path) -> None:
    options = ("--host", EVERYWHERE, "--trusted-proxy", "10.0.0.0/8", "--allowed-host", "capi.example")
    with faultless(gateway(tmp_path / "capi", DEMO, *options, auth=True)) as capi:
        local = f"http://127.0.0.1:{capi.port}/v1/models"
        headers = {"x-api-key": capi.admin_key or ""}
        hosts = {"capi.example": 200, "CAPI.example:8443": 200, "localhost": 200, "evil.example": 421}
        for host, wanted in hosts.items():
            assert httpx.get(local, headers={**headers, "host": host}).status_code == wanted, host
        page = httpx.get(local, headers={**headers, "origin": "https://evil.example"})
        assert (page.status_code, page.json()["error"]["code"]) == (403, "cross_site_request")


# -- TLS --------------------------------------------------------------------------------------------------------


@frozen
class Certificate:
    chain: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.chain), "--tls-key", str(self.key))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For 127.0.0.1, signed by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with (Debian: apt-get install openssl)")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    subject = ("-subj", "/CN=capi test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    files = ("-keyout", str(made.key), "-out", str(made.chain))
    subprocess.run([openssl, "req", "-x509", *new_key, *subject, *files], check=True, capture_output=True)  # noqa: S603
    return made


def test_tls_with_auth_on_all_addresses(tmp_path: Path, certificate: Certificate) -> None:
    options = ("--host", EVERYWHERE, *certificate.options)
    with faultless(gateway(tmp_path / "capi", DEMO, *options, auth=True)) as capi:
        url = f"https://127.0.0.1:{capi.port}"
        with httpx.Client(base_url=url, verify=context_for(certificate), timeout=10) as client:
            assert client.get("/v1/models").status_code == 401
            client.headers["authorization"] = f"Bearer {capi.admin_key}"
            assert client.get("/v1/models").status_code == 200
            hi = {"model": "demo-chat", "messages": [{"role": "user", "content": "hi"}], "demo": {"pace_ms": 0}}
            assert client.post("/v1/chat/completions", json=hi).json()["choices"]
            streamed = client.post("/v1/chat/completions", json={**hi, "stream": True})
            assert streamed.content.endswith(b"data: [DONE]\n\n")
            large = {"model": "demo-embed", "input": ["word " * 500] * 400}
            assert len(client.post("/v1/embeddings", json=large).json()["data"]) == 400
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            httpx.get(f"http://127.0.0.1:{capi.port}/healthz")  # clear text gets no answer
        assert httpx.get(f"{url}/healthz", verify=context_for(certificate)).status_code == 200
        stop(capi)


def test_no_auth_on_all_addresses_needs_the_acknowledgement_and_is_audited(
    tmp_path: Path, certificate: Certificate
) -> None:
    options = ("--host", EVERYWHERE, RISK, *certificate.options)
    with faultless(gateway(tmp_path / "capi", DEMO, *options)) as capi:
        url = f"https://127.0.0.1:{capi.port}/v1/models"
        assert httpx.get(url, verify=context_for(certificate)).status_code == 200
        stop(capi)
    (line,) = audited(tmp_path / "capi", Action.SERVER_START_NO_AUTH)
    assert line["target"] == f"{EVERYWHERE}:0"
    assert audited(tmp_path / "capi", Action.SERVER_START) == []


def test_a_certificate_that_is_none_is_refused(tmp_path: Path, certificate: Certificate) -> None:
    start = ("start", "--port", "0", "--data-dir", str(tmp_path))
    swapped = command(*start, "--tls-cert", str(certificate.key), "--tls-key", str(certificate.chain))
    assert swapped.returncode == 2
    assert "cannot be used for TLS" in swapped.stderr


def context_for(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate.chain))
