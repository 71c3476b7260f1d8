"""`edged rollback`, `edged remove` and `edged join`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    EXIT_FAILED,
    EdgedCommand,
    NodeProblem,
    check_can_ask,
    print_json,
    target_options,
    yes_option,
)

if TYPE_CHECKING:
    from .client import Client

VERSION: Final = re.compile(r"[0-9a-f]{4,64}\Z")


@click.command(cls=EdgedCommand)
@click.argument("name")
@click.argument("version", required=False)
@target_options
def rollback(name: str, version: str | None, as_json: bool, **where: Any) -> None:
    """Make an earlier VERSION (4 or more digits of it) current again; default: the one before."""
    import msgspec

    from edged.errors import ConfigError
    from edged.interfaces import Deployed

    from .deploy import warn_of_few
    from .show import function_path
    from .target import find_target

    if version is not None and not VERSION.match(version):
        raise ConfigError(
            f"version {version[:80]!r}: 4 to 64 lower-case hex digits; edged versions {name}"
            " lists them"
        )
    client = find_target(**where).control()
    try:
        data = client.call(
            "POST",
            function_path(name, "/rollback"),
            body=json.dumps({"version": version}).encode(),
            headers=[("Content-Type", "application/json")],
        )
    except NodeProblem as problem:
        if problem.status in (400, 404) and version and _exists(client, name):
            problem.hint = f"edged versions {name} lists them"
        raise
    if as_json:
        print_json(msgspec.Raw(data))
        return
    done = msgspec.json.decode(data, type=Deployed)
    before = f" (was {done.previous[:12]})" if done.previous else ""
    click.echo(f"{done.name} is at version {(done.version or '')[:12]}{before}")
    warn_of_few(done)


def _exists(client: Client, name: str) -> bool:
    from .show import function_path

    try:
        client.call("GET", function_path(name))
    except NodeProblem as problem:
        return bool(problem.status != 404)
    return True


@click.command(cls=EdgedCommand)
@click.argument("name")
@yes_option
@target_options
def remove(name: str, yes: bool, as_json: bool, **where: Any) -> None:
    """Remove a function from the whole cluster."""
    import msgspec

    from edged.interfaces import Deployed

    from .show import function_path
    from .target import find_target

    check_can_ask(yes=yes, as_json=as_json)
    target = find_target(**where)
    client = target.control()
    if not yes:
        client.call("GET", function_path(name))  # no question about what is not there
        question = f"Remove function {name!r} from every node of the cluster of {target.name}?"
        if not click.confirm(question, err=True):
            click.echo("nothing removed", err=True)
            raise SystemExit(EXIT_FAILED)
    data = client.call("DELETE", function_path(name))
    if as_json:
        print_json(msgspec.Raw(data))
        return
    click.echo(f"removed {name}")
    done = msgspec.json.decode(data, type=Deployed)
    if done.sharing:
        click.echo(f"its code stays for {' '.join(done.sharing)}")


@click.command(cls=EdgedCommand)
@click.argument("seeds", nargs=-1, required=True, metavar="HOST:PORT…")
@target_options
def join(seeds: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Make a node knock at these members: it joins their cluster, and so do all it knows."""
    import msgspec

    from .target import find_target

    data = (
        find_target(**where)
        .control()
        .call(
            "POST",
            "/v1/join",
            body=json.dumps({"seeds": seeds}).encode(),
            headers=[("Content-Type", "application/json")],
        )
    )
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        click.echo(f"knocking at {', '.join(seeds)}; edged members shows who answered")
