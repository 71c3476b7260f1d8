"""One run from its scenario file to its verdict: a cluster of its own, the engine, the folder.

The cluster is one of the user's local clusters, under a name of its own, so that what a killed run
leaves is seen by `edged cluster list` and ended by `edged cluster down`. It is started and ended
outside of the event loop: whatever happens between, also Ctrl-C, it is torn down, and what is left
of it is looked for and told.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from edged.cluster import process
from edged.cluster.signals import undisturbed
from edged.cluster.state import ClusterState, Home
from edged.cluster.supervisor import Supervisor
from edged.files import write_file
from edged.lab.history import (
    Decided,
    Deploy,
    Fault,
    Finding,
    HistoryRow,
    Left,
    Node,
    Phase,
    Planned,
    Run,
    Verdict,
)
from edged.lab.runfolder import (
    RunFolder,
    path_of,
    read_history,
    recording,
    write_timeline,
    write_verdict,
)

from .deploying import Modules
from .engine import Engine, Load
from .field import Field
from .judging import judge
from .loading import load_of
from .plan import plan
from .sampling import entries
from .scenario import Scenario
from .telling import told

UP_TIMEOUT_S: Final = 30.0
UP_EACH_S: Final = 2.0
"""A node process starts in 0.4 s of CPU; this is for a machine that is busy otherwise."""
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
GIT_TIMEOUT_S: Final = 5.0

TOLD: Final = (Decided, Deploy, Fault, Finding, Phase)
"""Events that are told as they happen; the rest is in the folder."""

Tell = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    out: Path
    """Folder of the run; must not hold one."""
    home: Home
    keep: bool = False
    """The cluster's files stay: its processes end all the same."""


def run_scenario(scenario: Scenario, options: Options, *, tell: Tell) -> Verdict:
    """Raises ConfigError before anything was started; ClusterFailed: it did not come up."""
    timeline = plan(scenario, options.seed)
    modules = Modules(scenario)
    boss = Supervisor(options.home)
    name = cluster_name(scenario)
    fds_before = entries("/proc/self/fd") or 0
    with recording(options.out) as folder:
        tell(f"cluster {name}: starting {len(scenario.cluster.nodes)} nodes")
        with _begun_or_gone(options.out), _cluster(boss, name, scenario, options, tell) as state:
            write_file(options.out / "scenario.toml", scenario.text, secret=False)
            write_timeline(options.out, timeline)
            folder.event(_run_row(scenario, options, state, modules))
            tell(f"running for {scenario.for_s:g} s; edged chaos show {options.out}")
            load = load_of(scenario, options.seed, folder.request)
            field = Field(boss, name)
            with _bare_interrupt():
                over_s = trio.run(_engine, field, scenario, timeline, modules, folder, load, tell)
        folder.event(_left(boss, name, options, fds_before, over_s))
    tell("judging")
    verdict = judge(read_history(options.out))
    write_verdict(options.out, verdict)
    return verdict


async def _engine(
    field: Field,
    scenario: Scenario,
    timeline: tuple[Planned, ...],
    modules: Modules,
    folder: RunFolder,
    load: Load,
    tell: Tell,
) -> float:
    def event(row: HistoryRow) -> None:
        folder.event(row)
        if isinstance(row, TOLD):
            tell(f"{row.t_s:8.2f} s  {told(row)}")

    engine = Engine(
        field,
        scenario,
        timeline,
        modules,
        load=load,
        event=event,
        sample=folder.sample,
        flush=folder.flush,
    )
    return await engine.run()


@contextmanager
def _begun_or_gone(out: Path) -> Iterator[None]:
    """A run that failed before its first row leaves no folder to wonder about."""
    try:
        yield
    except BaseException:
        history = path_of(out, "history")
        if not history.stat().st_size:
            for name in RunFolder.FILES:
                path_of(out, name).unlink(missing_ok=True)
            with suppress(OSError):  # what else is in it is somebody else's
                out.rmdir()
        raise


@contextmanager
def _bare_interrupt() -> Iterator[None]:
    """Ctrl-C as everybody outside of nurseries knows it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is None:
            raise KeyboardInterrupt from group
        raise


# ---------------------------------------------------------------- the cluster
def cluster_name(scenario: Scenario) -> str:
    """Whatever its file is called; another one for each run."""
    plain = re.sub(r"[^a-z0-9]+", "-", scenario.name.lower()).strip("-")[:32]
    return f"chaos-{plain}-{secrets.token_hex(3)}"


@contextmanager
def _cluster(
    boss: Supervisor, name: str, scenario: Scenario, options: Options, tell: Tell
) -> Iterator[ClusterState]:
    timeout_s = UP_TIMEOUT_S + UP_EACH_S * len(scenario.cluster.nodes)
    state = boss.up(name, scenario.cluster, timeout_s=timeout_s)
    try:
        yield state
    finally:
        with undisturbed(lambda: tell(f"cluster {name}: is ending, a moment")):
            tell(f"cluster {name}: ending")
            with suppress(OSError):  # logs are for people; the cluster has to go in any case
                _collect_logs(boss.home, state, options.out / "logs")
            boss.down(name, keep_data=options.keep)


def _collect_logs(home: Home, state: ClusterState, to: Path) -> None:
    """The end of each node's log, and of what it was renamed to."""
    to.mkdir(parents=True, exist_ok=True)
    for node in state.nodes:
        path = home.log_file(state.name, node.name)
        data = b""
        for part in (path.with_name(path.name + ".1"), path):
            if part.is_file():
                data += part.read_bytes()
        (to / f"{node.name}.log").write_bytes(data[-LOG_BYTES_MAX:])


def _left(boss: Supervisor, name: str, options: Options, fds_before: int, over_s: float) -> Left:
    directory = boss.home.directory(name)
    files = [] if options.keep or not directory.exists() else [str(directory)]
    files += [str(path) for path in sorted(options.out.rglob(".*"))]
    # The run's own three files are open still; they are counted as there before.
    fds_after = (entries("/proc/self/fd") or 0) - len(RunFolder.FILES)
    return Left(
        t_s=over_s,
        processes=tuple(f"pid {each.pid}" for each in process.strays(directory)),
        files=tuple(files),
        fds_before=fds_before,
        fds_after=fds_after,
    )


# ---------------------------------------------------------------- the first row
def _run_row(scenario: Scenario, options: Options, state: ClusterState, modules: Modules) -> Run:
    accept = str(scenario.cluster.config.get("artifacts", {}).get("accept", "signed"))
    return Run(
        t_s=0.0,
        scenario=scenario.name,
        seed=options.seed,
        started_at_ms=round(time.time() * 1000),
        commit=commit(),
        nodes=tuple(
            Node(
                name=node.name,
                region=node.region,
                target=node.target,
                roles=node.roles,
                accept=accept,
            )
            for node in state.nodes
        ),
        functions=modules.functions,
        topology=scenario.topology,
        bounds=scenario.bounds,
        replay=replay_command(scenario.path, options.seed),
    )


def replay_command(path: Path, seed: int) -> str:
    return f"edged chaos run {shlex.quote(str(path))} --seed {seed}"


def commit() -> str:
    """Of the checkout that edged runs from; "" where there is none."""
    git = shutil.which("git")
    if git is None:
        return ""
    root = Path(__file__).resolve().parents[3]
    try:
        done = subprocess.run(
            [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()
