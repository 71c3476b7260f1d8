"""The phases, one after the other: from a module's bytes to its snapshot's.

Everything here runs in the worker: hostile bytes are parsed, a guest runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import msgspec

from edged.interfaces import SnapshotPhases, SnapshotReport
from edged.runtime.compile_worker import cpu_s, peak_rss_bytes
from edged.runtime.ffi import Api
from edged.runtime.host import Host
from edged.runtime.sandbox import Sandbox
from edged.runtime.settings import parse_target
from edged.runtime.world import World
from edged.telemetry import make_log

from .errors import refuse
from .examine import Resolved, check, resolve
from .guest import Guest
from .initialize import Compiled, compile_binary, instantiated, observe, run
from .instrument import Names, Parts, instrument
from .messages import OUTPUT_BYTES_MAX, Job, Phase
from .parse import Module, parse
from .rewrite import rewrite
from .snapshot import Snapshot, snapshot
from .wasi import Environment


class Progress:
    """Tells which phase begins, and notes how long each took."""

    def __init__(self, tell: Callable[[Phase], None]) -> None:
        self._tell = tell
        self.wall_s: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self._phase: Phase | None = None
        self._since = 0.0, 0.0

    def enter(self, phase: Phase | None) -> None:
        now = perf_counter(), cpu_s()
        if self._phase is not None:
            self.wall_s[self._phase] = now[0] - self._since[0]
            self.cpu_s[self._phase] = now[1] - self._since[1]
        self._phase, self._since = phase, now
        if phase is not None:
            self._tell(phase)


def make(
    job: Job, data: memoryview, write: Callable[[Parts], None], progress: Progress
) -> SnapshotReport:
    """Gives `write` the snapshot of the module `data`, all of whose parts are valid only then.

    Raises CannotSnapshot, InitTrapped, InitExited, InitTimeout, PolicyDenied, Overloaded, DiskFull,
    BadRequest (argv or environment)."""
    plan = job.plan
    progress.enter("parse")
    module = parse(data)
    check(module)
    resolved = resolve(module, plan)
    progress.enter("instrument")
    names = Names(module)
    binary = b"".join(instrument(module, names))
    progress.enter("compile")
    api, world = Api(job.library), World(fixed=plan.deterministic)
    environment = Environment(plan.env)
    host = Host(api, world.functions() | environment.functions())
    mounts = {name: Path(source) for name, source in job.mounts.items()}
    sandbox = Sandbox(api, mounts, Path(job.scratch), make_log("snapshot"))
    compiled = compile_binary(
        api, host, parse_target(job.target), module, binary,
        fast=job.fast, deterministic=job.plan.deterministic,
    )  # fmt: skip
    del binary
    progress.enter("instantiate")
    with instantiated(host, sandbox, compiled, module, plan, job.policy) as guest:
        before = observe(guest)
        progress.enter("init")
        results = run(guest, resolved.calls)
        progress.enter("capture")
        taken = snapshot(guest, before, job.limits)
        progress.enter("rewrite")
        out = rewrite(module, taken, resolved, keep_custom_sections=plan.keep_custom_sections)
        size = out.size
        if size > job.limits.snapshot_bytes:
            most = job.limits.snapshot_bytes
            raise refuse("too-large", "snapshot", f"has {size} bytes; at most {most}")
        write(out)
        progress.enter(None)
        report = _report(module, taken, resolved, compiled, guest, world, progress, results, size)
        return msgspec.structs.replace(report, environment_reads=environment.reads)


def _report(
    module: Module, taken: Snapshot, resolved: Resolved, compiled: Compiled, guest: Guest,
    world: World, progress: Progress, results: list[tuple[int | float, ...]], size: int,
) -> SnapshotReport:  # fmt: skip
    memories = taken.reports(module)
    return SnapshotReport(
        module_bytes=len(module.data),
        snapshot_bytes=size,
        form="padded" if any(each.padding_bytes for each in memories) else "sparse",
        memories=memories,
        memory_bytes=sum(each.captured_bytes for each in memories),
        data_segments=taken.segments,
        globals_rewritten=len(taken.globals),
        called=tuple(each.export for each in resolved.calls),
        results=tuple(results),
        dropped_exports=tuple(name for name in module.exports if name in resolved.dropped),
        zeros_called=tuple(guest.zeros_called),
        random_bytes=world.random_bytes,
        clock_reads=world.clock_reads,
        phases=SnapshotPhases(**{f"{phase}_s": took for phase, took in progress.wall_s.items()}),
        compile_cpu_s=progress.cpu_s["compile"],
        init_cpu_s=progress.cpu_s["init"],
        cpu_s=cpu_s(),
        peak_rss_bytes=peak_rss_bytes(),
        tier=compiled.tier,
        fast_refused=compiled.fast_refused,
        stdout=bytes(guest.call_state.stdout[-OUTPUT_BYTES_MAX:]),
        stderr=bytes(guest.call_state.stderr[-OUTPUT_BYTES_MAX:]),
    )
