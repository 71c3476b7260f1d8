"""The parts of a node that make, state and judge snapshots, over a real store, with a maker whose
snapshots are the module and its plan, joined."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from protocol_support import ROLES, WALL_MS, anchor, credential_of, key_of

from edged.acceptance import Acceptance
from edged.clock import Clock
from edged.inits import Inits, Prepared
from edged.interfaces import (
    Code,
    EventKind,
    Examination,
    InitPlan,
    SnapshotPhases,
    SnapshotReport,
    SnapshotWish,
)
from edged.making import Making
from edged.snapshots import SnapshotService
from edged.store import BlobStore, open_store
from edged.telemetry import Metrics, make_log
from protocol.catalog import Catalog
from protocol.function import FunctionSpec, InitCall, InitSpec, Policy, encode_spec
from protocol.identity import Role
from protocol.ids import Digest, NodeId
from protocol.manifest import manifest_digest
from protocol.snapshots import SnapshotFacts, SnapshotStatement

MODULE = b"\0asm\x01\0\0\0" + bytes(range(256)) * 40
INIT = InitSpec((InitCall("init"),))


class FixedClock(Clock):
    def now_s(self) -> float:
        return WALL_MS / 1000


class FakeMaker:
    """Implements interfaces.Snapshots."""

    def __init__(self) -> None:
        self.made = 0
        self.plans: list[tuple[InitPlan, Policy]] = []
        self.error: Exception | None = None
        self.salt = b""
        self.idle = False
        """Init changes nothing."""
        self.random_bytes = 0
        self.gate = trio.Event()
        self.gate.set()

    def examine(self, module: bytes) -> Examination:
        raise AssertionError("nobody asks")

    async def make(
        self, module: bytes, plan: InitPlan, policy: Policy
    ) -> tuple[bytes, SnapshotReport]:
        raise AssertionError("nobody asks")

    async def write(
        self, module: Path, output: Path, plan: InitPlan, policy: Policy
    ) -> SnapshotReport:
        self.made += 1
        self.plans.append((plan, policy))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        size = self._write(module, output, plan)
        return report_of(size, self.random_bytes)

    def _write(self, module: Path, output: Path, plan: InitPlan) -> int:
        data = module.read_bytes()
        output.write_bytes(data if self.idle else data + msgspec.msgpack.encode(plan) + self.salt)
        return len(data)


def report_of(module_bytes: int, random_bytes: int) -> SnapshotReport:
    return SnapshotReport(
        module_bytes=module_bytes,
        snapshot_bytes=module_bytes,
        form="sparse",
        memories=(),
        memory_bytes=0,
        data_segments=0,
        globals_rewritten=0,
        called=("init",),
        results=((),),
        dropped_exports=(),
        zeros_called=(),
        random_bytes=random_bytes,
        clock_reads=0,
        phases=SnapshotPhases(0, 0, 0, 0, 0, 0, 0),
        compile_cpu_s=0.125,
        init_cpu_s=0.25,
        cpu_s=0.5,
        peak_rss_bytes=0,
        tier="fast",
        fast_refused="",
        stdout=b"",
        stderr=b"",
    )


class FakeDistrust:
    def __init__(self) -> None:
        self.caught: list[tuple[list[NodeId], list[Digest]]] = []

    async def builders(self, builders: Sequence[NodeId], *, also: Sequence[Digest] = ()) -> None:
        self.caught.append((list(builders), list(also)))


class Bench:
    """One node of them, called `name`."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        name: str,
        *,
        roles: tuple[Role, ...] = ROLES,
        accept: str = "signed",
    ) -> None:
        self.store, self.catalog, self.maker = store, catalog, FakeMaker()
        self.kept: Counter[Digest] = Counter()
        self.held: list[Digest] = []
        self.noted: list[tuple[EventKind, str, str]] = []
        self.worth: list[tuple[SnapshotFacts, int, int]] = []
        self.is_worth = True
        self.exports: tuple[str, ...] = ("_start",)
        self.metrics, self.output = Metrics(), io.StringIO()
        self.distrust = FakeDistrust()
        log = make_log(name, stream=self.output)
        credential = credential_of(name, roles=roles)
        self.acceptance = Acceptance(
            accept, anchor=anchor(), credential=credential, store=store, clock=FixedClock()
        )
        self.making = Making(
            self.maker, store=store, keeping=self.keeping, metrics=self.metrics, log=log
        )
        self.inits = Inits(
            self.making,
            store=store,
            catalog=catalog,
            private_key=key_of(name),
            credential=credential,
            worth=self._worth,
            delta_bytes=self._delta_bytes,
            keeping=self.keeping,
            remove=self.remove,
            on_held=self.held.append,
            note=self._note,
            clock=FixedClock(),
            log=log,
        )
        self.log = log
        self.node_id = credential.node_id
        self.service = self.started()

    def started(self) -> SnapshotService:
        """As after a restart of the node."""
        return SnapshotService(
            self.making,
            node_id=self.node_id,
            store=self.store,
            catalog=self.catalog,
            acceptance=self.acceptance,
            have=self._have,
            keeping=self.keeping,
            on_held=self.held.append,
            distrust=self.distrust,
            note=self._note,
            metrics=self.metrics,
            log=self.log,
        )

    def _worth(self, facts: SnapshotFacts, size: int, module_wire: int) -> tuple[bool, str]:
        self.worth.append((facts, size, module_wire))
        return self.is_worth, "as the test says"

    async def _delta_bytes(self, _blob: Digest, _base: Digest) -> int:
        return 77

    async def _have(self, code: Code) -> None:
        if self.store.info(code.digest) is None:
            await self.store.put(MODULE, kind="module", expected=code.digest)

    def _note(self, kind: EventKind, name: str, detail: str) -> None:
        self.noted.append((kind, name, detail))

    @asynccontextmanager
    async def keeping(self, digest: Digest) -> AsyncIterator[None]:
        self.kept[digest] += 1
        try:
            yield
        finally:
            self.kept[digest] -= 1

    async def remove(self, digest: Digest) -> bool:
        if self.kept[digest]:
            return False
        await self.store.delete(digest)
        return True

    async def spec(self, init: InitSpec | None = INIT, data: bytes = MODULE) -> FunctionSpec:
        """Of a module that is stored for it."""
        info = await self.store.put(data, kind="module")
        manifest = manifest_digest(await self.store.make_manifest(info.digest))
        return FunctionSpec("raw", info.digest, info.size_bytes, manifest, init=init)

    async def fits(self, snapshot: Digest) -> tuple[str, ...]:
        assert self.store.info(snapshot) is not None
        assert self.kept[snapshot], "it might be collected meanwhile"
        return self.exports

    async def deploy(
        self, spec: FunctionSpec, wish: SnapshotWish = "auto", *, name: str = "f"
    ) -> Prepared:
        """To the catalog as well."""
        async with self.inits.at_deploy(spec, wish, name=name, fits=self.fits) as prepared:
            self.catalog.apply(
                self.catalog.prepare_deploy(
                    name, encode_spec(spec), wall_ms=WALL_MS, snapshot=prepared.statement
                )
            )
        return prepared

    def modules(self) -> set[Digest]:
        return {blob.digest for blob in self.store.blobs() if blob.kind == "module"}

    def statement(self, name: str = "f") -> SnapshotStatement:
        current = self.catalog.lookup(name)
        assert current is not None
        assert current.snapshot is not None
        return current.snapshot


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[BlobStore]:
    log = make_log("n", stream=io.StringIO())
    store = await open_store(path, zstd_level=1, min_free_bytes=0, log=log)
    try:
        yield store
    finally:
        await store.close()
