"""`capi start` and `capi demo`: the commands that serve."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from capi_core.config import Config, ConfigError, UpstreamConfig, is_loopback_host
from capi_trio import logs
from capi_trio.cli.options import (
    config_option,
    config_path,
    data_dir_option,
    fail,
    json_option,
    load_config,
    refuse,
    refuse_config,
)
from capi_trio.configfile import make_data_dir
from capi_trio.connection import split_cancelled
from capi_trio.ids import new_request_id
from capi_trio.server import BindError
from capi_trio.service import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capi_trio.service import Running

__all__ = ["demo_command", "start_command"]

_DEFAULT_PORT: Final = 4141
_DEMO_MODEL: Final = "demo-chat"

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
@_verbose_option
def start_command(host: str, port: int, data_dir: Path, config_file: Path | None, verbose: bool) -> None:
    """Run the gateway."""
    _check_host(host)
    path = config_path(data_dir, config_file)
    config = load_config(path)
    if not config.upstreams:
        refuse(f"{path} names no upstream; docs/configuration.md shows one. To look around first: capi demo")
    _run(config, path, host=host, port=port, data_dir=data_dir, verbose=verbose, on_ready=_tell_started)


@click.command("demo")
@_host_option
@_port_option
@data_dir_option
@json_option
@_verbose_option
def demo_command(host: str, port: int, data_dir: Path, as_json: bool, verbose: bool) -> None:
    """Run the gateway in front of a simulated provider: no account, no key, no cost."""
    _check_host(host)
    config = Config(upstreams={"demo": UpstreamConfig(kind="demo")})
    on_ready = partial(_tell_demo_json if as_json else _tell_demo, data_dir=data_dir)
    _run(config, data_dir, host=host, port=port, data_dir=data_dir, verbose=verbose, on_ready=on_ready)


def _check_host(host: str) -> None:
    if not is_loopback_host(host):
        refuse(
            f"will not listen on {host}: there are no client keys yet, so whoever reaches the port could spend your "
            "accounts. Listen on 127.0.0.1, localhost or ::1, and let others in through a tunnel of their own."
        )


def _run(
    config: Config,
    path: Path,
    *,
    host: str,
    port: int,
    data_dir: Path,
    verbose: bool,
    on_ready: Callable[[Running], None],
) -> None:
    try:
        make_data_dir(data_dir)
    except OSError as error:
        fail(f"cannot make the data directory {data_dir}: {error.strerror}; choose another with --data-dir")
    writer = logs.configure(verbose=verbose)
    gc.freeze()  # what start-up made stays for good: the collector need not look at it again
    runner = partial(
        serve,
        config,
        host="127.0.0.1" if host == "localhost" else host,
        port=port,
        environ=os.environ,
        base_dir=path.parent,
        new_request_id=new_request_id,
        on_ready=on_ready,
    )
    try:
        trio.run(runner)
    except BindError as error:
        fail(str(error))
    except ConfigError as error:
        refuse_config(path, error)
    except BaseException as error:
        rest, failed = split_cancelled(error)
        if failed is None:
            raise
        logs.get_logger("server").critical("failed", **logs.describe(failed))
        writer.close()
        if rest is not None:
            raise rest from None
        fail("stopped by a fault of its own; the log says where")
    finally:
        writer.close()


def _tell_started(running: Running) -> None:
    if sys.stdout.isatty():
        click.echo(f"capi is listening on {running.url}  (auth: off, loopback only; stop with Ctrl-C)")


def _tell_demo_json(running: Running, *, data_dir: Path) -> None:
    line = {
        "url": running.url,
        "provider_url": running.provider_urls["demo"],
        "models": [model.name for model in running.catalog().listed()],
        "api_key": None,
        "admin_key": None,
        "data_dir": str(data_dir),
    }
    click.echo(msgspec.json.encode(line).decode())


def _tell_demo(running: Running, *, data_dir: Path) -> None:
    models = ", ".join(model.name for model in running.catalog().listed())
    click.echo(
        f"""
capi is listening on {running.url}  (auth: off, loopback only; stop with Ctrl-C)
models: {models}

Try it with curl:

  curl -N {running.url}/v1/chat/completions \\
    -H 'content-type: application/json' \\
    -d '{{"model": "{_DEMO_MODEL}", "stream": true,
         "messages": [{{"role": "user", "content": "What is capi?"}}]}}'

or with the OpenAI SDK (pip install openai):

  from openai import OpenAI

  client = OpenAI(base_url="{running.url}/v1", api_key="not-needed")
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
