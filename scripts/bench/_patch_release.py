"""A patch release to a holder of the version before: Ruby 3.4 with its standard library, 30 MB,
npm's builds 2.7.1 and 2.7.2, as a delta over TLS between two stores in this process.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import trio
from _common import REPOSITORY

from edged.deltas import DeltaSource
from edged.interfaces import Peer
from edged.network import ExchangeService
from edged.network.server import StreamServer
from edged.store import open_store
from edged.telemetry import Metrics, make_log
from edged.trust import load_trust
from protocol.ids import NodeId
from protocol.manifest import manifest_digest

CACHE = REPOSITORY / ".cache" / "bench"
PACKAGE = "@ruby/3.4-wasm-wasi"
MEMBER = "package/dist/ruby+stdlib.wasm"
VERSIONS = ("2.7.1", "2.7.2")


def rubies() -> list[Path] | str:
    """Both modules, or why they cannot be had."""
    found = [CACHE / f"ruby-3.4-{version}.wasm" for version in VERSIONS]
    if all(path.is_file() for path in found):
        return found
    if shutil.which("npm") is None:
        return "npm is not installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        for version, path in zip(VERSIONS, found, strict=True):
            with tempfile.TemporaryDirectory(dir=CACHE) as place:
                _download(version, Path(place), path)
    except (subprocess.SubprocessError, OSError, KeyError, tarfile.TarError) as error:
        return str(error)
    return found


def _download(version: str, place: Path, path: Path) -> None:
    subprocess.run(
        ["npm", "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{version}"],
        cwd=place, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    with tarfile.open(next(place.glob("*.tgz"))) as files:
        member = files.extractfile(MEMBER)
        if member is None:
            raise KeyError(MEMBER)
        (place / "module").write_bytes(member.read())
    (place / "module").replace(path)


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
