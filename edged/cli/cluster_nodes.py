"""`edged cluster`, one node at a time: end, pause, start, add, remove, read or enter it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .cluster_common import (
    chosen_cluster,
    name_option,
    progress,
    roles_option,
    terminable,
    timeout_option,
)
from .common import EdgedCommand, clean, json_option, print_json

if TYPE_CHECKING:
    from edged.cluster.logs import Line
    from edged.cluster.process import Process
    from edged.cluster.state import ClusterState
    from edged.cluster.supervisor import Supervisor

F = TypeVar("F", bound=Callable[..., Any])

COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta")
_OWN: Final = ("timestamp", "level", "node", "event")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LEVEL_STYLES: Final[dict[str, dict[str, Any]]] = {
    "debug": {"dim": True},
    "warning": {"fg": "yellow"},
    "error": {"fg": "red"},
}


# ---------------------------------------------------------------- signals
@click.command(cls=EdgedCommand)
@click.argument("node")
@name_option
@json_option
def kill(node: str, name: str | None, as_json: bool) -> None:
    """SIGKILL a node, as a crash would; its data stay."""
    boss, chosen = chosen_cluster(name)
    killed = boss.kill(chosen, node)
    if as_json:
        print_json({"cluster": chosen, "node": node, "pid": killed.pid})
    else:
        click.echo(f"killed {node} (pid {killed.pid}); edged cluster restart {node} revives it")


@click.command(cls=EdgedCommand)
@click.argument("node")
@name_option
@json_option
def pause(node: str, name: str | None, as_json: bool) -> None:
    """SIGSTOP a node and all it started: a host that hangs, with its connections open."""
    boss, chosen = chosen_cluster(name)
    stopped = boss.pause(chosen, node)
    _signalled(chosen, node, stopped, "paused", f"edged cluster resume {node}", as_json=as_json)


@click.command(cls=EdgedCommand)
@click.argument("node")
@name_option
@json_option
def resume(node: str, name: str | None, as_json: bool) -> None:
    """Let a paused node go on."""
    boss, chosen = chosen_cluster(name)
    resumed = boss.resume(chosen, node)
    _signalled(chosen, node, resumed, "resumed", "edged cluster status", as_json=as_json)


def _signalled(
    cluster: str, node: str, processes: list[Process], what: str, then: str, *, as_json: bool
) -> None:
    pids = [each.pid for each in processes]
    if as_json:
        print_json({"cluster": cluster, "node": node, "pids": pids})
    else:
        click.echo(f"{what} {node} (pid {', '.join(map(str, pids))}); next: {then}")


# ---------------------------------------------------------------- starting
@click.command(cls=EdgedCommand)
@click.argument("node")
@name_option
@timeout_option
@json_option
def restart(node: str, name: str | None, timeout_s: float, as_json: bool) -> None:
    """Stop a node if it runs, and start it with the same data and addresses."""
    boss, chosen = chosen_cluster(name)
    with progress(f"restarting {node}") as report:
        started = boss.restart(chosen, node, timeout_s=timeout_s, report=report)
    if as_json:
        print_json(
            {
                "cluster": chosen,
                "node": node,
                "pid": started.pid,
                "gateway_url": started.gateway_url,
                "control_url": started.control_url,
            }
        )
    else:
        click.echo(f"{node} is ready at {started.gateway_url} (pid {started.pid})")


@click.command(cls=EdgedCommand)
@click.argument("node", required=False)
@click.option("--region", help="Default: where, by the topology's shares, one is missing most.")
@click.option(
    "--target", type=click.Choice(["native", "pulley64"]), default="native", show_default=True
)
@roles_option
@name_option
@timeout_option
@json_option
def add(
    node: str | None,
    region: str | None,
    target: Any,
    roles: tuple[Any, ...],
    name: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Start one more node and let it join; NODE defaults to the next nN."""
    boss, chosen = chosen_cluster(name)
    spec = boss.plan(chosen, node=node, region=region, target=target, roles=roles)
    with terminable(), progress(f"adding {spec.name}") as report:
        started = boss.add(chosen, spec, timeout_s=timeout_s, report=report)
    if as_json:
        print_json({"cluster": chosen, "node": started})
    else:
        click.echo(
            f"{started.name} joined {chosen} in region {started.region}: {started.gateway_url}"
            f" (pid {started.pid})"
        )


@click.command(cls=EdgedCommand)
@click.argument("node")
@name_option
@json_option
def remove(node: str, name: str | None, as_json: bool) -> None:
    """Let a node leave gracefully, and remove its files. The others make its copies anew."""
    boss, chosen = chosen_cluster(name)
    graceful = boss.remove(chosen, node)
    if as_json:
        print_json({"cluster": chosen, "node": node, "graceful": graceful})
    else:
        how = "left" if graceful else "did not run, or did not end in time;"
        click.echo(f"{node} {how} {chosen}; removed its files")


# ---------------------------------------------------------------- reading
@click.command(cls=EdgedCommand)
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--tail",
    type=click.IntRange(0, 10_000),
    default=20,
    show_default=True,
    help="Lines of each node's past.",
)
@click.option("--level", type=click.Choice(list(_LEVELS)), help="Nothing below that.")
@name_option
@json_option
def logs(
    nodes: tuple[str, ...],
    follow: bool,
    tail: int,
    level: str | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Print what nodes (all, if none is named) have logged, in the order of its time; with --json
    one JSON document per line. edged logs FUNCTION is for functions."""
    from edged.cluster.logs import read_logs

    boss, chosen = chosen_cluster(name)
    state = boss.load(chosen)
    shown = [state.node(each) for each in nodes] or state.nodes
    paths = [(each.name, boss.home.log_file(chosen, each.name)) for each in shown]
    width = max(len(each.name) for each in shown)
    colours = {each.name: COLOURS[at % len(COLOURS)] for at, each in enumerate(shown)}
    least = _LEVELS[level] if level else 0

    def goes_on() -> bool:
        return boss.home.exists(chosen)

    try:
        for line in read_logs(paths, tail=tail, follow=goes_on if follow else None):
            if line.row is not None and _LEVELS.get(line.row.level, 0) < least:
                continue
            if as_json:
                print(_as_json(line), flush=True)
            else:
                head = click.style(f"{line.node:{width}}", fg=colours[line.node])
                click.echo(f"{head} {_told(line)}")
    except KeyboardInterrupt:
        if not follow:
            raise


def _as_json(line: Line) -> str:
    """A node's own lines are JSON with its name already."""
    import json

    if line.row is not None:
        return line.text
    return json.dumps({"timestamp": line.at, "node": line.node, "text": line.text})


def _told(line: Line) -> str:
    """12:00:00.123 event key=value …"""
    import json

    if line.row is None:
        return clean(line.text)
    fields = {key: value for key, value in json.loads(line.text).items() if key not in _OWN}
    trace = fields.pop("exception", None)
    words = " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in fields.items()
    )
    level = line.row.level
    event = clean(line.row.event if level == "info" else f"{level}: {line.row.event}")
    text = click.style(line.row.timestamp[11:23], dim=True)
    text += f" {click.style(event, **_LEVEL_STYLES.get(level, {}))}"
    text += f" {click.style(clean(words), dim=True)}" if words else ""
    return text + (f"\n{clean(str(trace))}" if trace else "")


# ---------------------------------------------------------------- stepping in
@click.command(
    cls=EdgedCommand,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("node")
@name_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(node: str, name: str | None, command: tuple[str, ...]) -> None:
    """Open a shell in which edged talks to NODE, or run one COMMAND so.

    EDGED_CONTROL and EDGED_TOKEN_FILE name its operator API, EDGED_GATEWAY its public URL,
    EDGED_NODE the node, EDGED_STATE where the cluster is kept."""
    boss, chosen = chosen_cluster(name)
    state = boss.load(chosen)
    environ = _environ(boss, state, node)
    if command[:1] == ("--",):
        command = command[1:]
    argv = command or (os.environ.get("SHELL") or "/bin/sh",)
    if not command:
        click.echo(f"{node} of {chosen}: edged commands go to it; exit to leave", err=True)
    try:
        os.execvpe(argv[0], argv, os.environ | environ)  # noqa: S606 - nothing is left to do here
    except OSError as error:
        raise OSError(error.errno, error.strerror, argv[0]) from error


def _environ(boss: Supervisor, state: ClusterState, name: str) -> dict[str, str]:
    """Raises ClusterNotFound."""
    node = state.node(name)
    directory: Path = boss.home.node_directory(state.name, name)
    return {
        "EDGED_STATE": str(boss.home.root),
        "EDGED_NODE": name,
        "EDGED_NODE_DIRECTORY": str(directory),
        "EDGED_CONTROL": node.control_url,
        "EDGED_TOKEN_FILE": str(boss.home.token_file(state.name, name)),
        "EDGED_TOKEN": "",
        "EDGED_GATEWAY": node.gateway_url,
    }
