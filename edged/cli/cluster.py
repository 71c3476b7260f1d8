"""`edged cluster`: make, watch, hurt and end clusters on this machine; make trust for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from . import cluster_links, cluster_nodes
from .cluster_common import DEFAULT_NAME, name_option, progress, roles_option, terminable
from .cluster_keys import keys
from .common import EdgedCommand, json_option, print_json, progress_console

if TYPE_CHECKING:
    from edged.cluster.spec import ClusterSpec
    from edged.cluster.views import ClusterStatus

DEFAULT_NODES: Final = 3


@click.group()
def cluster() -> None:
    """Clusters of real node processes on this machine, and the trust files of any cluster."""


cluster.add_command(keys)
for module, names in (
    (cluster_nodes, ("kill", "pause", "resume", "restart", "add", "remove", "logs", "shell")),
    (cluster_links, ("partition", "heal", "slow", "links")),
):
    for each in names:
        cluster.add_command(getattr(module, each))


def _timeout_s(nodes: int) -> float:
    """Node processes start in 0.4 s of CPU each; 30 s for a machine that is busy otherwise."""
    return 30.0 + 2.0 * nodes


# ---------------------------------------------------------------- trust
@cluster.command(cls=EdgedCommand)
@click.argument("directory", type=click.Path(file_okay=False))
@json_option
def init(directory: str, as_json: bool) -> None:
    """Make a cluster CA and keyring in DIRECTORY. Keep it off the nodes."""
    from edged.trust import create_ca

    create_ca(Path(directory))
    if as_json:
        print_json({"directory": directory})
    else:
        click.echo(f"made a cluster CA in {directory}")
        click.echo(f"next: edged cluster issue {directory} NODE --out TRUST_DIRECTORY")


@cluster.command(cls=EdgedCommand)
@click.argument("directory", type=click.Path(file_okay=False))
@click.argument("node")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Made if missing.")
@roles_option
@click.option("--days", type=click.IntRange(1, 36500), help="Validity; default: 825.")
@json_option
def issue(
    directory: str, node: str, out: str, roles: tuple[Any, ...], days: int | None, as_json: bool
) -> None:
    """Write the trust directory of NODE, signed by the CA in DIRECTORY.

    Issuing again renews: the node keeps its key and identity."""
    from edged.errors import ConfigError
    from edged.trust import NODE_DAYS, issue_node
    from protocol.identity import ROLES

    before = _issued_to(Path(out))
    if before not in (None, node):
        raise ConfigError(
            f"--out {out} holds the key of node {before!r}: give {node!r} a directory of its own"
        )
    node_id = issue_node(
        Path(directory), Path(out), name=node, roles=roles or ROLES, days=days or NODE_DAYS
    )
    if as_json:
        print_json({"node": node, "node_id": node_id, "directory": out})
    else:
        click.echo(f"issued {node} ({node_id}) in {out}")
        click.echo("next: copy it beside the node's node.toml as `trust`, then edged run node.toml")


def _issued_to(trust_directory: Path) -> str | None:
    """The node whose key and credential are there already; None where there is no whole pair."""
    import base64

    import msgspec

    from protocol.identity import Credential

    try:
        encoded = (trust_directory / "credential").read_bytes()
        if not (trust_directory / "node.key").exists():
            return None
        return msgspec.msgpack.decode(base64.b64decode(encoded), type=Credential).name
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


# ---------------------------------------------------------------- life
@cluster.command(cls=EdgedCommand)
@click.argument("file", required=False, type=click.Path())
@click.option("-n", "--nodes", "count", type=int, help=f"Default: {DEFAULT_NODES}.")
@click.option("--file", "file_flag", type=click.Path(), help="The same as FILE.")
@click.option("--name", metavar="NAME", help=f"Default: {DEFAULT_NAME!r}, or the file's name.")
@click.option("--pulley", type=int, default=None, help="How many nodes interpret (pulley64).")
@click.option("--region", "regions", multiple=True, help="Dealt out in turn; repeatable.")
@click.option(
    "--topology",
    metavar="FILE|NAME",
    help="Regions to deal the nodes over, and what lies between them; instead of FILE's.",
)
@click.option(
    "--lab",
    is_flag=True,
    default=None,
    help="Nodes can be cut off, slowed and harmed also without a topology.",
)
@click.option("--timeout", "timeout_s", type=float, help="Seconds until all must see all.")
@json_option
def up(
    file: str | None, file_flag: str | None, name: str | None, as_json: bool, **flags: Any
) -> None:
    """Start a cluster, of FILE or of so many nodes, and wait until every node sees every other.

    Without options other than --name, a cluster that was stopped with down --keep-data is started
    again with its data and addresses."""
    from .target import supervisor

    file, timeout_s = file or file_flag, flags.pop("timeout_s")
    boss = supervisor()
    chosen = name or (_name_of(file) if file else DEFAULT_NAME)
    given = any(value not in (None, ()) for value in flags.values())
    again = not file and not given and boss.home.exists(chosen)
    spec = None if again else _spec(file, **flags)
    nodes = len(spec.nodes) if spec else len(boss.load(chosen).nodes)
    with terminable(), progress(f"starting {chosen}") as report:
        boss.up(chosen, spec, timeout_s=timeout_s or _timeout_s(nodes), report=report)
    _show_status(boss.status(chosen), as_json=as_json)


def _spec(
    file: str | None,
    *,
    count: int | None,
    pulley: int | None,
    regions: tuple[str, ...],
    topology: str | None,
    lab: bool | None,
) -> ClusterSpec:
    """Raises ConfigError."""
    from edged.cluster.spec import load_spec, spec_of
    from edged.errors import ConfigError
    from edged.topology import find_topology

    over = find_topology(topology) if topology else None
    if file is None:
        number = DEFAULT_NODES if count is None else count
        return spec_of(number, pulley=pulley or 0, regions=regions, topology=over, lab=lab)
    if count is not None or pulley is not None or regions:
        raise ConfigError(
            "the file says how many nodes, which targets and regions: leave out -n,"
            " --pulley and --region"
        )
    return load_spec(Path(file), topology=over, lab=lab)


def _name_of(file: str) -> str:
    """Raises ConfigError."""
    from edged.cluster.state import check_cluster_name
    from edged.errors import ConfigError

    try:
        return check_cluster_name(Path(file).stem)
    except ConfigError as error:
        raise ConfigError(f"{error}; the file's name is none: give --name") from error


@cluster.command(cls=EdgedCommand)
@click.argument("name", required=False)
@click.option(
    "--name", "name_flag", metavar="NAME", help="The same, as the other commands have it."
)
@click.option("--keep-data", is_flag=True, help="Stop the nodes but keep their files.")
@json_option
def down(name: str | None, name_flag: str | None, keep_data: bool, as_json: bool) -> None:
    """Stop a cluster and remove it; also one whose nodes have crashed."""
    from .target import existing, supervisor

    boss = supervisor()
    with progress_console().status("stopping"):
        done = boss.down(existing(boss, name or name_flag), keep_data=keep_data)
    if as_json:
        print_json(done)
        return
    parts = [f"stopped {len(done.stopped)} nodes"]
    if done.killed:
        parts.append(f"killed {', '.join(done.killed)}")
    parts.append("removed its files" if done.removed else "kept its files")
    click.echo(f"{done.name}: {', '.join(parts)}")


@cluster.command(cls=EdgedCommand)
@name_option
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Show each node of a cluster: whether it runs, and whom it sees."""
    from .target import existing, supervisor

    boss = supervisor()
    _show_status(boss.status(existing(boss, name)), as_json=as_json)


def _show_status(view: ClusterStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    from edged.cluster.state import ROLES

    from .render import NONE, table

    click.echo(f"cluster {view.name}")
    total = len(view.nodes)
    table(
        ("name", "state", "region", "target", "roles", "gateway", "control", "sees"),
        (
            (
                n.name,
                n.condition,
                n.region,
                n.target,
                "all" if set(n.roles) == set(ROLES) else " ".join(n.roles),
                n.gateway_url if "serve" in n.roles else NONE,
                n.control_url,
                NONE if n.alive is None else f"{len(n.alive)} of {total}",
            )
            for n in view.nodes
        ),
        empty="no nodes",
    )


@cluster.command("list", cls=EdgedCommand)
@json_option
def list_(as_json: bool) -> None:
    """List the local clusters, newest first."""
    from .render import NONE, ago, table
    from .target import supervisor

    boss = supervisor()
    states = [boss.load(state.name) for state in boss.home.load_all()]
    damaged = boss.home.damaged()
    rows: list[dict[str, Any]] = [
        {
            "name": state.name,
            "nodes": len(state.nodes),
            "running": len(boss.running_nodes(state)),
            "created_at_s": state.created_at_s,
            "directory": str(boss.home.directory(state.name)),
        }
        for state in states
    ]
    rows += [
        {
            "name": name,
            "nodes": None,
            "running": boss.strays(name),
            "created_at_s": None,
            "directory": str(boss.home.directory(name)),
        }
        for name in damaged
    ]
    if as_json:
        print_json({"clusters": rows})
        return
    table(
        ("name", "nodes", "running", "made", "directory"),
        (
            (
                r["name"],
                "damaged" if r["nodes"] is None else r["nodes"],
                r["running"],
                NONE if r["created_at_s"] is None else ago(r["created_at_s"]),
                r["directory"],
            )
            for r in rows
        ),
        empty="no local clusters: edged cluster up makes one",
    )
    if damaged:
        click.echo("hint: edged cluster down NAME ends and removes a damaged one", err=True)
