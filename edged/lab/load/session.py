"""One load from a terminal: run it, tell how it goes, keep what came out in a run's folder."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import trio

from edged.errors import ConfigError
from edged.files import write_file
from edged.lab import history
from edged.lab.runfolder import RunFolder, recording, write_timeline
from edged.links import Document

from .around import Around, Target
from .hdr import log
from .runner import run_load
from .spec import NODE, LoadSpec
from .summary import Collector, Summary, stage_names

TICK_S = 0.25
LOAD = "load"
"""What the first row of its folder calls it, where a chaos run's names the scenario."""


class Progress(NamedTuple):
    elapsed_s: float
    in_flight: int
    collected: Collector


class Plan(NamedTuple):
    spec: LoadSpec
    targets: Sequence[Target]
    document: Document
    seed: int
    started_at_ms: int
    """Unix time."""
    replay: str
    folder: Path | None
    """Of the run, to be made."""


def run_session(plan: Plan, tell: Callable[[Progress], None]) -> Summary:
    """Until the load is over, or somebody interrupts it. Raises ConfigError."""
    return trio.run(_session, plan, tell)


async def _session(plan: Plan, tell: Callable[[Progress], None]) -> Summary:
    rng = Random(plan.seed)  # noqa: S311 - replayable
    around = Around(plan.targets, plan.document, rng)
    around.check_clients(plan.spec.regions)
    _check_routing(plan)
    collector = Collector(plan.spec)
    flying = 0

    def count(number: int) -> None:
        nonlocal flying
        flying = number

    with ExitStack() as stack:
        folder = None
        if plan.folder is not None:
            folder = stack.enter_context(recording(plan.folder))
            _begin(plan, folder)

        def take(row: history.Request) -> None:
            collector.add(row)
            if folder is not None:
                folder.request(row)

        started_at = trio.current_time()
        cut_short = True
        async with trio.open_nursery() as nursery:

            async def ticks() -> None:
                while True:
                    await trio.sleep(TICK_S)
                    if folder is not None:
                        folder.flush()
                    tell(Progress(trio.current_time() - started_at, flying, collector))

            nursery.start_soon(ticks)
            if folder is not None:
                nursery.start_soon(_phases, plan.spec, folder)
            nursery.start_soon(_until_interrupted, nursery.cancel_scope)
            await run_load(
                plan.spec, around, on_result=take, rng=rng, started_at=started_at, flying=count
            )
            cut_short = False
            nursery.cancel_scope.cancel()
        summary = msgspec.structs.replace(collector.summary(), cut_short=cut_short)
        if folder is not None:
            folder.event(history.Phase(t_s=summary.duration_s, name="end"))
            _finish(plan, folder.directory, collector, summary)
    return summary


def _check_routing(plan: Plan) -> None:
    """Raises ConfigError: such a node may come while a scenario runs, but not here."""
    names = [target.name for target in plan.targets]
    node = plan.spec.routing.removeprefix(NODE)
    if node != plan.spec.routing and node not in names:
        raise ConfigError(f"routing to node {node!r}: there are {', '.join(names)}")


async def _until_interrupted(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _begin(plan: Plan, folder: RunFolder) -> None:
    write_timeline(folder.directory, ())
    folder.event(
        history.Run(
            t_s=0.0,
            scenario=LOAD,
            seed=plan.seed,
            started_at_ms=plan.started_at_ms,
            nodes=tuple(history.Node(name=t.name, region=t.region) for t in plan.targets),
            functions=tuple(
                history.Function(name=f.name, abi="", replicas=0, path=f.path, versions=())
                for f in plan.spec.functions
            ),
            topology="shaped" if plan.document.topology is not None else "",
            replay=plan.replay[: history.TEXT_MAX],
        )
    )


async def _phases(spec: LoadSpec, folder: RunFolder) -> None:
    begun_at = trio.current_time()
    begun_s = 0.0
    for name, stage in zip(stage_names(spec), spec.stages, strict=True):
        await trio.sleep_until(begun_at + begun_s)
        folder.event(history.Phase(t_s=begun_s, name=name[:256]))
        begun_s += stage.seconds


def _finish(plan: Plan, directory: Path, collector: Collector, summary: Summary) -> None:
    document = {"spec": plan.spec, "seed": plan.seed, "summary": summary}
    encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
    write_file(directory / "load.json", encoded + b"\n", secret=False)
    lines = log(collector.intervals(), started_at_ms=plan.started_at_ms, about=plan.replay)
    write_file(directory / "latency.hlog", lines.encode(), secret=False)
