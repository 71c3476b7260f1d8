"""A node of `snapshots` behind a link, told by lines of JSON on stdin, each answered by one line.

    python _snapshot_node.py holder|asker OPTIONS
The holder serves a store. The asker holds nothing: for each order it gets one form of a function's
code from the holder, makes it ready and calls it once, by edged's own exchange, snapshots, compiler
and runtime, and tells when it had what.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import trio

from edged.config import RuntimeSection
from edged.deltas import DeltaSource
from edged.interfaces import CancelFlag, InitPlan, Invocation, LoadedModule, Peer, Tier
from edged.network import ExchangeService
from edged.network.server import StreamServer
from edged.runtime.runtime import WasmtimeRuntime, open_runtime
from edged.snapshot.api import Snapshotter
from edged.store import open_store
from edged.store.store import BlobStore
from edged.telemetry import Metrics, make_log
from edged.trust import load_trust
from protocol.function import Policy
from protocol.ids import Digest, NodeId

PORT = 7000
NICE = -10
POLICY = Policy(timeout_ms=30_000)
STANDBY_S = 1.5
"""By then a warm compiler waits for the next order, as on a node."""
LOG = make_log("bench", level="error")


class NoSync:
    async def answer_sync(self, _peer: NodeId, body: bytes) -> bytes:
        return body


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def holder(options: dict[str, Any]) -> None:
    store = await open_store(Path(options["store"]), zstd_level=0, min_free_bytes=0, log=LOG)
    deltas = DeltaSource(store)
    for snapshot, module in options["deltas"]:  # a peer that was asked before has them
        await deltas.part(Digest(snapshot), [Digest(module)], 0)
    server = StreamServer(
        trust=load_trust(Path(options["trust"])), source=store, deltas=deltas, sync=NoSync(),
        metrics=Metrics(), log=LOG,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        await nursery.start(
            server.run, await trio.open_tcp_listeners(PORT, host=options["address"])
        )
        say(ready=True)
        async for _line in trio.wrap_file(sys.stdin):
            pass
        nursery.cancel_scope.cancel()
    await store.close()


async def asker(options: dict[str, Any]) -> None:
    config = RuntimeSection(compile_timeout_s=600.0)
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as scratch:
        runtime = open_runtime(config, mounts={}, scratch_dir=Path(scratch), log=LOG)
        async with trio.open_nursery() as nursery:
            await nursery.start(runtime.run)
            say(ready=True)
            async for line in trio.wrap_file(sys.stdin):
                await trio.sleep(STANDBY_S)
                with tempfile.TemporaryDirectory(prefix="edged-bench-") as directory:
                    say(**await answered(options, runtime, Path(directory), json.loads(line)))
            nursery.cancel_scope.cancel()
        runtime.close()


async def answered(
    options: dict[str, Any], runtime: WasmtimeRuntime, directory: Path, order: dict[str, Any]
) -> dict[str, Any]:
    store = await open_store(directory, zstd_level=0, min_free_bytes=0, log=LOG)
    at = (options["holder"], PORT)
    peer = Peer(NodeId(options["holder_id"]), "holder", "far", at, at, "", rtt_s=None)
    metrics = Metrics()
    exchange = ExchangeService(
        trust=load_trust(Path(options["trust"])), store=store, holders=lambda _digest: [peer],
        find_peer=lambda _node: None, metrics=metrics, log=LOG,
    )  # fmt: skip
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(exchange.run)
            told = await _Order(order, store, exchange, runtime, directory).run()
            nursery.cancel_scope.cancel()
    finally:
        await store.close()
    return told | {"fetched_bytes": int(metrics.fetched_bytes.value)}


class _Order:
    """One form, from nothing to its first answer. What is computed is timed by CPU too: `own_s` is
    what the same takes where nobody else wants the processors."""

    def __init__(
        self,
        order: dict[str, Any],
        store: BlobStore,
        exchange: ExchangeService,
        runtime: WasmtimeRuntime,
        directory: Path,
    ) -> None:
        self._order = order
        self._store = store
        self._exchange = exchange
        self._runtime = runtime
        self._directory = directory
        self._fetch_s = self._cpu_s = 0.0

    async def run(self) -> dict[str, Any]:
        began_s = time.monotonic()
        path, tier = await self._code()
        loaded = await self._runtime.load(Digest(self._order["digest"]), path, tier)
        call = Invocation(
            policy=POLICY,
            args=(b"f",),
            env=tuple((name.encode(), value.encode()) for name, value in self._order["env"]),
            stdin=self._order["stdin"].encode(),
        )
        stdout = await trio.to_thread.run_sync(self._answer, loaded, call)
        first_s = time.monotonic() - began_s
        loaded.close()
        if stdout.decode() != self._order["expected"]:
            raise RuntimeError(f"{self._order['form']}: not what was expected: {stdout!r}")
        own_s = self._fetch_s + self._cpu_s
        return {"first_s": first_s, "own_s": own_s, "fetch_s": self._fetch_s}

    def _answer(self, loaded: LoadedModule, call: Invocation) -> bytes:
        began_s = time.thread_time()
        stdout = loaded.invoke(call, CancelFlag()).stdout
        self._cpu_s += time.thread_time() - began_s
        return stdout

    async def _code(self) -> tuple[Path, Tier]:
        """Native code on disk."""
        form = self._order["form"]
        if form in ("artifact", "snapshot-artifact"):
            return self._store.path(await self._fetch(form)), "optimised"
        if form in ("module", "snapshot"):
            source = self._store.path(await self._fetch(form))
        elif form == "snapshot-delta":
            module = await self._fetch("module")
            source = self._store.path(await self._fetch("snapshot", bases=[module]))
        else:
            source = await self._made(self._store.path(await self._fetch("module")))
        target = self._directory / "artifact"
        report = await self._runtime.compile(source, target)
        self._cpu_s += report.cpu_s
        return target, report.tier

    async def _made(self, module: Path) -> Path:
        path = self._directory / "snapshot"
        self._cpu_s += (await Snapshotter().write(module, path, InitPlan(), POLICY)).cpu_s
        return path

    async def _fetch(self, what: str, bases: Sequence[Digest] = ()) -> Digest:
        digest, manifest = (Digest(text) for text in self._order["blobs"][what])
        began_s = time.monotonic()
        await self._exchange.fetch(digest, manifest, progress=lambda _done, _of: None, bases=bases)
        self._fetch_s += time.monotonic() - began_s
        return digest


def prefer() -> None:
    """This process and its compilers before others, where that may be: on a shared machine they
    would wait for a processor several times as long as they use it."""
    with contextlib.suppress(PermissionError):
        os.nice(NICE)


if __name__ == "__main__":
    prefer()
    trio.run({"holder": holder, "asker": asker}[sys.argv[1]], json.loads(sys.argv[2]))
