"""`edged cluster keys`: rotate the keys that seal gossip, on all nodes of a running cluster.

Each command asks every node in turn and may be run again: what is done already stays done. A new
key is in a file before any node has it, so that nodes that missed it can be given it later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from .common import EdgedCommand, NodeProblem, json_option, print_json

if TYPE_CHECKING:
    from edged.interfaces import KeysView

    from .target import Target

SPREAD_S: Final = 10.0
"""How long members may take to hear what another one holds; a round trip, unless they are down."""
POLL_S: Final = 0.1

F = TypeVar("F", bound=Callable[..., Any])


class Nodes(NamedTuple):
    """Whom to ask."""

    targets: list[Target]
    stopped: list[str]
    """Nodes of the local cluster that do not run."""
    ca: Path | None
    """Its keyring is what nodes issued later begin with."""


class Change(NamedTuple):
    """What one node answered to one change."""

    node: str
    key: str
    changed: bool


class Telling(NamedTuple):
    """How a kind of change is told."""

    done: str
    already: str
    """So it was on a node before."""
    missed: tuple[str, ...]
    """What a node that was not reached needs when it is back; {keyring} and {key} are filled in."""


_GIVE: Final = "edged cluster keys add --key-file {keyring}"
ADDED: Final = Telling("added", "had it already", (_GIVE,))
USED: Final = Telling("used", "sealed with it already", (_GIVE, "edged cluster keys use {key}"))
REMOVED: Final = Telling("removed", "had no such key", ("edged cluster keys remove {key}",))


def keys_options(function: F) -> F:
    for decorate in reversed(
        (
            click.option("--name", metavar="NAME", help="A local cluster; default: the newest."),
            click.option(
                "--control",
                "controls",
                metavar="URL",
                multiple=True,
                help="Control API of a node; repeat for every node, instead of --name.",
            ),
            click.option(
                "--token-file",
                "token_files",
                metavar="FILE",
                multiple=True,
                type=click.Path(),
                help="One for all --control, or one for each in the same order; else EDGED_TOKEN.",
            ),
            click.option(
                "--ca",
                metavar="DIRECTORY",
                type=click.Path(file_okay=False),
                help="The CA's directory, whose keyring is kept in step; default: the local"
                " cluster's.",
            ),
        )
    ):
        function = decorate(function)
    return json_option(function)


def force_option(function: F) -> F:
    return click.option("--force", is_flag=True, help="Even if members are cut off by it.")(
        function
    )


@click.group()
def keys() -> None:
    """The keys that seal gossip. To replace one: add, use the new, remove the old."""


@keys.command("list", cls=EdgedCommand)
@keys_options
def list_(as_json: bool, **where: Any) -> None:
    """Show which node holds which key; keys have ids, and are never shown themselves."""
    _show(_views(_nodes(**where)), as_json=as_json)


@keys.command(cls=EdgedCommand)
@click.option(
    "--key-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Holds the keys to add, one per line as 64 hex digits; made, with one, if missing.",
)
@keys_options
def add(key_file: str | None, as_json: bool, **where: Any) -> None:
    """Give every node a new key, which opens datagrams but does not seal yet.

    Without --key-file the key is made, and kept in the CA's keyring. A node that was down gets what
    it missed by --key-file with that keyring."""
    from edged.errors import ConfigError

    nodes = _nodes(**where)
    if nodes.ca is None and key_file is None:
        raise ConfigError("where shall the new key be kept? give --ca DIRECTORY or --key-file FILE")
    added = _take_keys(nodes.ca, Path(key_file) if key_file else None)
    changes = [
        _change(target, "POST", "", body=b'{"key": "%s"}' % key.hex().encode())
        for key in added
        for target in nodes.targets
    ]
    ids = list(dict.fromkeys(change.key for change in changes))
    late = _wait_spread(nodes, ids)
    _done(nodes, changes, late, as_json=as_json, told=ADDED)


@keys.command(cls=EdgedCommand)
@click.argument("key")
@force_option
@keys_options
def use(key: str, force: bool, as_json: bool, **where: Any) -> None:
    """Make every node seal with KEY (an id) from now on.

    Refused while a known member, also one that is down, has not got it."""
    nodes = _nodes(**where)
    changes = [
        _change(target, "POST", f"/{key}/use?force={int(force)}") for target in nodes.targets
    ]
    _order_ca(nodes.ca, key, keep=True)
    late = _wait_spread(nodes, [key])
    _done(nodes, changes, late, as_json=as_json, told=USED)


@keys.command(cls=EdgedCommand)
@click.argument("key")
@force_option
@keys_options
def remove(key: str, force: bool, as_json: bool, **where: Any) -> None:
    """Make every node forget KEY (an id): what it sealed opens no more.

    Refused while a known member, also one that is down, seals with it."""
    nodes = _nodes(**where)
    changes = [_change(target, "DELETE", f"/{key}?force={int(force)}") for target in nodes.targets]
    _order_ca(nodes.ca, key, keep=False)
    _done(nodes, changes, [], as_json=as_json, told=REMOVED)


# ---------------------------------------------------------------- whom to ask
def _nodes(
    *, name: str | None, controls: tuple[str, ...], token_files: tuple[str, ...], ca: str | None
) -> Nodes:
    """Raises ConfigError, ClusterNotFound."""
    from edged.errors import ClusterNotFound, ConfigError

    from .target import Target, existing, read_token, supervisor

    if controls:
        if name:
            raise ConfigError("--control names the nodes already: leave out --name")
        if len(token_files) not in (0, 1, len(controls)):
            raise ConfigError("give one --token-file for all --control, or one for each")
        files: Sequence[str | None] = token_files or (None,)
        each = files if len(files) == len(controls) else list(files) * len(controls)
        targets = [
            Target(url, url.rstrip("/"), read_token(file), "")
            for url, file in zip(controls, each, strict=True)
        ]
        return Nodes(targets, [], Path(ca) if ca else None)
    if token_files:
        raise ConfigError("--token-file goes with --control; a local cluster's are known")
    boss = supervisor()
    state = boss.load(existing(boss, name))
    running = boss.running_nodes(state)
    if not running:
        raise ClusterNotFound(
            f"no node of cluster {state.name!r} is running:"
            f" edged cluster up --name {state.name} starts it again"
        )
    names = {node.name for node in running}
    return Nodes(
        [Target(n.name, n.control_url, boss.token(state, n), n.gateway_url) for n in running],
        [node.name for node in state.nodes if node.name not in names],
        Path(ca) if ca else boss.home.directory(state.name) / "ca",
    )


# ---------------------------------------------------------------- asking
def _change(target: Target, method: str, path: str, *, body: bytes = b"") -> Change:
    """One node's; asked again for a while where it only has not heard of the others' keys yet."""
    import msgspec

    from edged.interfaces import KeyChange

    deadline = time.monotonic() + SPREAD_S
    while True:
        try:
            data = target.control().call(method, f"/v1/keys{path}", body=body)
            answer = msgspec.json.decode(data, type=KeyChange)
            return Change(target.name, answer.key, answer.changed)
        except NodeProblem as error:
            rows = error.problem.get("members") or []
            hopeful = bool(rows) and all(row.get("state") == "alive" for row in rows)
            if not hopeful or time.monotonic() >= deadline:
                error.hint = "edged cluster keys list shows who has what"
                if rows:
                    error.hint += "; --force does it anyway"
                raise
        time.sleep(POLL_S)


def _views(nodes: Nodes) -> list[KeysView]:
    import msgspec

    from edged.interfaces import KeysView

    return [
        msgspec.json.decode(target.control().call("GET", "/v1/keys"), type=KeysView)
        for target in nodes.targets
    ]


def _wait_spread(nodes: Nodes, ids: Sequence[str]) -> list[str]:
    """Until every node knows that all members have the keys; else who has not, by name. The nodes
    themselves have them: what others have not heard of them yet is no lack."""
    deadline = time.monotonic() + SPREAD_S
    while True:
        views = _views(nodes)
        asked = {view.node for view in views}
        unheard = [
            member
            for view in views
            for member in view.members
            if member.state != "left" and not set(ids) <= set(member.keys)
        ]
        if all(m.state == "down" for m in unheard) or time.monotonic() >= deadline:
            return list(dict.fromkeys(m.name for m in unheard if m.name not in asked))
        time.sleep(POLL_S)


# ---------------------------------------------------------------- the CA's keyring
def _take_keys(ca: Path | None, key_file: Path | None) -> tuple[bytes, ...]:
    """The keys to add; they are in a file when this returns. Raises ConfigError."""
    from edged.keyring import new_key, read_keyring, write_keyring

    if key_file is None:
        added: tuple[bytes, ...] = (new_key(),)
    elif key_file.exists():
        added = read_keyring(key_file)
    else:
        added = (new_key(),)
        write_keyring(key_file, added)
    if ca is not None:
        ring = read_keyring(ca / "keyring")
        write_keyring(ca / "keyring", (*ring, *(key for key in added if key not in ring)))
    return added


def _order_ca(ca: Path | None, key: str, *, keep: bool) -> None:
    """Puts a key first, or drops it: new nodes shall begin with what the others have."""
    if ca is None:
        return
    from edged.keyring import read_keyring, write_keyring
    from protocol.seal import key_id

    ring = read_keyring(ca / "keyring")
    named = [each for each in ring if key_id(each).hex() == key]
    others = [each for each in ring if each not in named]
    if ordered := [*(named if keep else []), *others]:
        write_keyring(ca / "keyring", ordered)


# ---------------------------------------------------------------- telling
def _show(
    views: Sequence[KeysView], *, as_json: bool, changes: Sequence[Change] | None = None
) -> None:
    """Node × key. Who was not asked is shown as the others know it."""
    rows: dict[str, tuple[str, tuple[str, ...]]] = {}
    for view in views:
        for member in view.members:
            if member.name not in rows and not member.is_self:
                rows[member.name] = (member.state, member.keys)
    rows |= {view.node: ("asked", view.keys) for view in views}
    ids = list(dict.fromkeys(key for _, held in rows.values() for key in held))
    if as_json:
        listed = [{"node": n, "state": state, "keys": held} for n, (state, held) in rows.items()]
        changed = {} if changes is None else {"changed": _changed(changes)}
        print_json({"keys": ids, "nodes": listed} | changed)
        return
    from .render import NONE, table

    def cell(held: tuple[str, ...], key: str) -> str:
        return NONE if key not in held else "seals" if held[0] == key else "opens"

    table(
        ("node", "known from", *ids),
        (
            (
                node,
                "itself" if state == "asked" else f"others ({state})",
                *(cell(held, key) for key in ids),
            )
            for node, (state, held) in sorted(rows.items())
        ),
        empty="no nodes",
    )


def _changed(changes: Sequence[Change]) -> list[str]:
    """The nodes on which something is not as it was before."""
    return list(dict.fromkeys(change.node for change in changes if change.changed))


def _summary(key: str, changes: Sequence[Change], told: Telling) -> str:
    """What became of one key."""
    new = [change.node for change in changes if change.changed]
    rest = len(changes) - len(new)
    if not new:
        return f"nothing changed: {_count(rest)} {told.already} ({key})"
    if not rest:
        return f"{told.done} {key} on {_count(len(new))}"
    return f"{told.done} {key} on {', '.join(new)}; {_count(rest)} {told.already}"


def _count(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _done(
    nodes: Nodes,
    changes: Sequence[Change],
    late: Sequence[str],
    *,
    as_json: bool,
    told: Telling,
) -> None:
    _show(_views(nodes), as_json=as_json, changes=changes)
    ids = list(dict.fromkeys(change.key for change in changes))
    if not as_json:
        for key in ids:
            click.echo(_summary(key, [c for c in changes if c.key == key], told))
    missed = list(dict.fromkeys((*nodes.stopped, *late)))
    if missed:
        keyring = str(nodes.ca / "keyring") if nodes.ca else "FILE"
        steps = [step.format(keyring=keyring, key=" ".join(ids)) for step in told.missed]
        click.echo(
            "\n  ".join((f"not on {', '.join(missed)}: when back, they need", *steps)), err=True
        )
