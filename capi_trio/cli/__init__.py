"""The command line: the composition root, where settings meet the runtime.

Exit codes: 0, 1 failure, 2 usage or refused. Output for people on a terminal, `--json` for programs. Nothing printed
here holds a secret.
"""

from __future__ import annotations

import click
from typing_extensions import override

from capi_core import __version__
from capi_trio.cli.admin import admin_commands
from capi_trio.cli.audit import audit_commands
from capi_trio.cli.auth import auth_command
from capi_trio.cli.backup import backup_command, restore_command
from capi_trio.cli.config import config_commands
from capi_trio.cli.conform import conform_command
from capi_trio.cli.debug import debug_command
from capi_trio.cli.doctor import doctor_command
from capi_trio.cli.identities import identities_commands, usage_command
from capi_trio.cli.keys import keys_commands
from capi_trio.cli.models import models_command
from capi_trio.cli.run import demo_command, start_command
from capi_trio.cli.setup import setup_command
from capi_trio.cli.translate import translate_command
from capi_trio.cli.usage import usage_report_command

__all__ = ["main"]


class _Commands(click.Group):
    """Ctrl-C ends any command as click has it, also when it comes out of a nursery, in a group."""

    @override
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except* KeyboardInterrupt:
            pass
        raise click.Abort


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="capi")
def main() -> None:
    """A self-hosted LLM gateway for a small team."""


_COMMANDS = (
    start_command,
    demo_command,
    keys_commands,
    auth_command,
    identities_commands,
    models_command,
    usage_report_command,
    config_commands,
    audit_commands,
    admin_commands,
    backup_command,
    restore_command,
    debug_command,
    setup_command,
    translate_command,
    conform_command,
    doctor_command,
)
for command in _COMMANDS:
    main.add_command(command)
main.add_command(usage_command, "check-usage")  # its name in other proxies of this kind
