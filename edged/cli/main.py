"""The command tree. A command's module is imported when the command is run or described."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

COMMANDS: Final = {
    "run": "edged.cli.run:run",
    "deploy": "edged.cli.deploy:deploy",
    "invoke": "edged.cli.invoke:invoke",
    "functions": "edged.cli.show:functions",
    "describe": "edged.cli.show:describe",
    "versions": "edged.cli.show:versions",
    "rollback": "edged.cli.change:rollback",
    "remove": "edged.cli.change:remove",
    "logs": "edged.cli.logs:logs",
    "status": "edged.cli.show:status",
    "members": "edged.cli.members:members",
    "events": "edged.cli.events:events",
    "join": "edged.cli.change:join",
    "explain": "edged.cli.explain:explain",
    "snapshot": "edged.cli.snapshot:snapshot",
    "catalog": "edged.cli.catalog:catalog",
    "artifacts": "edged.cli.artifacts:artifacts",
    "blobs": "edged.cli.blobs:blobs",
    "transfers": "edged.cli.transfers:transfers",
    "gc": "edged.cli.blobs:gc",
    "verify": "edged.cli.blobs:verify",
    "pin": "edged.cli.blobs:pin",
    "unpin": "edged.cli.blobs:unpin",
    "cluster": "edged.cli.cluster:cluster",
    "load": "edged.cli.load:load",
    "report": "edged.cli.report:report",
    "chaos": "edged.cli.chaos:chaos",
    "topology": "edged.cli.topology:topology",
    "links": "edged.cli.links:links",
}

EPILOG: Final = """\b
Exit codes:
  0  done
  1  the operation failed; the problem is printed
  2  wrong usage or configuration
  3  no answer from the node
  4  no such function, version, cluster or node
  5  invoke: the function answered 4xx
  6  invoke: the function answered 5xx

Commands talk to the newest running local cluster. --cluster and --node choose another node;
--control URL or EDGED_CONTROL names any node, with its token: --token-file FILE, or EDGED_TOKEN
(the token itself), or EDGED_TOKEN_FILE; the first that is given counts. EDGED_STATE is where local
clusters are kept.

With --json, results go to stdout and problems to stderr, each as one JSON document."""


class LazyGroup(click.Group):
    """Knows its commands by name; order is that of COMMANDS, not of the alphabet."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: Any = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Wrong usage looks like every other error."""
        from .common import EXIT_USAGE, print_error

        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            print_error(error.format_message(), f"{(error.ctx or ctx).command_path} --help")
            ctx.exit(EXIT_USAGE)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from edged import __version__

        click.echo(f"edged {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and leave.",
)
def edged() -> None:
    """An edge made of the machines you have: deploy a WebAssembly function to one node, invoke it
    on every node."""


def main() -> None:
    edged(prog_name="edged")
