"""Sizes of every form of a function's code, what each costs to make, and how it starts.

All by edged's own parts: its snapshots, wire forms, deltas, compilers and runtime. What takes
minutes to make (native code) is kept in the cache by digest and artifact key, with what it cost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import trio
from _common import Sample, alternate
from _snapshot_guests import PLACE, Case

from edged.deltas import DeltaSource
from edged.errors import BlobNotFound
from edged.interfaces import CancelFlag, InitPlan, Invocation, InvocationResult, SnapshotReport
from edged.runtime.runtime import WasmtimeRuntime
from edged.runtime.sections import Reader
from edged.snapshot.api import Snapshotter
from edged.store.store import BlobStore
from protocol.function import Policy
from protocol.ids import Digest, digest_of
from protocol.manifest import manifest_digest

POLICY = Policy(timeout_ms=30_000)
"""Time enough on a machine that does other things too."""
ARTIFACTS = PLACE / "artifacts"
CODE_SECTION = 10
JOBS = ("compile", "optimise")
FAST_COMPILES = 3


class Made(NamedTuple):
    """Native code."""

    path: Path
    size_bytes: int
    cpu_s: float
    peak_rss_bytes: int
    tier: str


class Blob(NamedTuple):
    """A form as it is stored and sent."""

    digest: Digest
    manifest: Digest
    size_bytes: int
    wire_bytes: int


class Code(NamedTuple):
    """A module, or its snapshot."""

    path: Path
    blob: Blob
    code_bytes: int
    fast: Made
    optimised: Made
    artifact: Blob
    """Of `optimised`."""


class Start(NamedTuple):
    """Of one fresh instance up to its first answer."""

    sample: Sample
    instantiate_s: float
    """The best, as `cpu_s`: who else wants the processors doubles a median."""

    @property
    def cpu_s(self) -> float:
        return min(self.sample.cpu_s)


class Facts(NamedTuple):
    case: Case
    module: Code
    snapshot: Code
    report: SnapshotReport
    delta_bytes: int
    delta_offered: bool
    """edged sends none that saves less than half."""
    starts: dict[str, Start]
    """By "module" and "snapshot"."""

    @property
    def init_s(self) -> float:
        """CPU seconds, by optimised code."""
        return max(self.starts["module"].cpu_s - self.starts["snapshot"].cpu_s, 0.0)

    @property
    def faster(self) -> float:
        """By CPU time."""
        return self.starts["module"].cpu_s / self.starts["snapshot"].cpu_s


async def measure(
    case: Case,
    runtime: WasmtimeRuntime,
    snapshotter: Snapshotter,
    store: BlobStore,
    *,
    rounds: int,
    times: int,
) -> Facts:
    """The snapshot is made `times` times. Raises RuntimeError: not always the same one, or it does
    not answer as its module does."""
    path = PLACE / f"{case.name}.snapshot.wasm"
    report = await _snapshot(case, path, snapshotter, times)
    module = await _code(case.module, runtime, store)
    snapshot = await _code(path, runtime, store)
    base = module.blob.digest
    delta = await store.make_delta(snapshot.blob.digest, base) or b""
    try:
        await DeltaSource(store).part(snapshot.blob.digest, [base], 0)
        offered = True
    except BlobNotFound:
        offered = False
    starts = await _starts(case, runtime, module, snapshot, rounds)
    return Facts(case, module, snapshot, report, len(delta), offered, starts)


async def _snapshot(case: Case, path: Path, snapshotter: Snapshotter, times: int) -> SnapshotReport:
    """The cheapest."""
    reports, digests = [], set()
    for _ in range(times):
        reports.append(await snapshotter.write(case.module, path, InitPlan(), POLICY))
        digests.add(digest_of(await trio.Path(path).read_bytes()))
    if len(digests) > 1:
        raise RuntimeError(f"{case.name}: {len(digests)} different snapshots")
    return min(reports, key=lambda report: report.cpu_s - report.init_cpu_s)


async def _code(path: Path, runtime: WasmtimeRuntime, store: BlobStore) -> Code:
    data = await trio.Path(path).read_bytes()
    fast, optimised = [await _made(runtime, path, digest_of(data), job) for job in JOBS]
    blob = await _blob(store, data, "module")
    artifact = await _blob(store, await trio.Path(optimised.path).read_bytes(), "artifact")
    return Code(path, blob, _code_bytes(data), fast, optimised, artifact)


async def _blob(store: BlobStore, data: bytes, kind: Any) -> Blob:
    info = await store.put(data, kind=kind)
    manifest = await store.make_manifest(info.digest)
    return Blob(info.digest, manifest_digest(manifest), len(data), manifest.wire_bytes)


async def _made(runtime: WasmtimeRuntime, module: Path, digest: Digest, job: str) -> Made:
    """Optimised code is kept with what it cost; fast code is made again, and its least cost kept:
    most of a first answer's time is that, and a shared machine makes it half as long again."""
    keys = repr(sorted(runtime.keys.items())).encode()
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / f"{digest[:16]}-{hashlib.sha256(keys).hexdigest()[:16]}-{job}.cwasm"
    told = path.with_suffix(".json")
    known = path.is_file() and told.is_file()
    best = json.loads(told.read_text("ascii")) if known else {"cpu_s": math.inf}
    if job == "compile":
        make, times = runtime.compile, 1 if known else FAST_COMPILES
    else:
        make, times = runtime.optimise, 0 if known else 1
    for _ in range(times):
        report = await make(module, path)
        cost = {"cpu_s": report.cpu_s, "peak_rss_bytes": report.peak_rss_bytes}
        best = min(best, cost | {"tier": report.tier}, key=lambda each: each["cpu_s"])
    told.write_text(json.dumps(best), "ascii")
    return Made(path, path.stat().st_size, **best)


def _code_bytes(wasm: bytes) -> int:
    reader = Reader(wasm, 8)
    while reader.at < len(wasm):
        section, size = reader.byte(), reader.number()
        if section == CODE_SECTION:
            return size
        reader.skip(size)
    return 0


async def answering(
    runtime: WasmtimeRuntime, code: Code
) -> Callable[[tuple[tuple[bytes, bytes], ...], bytes], InvocationResult]:
    """What gives the answer of a fresh instance to an environment and a body."""
    loaded = await runtime.load(code.blob.digest, code.optimised.path, "optimised")
    cancel = CancelFlag()
    return lambda env, stdin: loaded.invoke(
        Invocation(policy=POLICY, args=(b"f",), env=env, stdin=stdin), cancel
    )


async def _starts(
    case: Case, runtime: WasmtimeRuntime, module: Code, snapshot: Code, rounds: int
) -> dict[str, Start]:
    forms = {"module": module, "snapshot": snapshot}
    invoke = {name: await answering(runtime, code) for name, code in forms.items()}
    results: dict[str, list[InvocationResult]] = {name: [] for name in forms}

    def once(name: str) -> None:
        results[name].append(invoke[name](case.env, case.stdin))

    samples = alternate(
        {"module": lambda: once("module"), "snapshot": lambda: once("snapshot")},
        rounds=rounds,
        calls=1,
    )
    for name, answers in results.items():
        if any(answer.stdout != case.expected for answer in answers):
            raise RuntimeError(f"{case.name}, {name}: not what was expected: {answers[0]}")
    return {
        name: Start(
            samples[name],
            min(answer.instantiate_s for answer in answers),
        )
        for name, answers in results.items()
    }


def summary(facts: Facts) -> dict[str, Any]:
    report = facts.report
    codes = {"module": facts.module, "snapshot": facts.snapshot}
    return {
        **{
            name: {
                "raw_bytes": code.blob.size_bytes,
                "wire_bytes": code.blob.wire_bytes,
                "code_bytes": code.code_bytes,
                "artifact_bytes": code.artifact.size_bytes,
                "artifact_wire_bytes": code.artifact.wire_bytes,
                "compile_fast_cpu_s": code.fast.cpu_s,
                "compile_optimised_cpu_s": code.optimised.cpu_s,
                "start": facts.starts[name].sample.summary(),
                "instantiate_s": facts.starts[name].instantiate_s,
            }
            for name, code in codes.items()
        },
        "delta_bytes": facts.delta_bytes,
        "delta_offered": facts.delta_offered,
        "made": {
            "cpu_s": report.cpu_s,
            "compile_cpu_s": report.compile_cpu_s,
            "init_cpu_s": report.init_cpu_s,
            "peak_rss_bytes": report.peak_rss_bytes,
            "form": report.form,
            "tier": report.tier,
        },
    }
