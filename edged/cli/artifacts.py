"""`edged artifacts`: whose native code a node does not run, and the way back."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import click

from .common import EdgedCommand, print_json, target_options

PATH: Final = "/v1/builders/distrusted"


@click.group()
def artifacts() -> None:
    """Builders of native code that a node believes no more."""


@artifacts.command(cls=EdgedCommand)
@target_options
def distrusted(as_json: bool, **where: Any) -> None:
    """List the builders that an audit caught: the node opens nothing that only they vouch for."""
    import msgspec

    from edged.interfaces import BuildersView

    from .render import table
    from .target import find_target

    data = find_target(**where).control().call("GET", PATH)
    if as_json:
        print_json(msgspec.Raw(data))
        return
    view = msgspec.json.decode(data, type=BuildersView)
    rows = [(one.name, one.node_id) for one in view.distrusted]
    table(("builder", "node id"), rows, empty=f"{view.node} distrusts no builder")


@artifacts.command(cls=EdgedCommand)
@click.argument("builder", metavar="NAME|ID")
@target_options
def trust(builder: str, as_json: bool, **where: Any) -> None:
    """Believe a distrusted builder again, on one node.

    For one that was mended and has kept its key. What it builds is audited anew."""
    import msgspec

    from edged.interfaces import BuilderView

    from .target import find_target

    client = find_target(**where).control()
    data = client.call("DELETE", f"{PATH}/{quote(builder, safe='')}")
    if as_json:
        print_json(msgspec.Raw(data))
        return
    found = msgspec.json.decode(data, type=BuilderView)
    click.echo(f"builder {found.name} ({found.node_id}) is trusted again")
