"""`capi start` and `capi demo`: the commands that serve."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from capi_core.config import Config, ConfigError, UpstreamConfig, is_loopback_host
from capi_core.keys import KeyDraft, KeyState, Tier
from capi_trio import logs
from capi_trio.admission import AdmissionOptions
from capi_trio.cli.options import (
    config_option,
    config_path,
    data_dir_option,
    database_option,
    fail,
    json_option,
    prepare_data_dir,
    refuse,
    refuse_config,
    warn,
)
from capi_trio.clock import now_ms
from capi_trio.configfile import default_data_dir
from capi_trio.configstore import ConfigStore, seed
from capi_trio.guarded_app import split_cancelled
from capi_trio.ids import new_request_id
from capi_trio.keyring import CLI, IssuedKey
from capi_trio.perimeter import Perimeter, parse_network
from capi_trio.server import BindError, tls_context
from capi_trio.service import Options, serve
from capi_trio.storage.errors import StorageError
from capi_trio.terminal import NoTerminalError, check_terminal

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from capi_trio.keyring import Keyring
    from capi_trio.service import Running

__all__ = ["demo_command", "start_command"]

_DEFAULT_PORT: Final = 4141
_DEMO_MODEL: Final = "demo-chat"
_RISK: Final = "--i-accept-account-suspension-risk"
_FILE: Final = click.Path(dir_okay=False, exists=True, path_type=Path)

_host_option = click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
_port_option = click.option(
    "--port", "-p", type=click.IntRange(0, 65535), default=_DEFAULT_PORT, show_default=True, help="0 takes a free port."
)
_verbose_option = click.option("--verbose", "-v", is_flag=True, help="Log more.")


@click.command("start")
@_host_option
@_port_option
@data_dir_option
@config_option
@database_option
@click.option("--no-auth", is_flag=True, help="Let everybody in, without a key. Loopback addresses only.")
@click.option(_RISK, "accept_risk", is_flag=True, help="Let --no-auth listen on other addresses all the same.")
@click.option("--tls-cert", type=_FILE, help="The certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option("--trusted-proxy", "proxies", multiple=True, help="Addresses of a TLS proxy in front, CIDR; repeat.")
@click.option("--allowed-host", "hosts", multiple=True, help="A host name that clients use for this gateway; repeat.")
@click.option(
    "--rate-limit",
    "-r",
    "interval_s",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="At most one request every SECONDS, over all keys.",
)
@click.option("--wait", "-w", is_flag=True, help="With --rate-limit: who comes too early waits for its turn.")
@click.option("--manual", is_flag=True, help="Ask on this terminal before each request.")
@_verbose_option
def start_command(
    host: str,
    port: int,
    data_dir: Path,
    config_file: Path | None,
    database: str | None,
    no_auth: bool,
    accept_risk: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    proxies: Sequence[str],
    hosts: Sequence[str],
    interval_s: int | None,
    wait: bool,
    manual: bool,
    verbose: bool,
) -> None:
    """Run the gateway."""
    admission = _admission(manual=manual, interval_s=interval_s, wait=wait)
    tls = _tls(tls_cert, tls_key)
    perimeter = _perimeter(host, hosts, proxies)
    path = _seeded(data_dir, config_file)
    store = _store(path)
    auth = store.current.config.features.auth and not no_auth
    _check_host(host, auth=auth, accept_risk=accept_risk, private=tls is not None or bool(proxies))
    options = Options(
        host=_address(host),
        port=port,
        data_dir=data_dir,
        base_dir=path.parent,
        environ=os.environ,
        auth=auth,
        perimeter=perimeter,
        new_request_id=new_request_id,
        database=database,
        tls=tls,
        show_key=_show_admin_key if sys.stdout.isatty() else None,
        admission=admission,
    )
    _run(store.current.config, options, path, verbose=verbose, on_ready=_tell_started, store=store)


@click.command("demo")
@_host_option
@_port_option
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_data_dir(os.environ) / "demo",
    help="Where the demo keeps its files.  [default: demo in capi's data directory]",
)
@click.option("--no-auth", is_flag=True, help="Let everybody on this machine in, without a key.")
@json_option
@_verbose_option
def demo_command(host: str, port: int, data_dir: Path, no_auth: bool, as_json: bool, verbose: bool) -> None:
    """Run the gateway in front of a simulated provider: no account, no cost."""
    if not is_loopback_host(host):
        refuse(f"the demo only listens on loopback addresses, not on {host}")
    prepare_data_dir(data_dir)
    keys = _DemoKeys()
    options = Options(
        host=_address(host),
        port=port,
        data_dir=data_dir,
        base_dir=data_dir,
        environ=os.environ,
        auth=not no_auth,
        perimeter=Perimeter(),
        new_request_id=new_request_id,
        prepare=None if no_auth else keys.make,
    )
    on_ready = partial(_tell_demo_json if as_json else _tell_demo, data_dir=data_dir, keys=keys)
    config = Config(upstreams={"demo": UpstreamConfig(kind="demo")})
    _run(config, options, data_dir, verbose=verbose, on_ready=on_ready)


class _DemoKeys:
    """The demo's own two keys: new ones at each start, the last ones revoked."""

    def __init__(self) -> None:
        self.client: IssuedKey | None = None
        self.admin: IssuedKey | None = None

    async def make(self, keyring: Keyring) -> None:
        for record in keyring.all():
            if record.label in ("demo", "demo admin") and record.state(now_ms()) is KeyState.ACTIVE:
                await keyring.revoke(record.id, CLI, reason="the demo was started again")
        self.admin = await keyring.create(KeyDraft(label="demo admin", tier=Tier.ADMIN), CLI)
        self.client = await keyring.create(KeyDraft(label="demo"), CLI)

    @property
    def client_text(self) -> str | None:
        return None if self.client is None else self.client.text

    @property
    def admin_text(self) -> str | None:
        return None if self.admin is None else self.admin.text


def _address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _admission(*, manual: bool, interval_s: int | None, wait: bool) -> AdmissionOptions:
    """Refuses what could only hang: to ask where nobody is."""
    if wait and interval_s is None:
        raise click.UsageError("--wait goes with --rate-limit: without it there is nothing to wait for")
    if manual:
        try:
            check_terminal()
        except NoTerminalError as error:
            refuse(f"--manual asks about each request on the terminal that capi was started on, but {error}")
    return AdmissionOptions(manual=manual, interval_s=interval_s, wait=wait)


def _check_host(host: str, *, auth: bool, accept_risk: bool, private: bool) -> None:
    """Refuses to listen where others could spend the accounts, or read along."""
    if is_loopback_host(host):
        return
    if not auth and not accept_risk:
        refuse(
            f"will not listen on {host} without auth: whoever reaches the port spends your accounts, and accounts that "
            f"are shared like that get suspended. Leave auth on, listen on 127.0.0.1, or add {_RISK}"
        )
    if not private:
        refuse(
            f"will not listen on {host} in clear text: keys and prompts could be read on the way. "
            "Give --tls-cert and --tls-key, or name the TLS proxy in front with --trusted-proxy"
        )


def _perimeter(host: str, hosts: Sequence[str], proxies: Sequence[str]) -> Perimeter:
    try:
        networks = tuple(parse_network(proxy) for proxy in proxies)
    except ValueError as error:
        refuse(f"--trusted-proxy: {error}")
    own = set() if is_loopback_host(host) else {host.lower()}
    return Perimeter(frozenset({name.lower() for name in hosts} | own), networks)


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        refuse("--tls-cert and --tls-key go together")
    try:
        return tls_context(cert, key)
    except BindError as error:
        refuse(str(error))


def _seeded(data_dir: Path, config_file: Path | None) -> Path:
    """The configuration's path; a first file is made in a data directory that has none."""
    prepare_data_dir(data_dir)
    path = config_path(data_dir, config_file)
    try:
        if config_file is None and seed(path):
            click.echo(f"wrote a first configuration: {path}", err=True)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    return path


def _store(path: Path) -> ConfigStore:
    try:
        store = ConfigStore(path)
    except ConfigError as error:
        refuse_config(path, error)
    for warning in store.current.warnings:
        warn(f"{path}: {warning}")
    if not store.current.config.upstreams:
        warn(f"{path} names no upstream yet; add one, the file is watched")
    return store


def _run(
    config: Config,
    options: Options,
    path: Path,
    *,
    verbose: bool,
    on_ready: Callable[[Running], None],
    store: ConfigStore | None = None,
) -> None:
    writer = logs.configure(verbose=verbose)
    gc.freeze()  # what start-up made stays for good: the collector need not look at it again
    try:
        cut = trio.run(partial(serve, config, options, on_ready, store=store))
    except BaseException as error:
        rest, failed = split_cancelled(error)
        if isinstance(failed, ConfigError):
            refuse_config(path, failed)
        if isinstance(failed, (BindError, StorageError)):
            fail(str(failed))
        if isinstance(failed, OSError):
            fail(f"{failed.filename or options.data_dir}: {failed.strerror}")
        if failed is None or rest is not None:
            raise
        logs.get_logger("server").critical("failed", **logs.describe(failed))
        fail("stopped by a fault of its own; the log says where")
    else:
        logs.get_logger("server").info("stopped", cut=cut)
        if cut:
            raise click.exceptions.Exit(1)
    finally:
        writer.close()


def _show_admin_key(text: str) -> None:
    click.echo(f"The first admin key, shown only this once:\n\n  {text}\n")


def _tell_started(running: Running) -> None:
    if sys.stdout.isatty():
        click.echo(f"capi is listening on {running.url}  (auth: {running.auth_mode}; stop with Ctrl-C)")


def _tell_demo_json(running: Running, *, data_dir: Path, keys: _DemoKeys) -> None:
    line = {
        "url": running.url,
        "provider_url": running.provider_urls["demo"],
        "models": [model.name for model in running.catalog().listed()],
        "api_key": keys.client_text,
        "admin_key": keys.admin_text,
        "data_dir": str(data_dir),
    }
    click.echo(msgspec.json.encode(line).decode())


def _tell_demo(running: Running, *, data_dir: Path, keys: _DemoKeys) -> None:
    models = ", ".join(model.name for model in running.catalog().listed())
    key = keys.client_text
    shown = "" if key is None else f"client key:  {key}\nadmin key:   {keys.admin_text}\n"
    header = "" if key is None else f"    -H 'authorization: Bearer {key}' \\\n"
    click.echo(
        f"""
capi is listening on {running.url}  (auth: {running.auth_mode}; stop with Ctrl-C)
models:      {models}
{shown}files:       {data_dir}

Try it with curl:

  curl -N {running.url}/v1/chat/completions \\
{header}    -H 'content-type: application/json' \\
    -d '{{"model": "{_DEMO_MODEL}", "stream": true,
         "messages": [{{"role": "user", "content": "What is capi?"}}]}}'

or with the OpenAI SDK (pip install openai):

  from openai import OpenAI

  client = OpenAI(base_url="{running.url}/v1", api_key="{key or "not-needed"}")
  stream = client.chat.completions.create(
      model="{_DEMO_MODEL}",
      messages=[{{"role": "user", "content": "What is capi?"}}],
      stream=True,
  )
  for chunk in stream:
      if chunk.choices:
          print(chunk.choices[0].delta.content or "", end="", flush=True)
  print()
"""
    )
