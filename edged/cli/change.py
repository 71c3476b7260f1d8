"""`edged rollback` and `edged remove`."""

from __future__ import annotations

import json
from typing import Any

import click

from .common import EXIT_FAILED, EdgedCommand, print_json, target_options


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.argument("version", required=False)
@target_options
def rollback(name: str, version: str | None, as_json: bool, **where: Any) -> None:
    """Make an earlier VERSION (4 or more digits of it) current again; default: the one before."""
    import msgspec

    from edged.interfaces import Deployed

    from .show import function_path
    from .target import find_target

    target = find_target(**where)
    data = target.control().call(
        "POST",
        function_path(name, "/rollback"),
        body=json.dumps({"version": version}).encode(),
        headers={"Content-Type": "application/json"},
    )
    if as_json:
        print_json(msgspec.Raw(data))
        return
    done = msgspec.json.decode(data, type=Deployed)
    before = f" (was {done.previous[:12]})" if done.previous else ""
    click.echo(f"{done.name} is at version {(done.version or '')[:12]}{before}")


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_options
def remove(name: str, yes: bool, as_json: bool, **where: Any) -> None:
    """Remove a function from the whole cluster."""
    import msgspec

    from .show import function_path
    from .target import find_target

    target = find_target(**where)
    question = f"Remove function {name!r} from every node of the cluster of {target.name}?"
    if not yes and not click.confirm(question, err=True):
        click.echo("nothing removed", err=True)
        raise SystemExit(EXIT_FAILED)
    data = target.control().call("DELETE", function_path(name))
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        click.echo(f"removed {name}")
