"""A patch release to a holder of the version before: Ruby 3.4 with its standard library, 30 MB,
npm's builds 2.7.1 and 2.7.2, as a delta over TLS between two stores in this process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trio
from _packages import Member, Unobtainable, fetch

from edged.deltas import DeltaSource
from edged.interfaces import Peer
from edged.network import ExchangeService
from edged.network.server import StreamServer
from edged.store import open_store
from edged.telemetry import Metrics, make_log
from edged.trust import load_trust
from protocol.ids import NodeId
from protocol.manifest import manifest_digest

PACKAGE = "@ruby/3.4-wasm-wasi"
MEMBER = "package/dist/ruby+stdlib.wasm"
VERSIONS = {
    "2.7.1": "f740c650d434d5d2e3ad7fe21af411b05ad2e75810dead2bdce3c873744369bb",
    "2.7.2": "668088e18095c446ec4a6cff5c3b55b3e9fa48e6bda61353be8174081baca95f",
}


def rubies() -> list[Path] | str:
    """Both modules, or why they cannot be had."""
    try:
        return [
            fetch(Member("npm", PACKAGE, version, MEMBER, sha256))
            for version, sha256 in VERSIONS.items()
        ]
    except Unobtainable as error:
        return str(error)


class NoSync:
    async def answer_sync(self, _peer: NodeId, body: bytes) -> bytes:
        return body


async def measure(root: Path, modules: list[Path]) -> dict[str, Any]:
    """`root` holds the trust directories n0 and n1."""
    log, metrics = make_log("bench", level="error"), Metrics()
    old, new = (path.read_bytes() for path in modules)
    holder = await open_store(root / "holder", zstd_level=9, min_free_bytes=0, log=log)
    store = await open_store(root / "fetcher", zstd_level=9, min_free_bytes=0, log=log)
    base = await holder.put(old, kind="module")
    info = await holder.put(new, kind="module")
    manifest = await holder.make_manifest(info.digest)
    await store.put(old, kind="module")
    trusts = [load_trust(root / name) for name in ("n0", "n1")]
    async with trio.open_nursery() as nursery:
        server = StreamServer(
            trust=trusts[0],
            source=holder,
            deltas=DeltaSource(holder),
            sync=NoSync(),
            metrics=Metrics(),
            log=log,
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = listeners[0].socket.getsockname()[:2]
        await nursery.start(server.run, listeners)
        peer = Peer(trusts[0].node_id, "n0", "local", address, address, "", rtt_s=None)
        exchange = ExchangeService(
            trust=trusts[1],
            store=store,
            holders=lambda _digest: [peer],
            find_peer=lambda _node: None,
            bases=lambda _digest: [base.digest],
            metrics=metrics,
            log=log,
        )
        await nursery.start(exchange.run)
        wall, cpu = time.perf_counter(), time.process_time()
        named = manifest_digest(manifest)
        await exchange.fetch(info.digest, named, progress=lambda _done, _of: None)
        found = {
            "raw_bytes": len(new),
            "wire_bytes": manifest.wire_bytes,
            "fetched_bytes": int(metrics.fetched_bytes.value),
            "seconds": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
        }
        nursery.cancel_scope.cancel()
    await holder.close()
    await store.close()
    return found
