"""An operator that keeps everything in memory: what a node does, without its disk and peers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping

import msgspec
import trio

from edged.errors import (
    BadRequest,
    BlobNotFound,
    Conflict,
    DigestMismatch,
    FunctionNotFound,
    ModuleRejected,
)
from edged.interfaces import (
    ArtifactsView,
    ArtifactView,
    Deployed,
    DeployRequest,
    ExplainView,
    FormView,
    FunctionDetail,
    FunctionSummary,
    FutureRecord,
    GossipView,
    HolderView,
    InitView,
    LogLine,
    MemberView,
    ModuleStored,
    NodeState,
    RepairReport,
    ReplicasView,
    SnapshotView,
    StatusView,
    VersionView,
)
from edged.telemetry import Metrics
from protocol.errors import RemoteProtocolError
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.ids import ArtifactKey, Digest, NodeId, digest_of, parse_function_name
from protocol.statistics import ProbeCounts
from tests.unit.control.sample_plans import sample_plan

MAGIC = b"\x00asm\x01\x00\x00\x00"
NODE_ID = NodeId("ab" * 16)
KEY = ArtifactKey("cd" * 32)


class _Function:
    def __init__(self) -> None:
        self.specs: list[FunctionSpec] = []
        self.times: list[float] = []
        self.current = -1
        self.log: list[LogLine] = []
        self.readers: set[trio.MemorySendChannel[LogLine]] = set()


class MemoryOperator:
    def __init__(self, *, node: str = "n1", gateway_url: str = "http://127.0.0.1:1") -> None:
        self.sharing: tuple[str, ...] = ()
        self.node = node
        self.gateway_url = gateway_url
        self.node_state = "ready"
        self.status_calls = 0
        self.modules: dict[Digest, int] = {}
        self.table: dict[str, _Function] = {}
        self.counters = Metrics()
        self.others: tuple[MemberView, ...] = ()
        self.following = 0
        self.joined: list[tuple[str, ...]] = []
        self.future: tuple[FutureRecord, ...] = ()
        self.bug: Exception | None = None
        self.init_error: Exception | None = None
        self.init: InitView | None = None
        self.snapshot: SnapshotView | None = None

    # ------------------------------------------------------------ modules and functions
    async def put_module(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        await trio.lowlevel.checkpoint()
        digest = digest_of(data)
        if expected is not None and digest != expected:
            raise DigestMismatch(f"the body hashes to {digest}", digest=digest)
        if data.startswith(b"(module"):
            data = MAGIC + data
        if not data.startswith(MAGIC):
            raise ModuleRejected("bad-magic", "neither .wasm nor .wat")
        module = digest_of(data)
        created = module not in self.modules
        self.modules[module] = len(data)
        return ModuleStored(module, len(data), len(data) // 2, (), ("_start",), created)

    async def deploy(self, name: str, request: DeployRequest) -> Deployed:
        await trio.lowlevel.checkpoint()
        try:
            parse_function_name(name)
        except RemoteProtocolError as error:
            raise BadRequest(str(error)) from error
        if request.module not in self.modules:
            raise BlobNotFound(f"no module {request.module}; upload it first")
        spec = FunctionSpec(
            request.abi,
            request.module,
            self.modules[request.module],
            digest_of(request.module.encode()),
            args=request.args,
            entrypoint=request.entrypoint,
            methods=request.methods,
            policy=request.policy,
            replicas=request.replicas or 1,
            init=request.init,
        )
        if self.init_error is not None:
            raise self.init_error
        function = self.table.setdefault(name, _Function())
        previous = self._current(function)
        if previous is not None and previous == version_of(encode_spec(spec)):
            return Deployed(name, previous, previous, created=False)
        function.specs.append(spec)
        function.times.append(time.time())
        function.current = len(function.specs) - 1
        return self._deployed(name, function, previous)

    def _deployed(self, name, function: _Function, previous) -> Deployed:
        wanted = function.specs[function.current].replicas
        return Deployed(
            name,
            self._current(function),
            previous,
            created=True,
            replicas=("n1",),
            wanted=wanted,
            init=self.init,
        )

    def _current(self, function: _Function):
        if function.current < 0:
            return None
        return version_of(encode_spec(function.specs[function.current]))

    def _get(self, name: str) -> _Function:
        if self.bug is not None:
            raise self.bug
        if name not in self.table:
            raise FunctionNotFound(f"no function {name!r}", function=name)
        return self.table[name]

    def _summary(self, name: str) -> FunctionSummary:
        function = self._get(name)
        spec = function.specs[function.current]
        return FunctionSummary(
            name,
            self._current(function),
            spec.abi,
            spec.module,
            spec.module_bytes,
            function.times[function.current],
            self.node,
            len(function.specs),
            "module",
        )

    def functions(self) -> tuple[FunctionSummary, ...]:
        return tuple(self._summary(name) for name in sorted(self.table))

    def _holders(self) -> tuple[HolderView, ...]:
        return (HolderView(self.node, NODE_ID, "local", "alive", None, True, "module"),)

    def describe(self, name: str) -> FunctionDetail:
        summary = self._summary(name)
        function = self.table[name]
        replicas = ReplicasView(3, "other", ("n1", "n2"), ("n2",), 1, under_replicated=True)
        spec = function.specs[function.current]
        return FunctionDetail(summary, spec, self._holders(), replicas, self.snapshot)

    def versions(self, name: str) -> tuple[VersionView, ...]:
        function = self._get(name)
        views = [
            VersionView(
                version_of(encode_spec(spec)),
                index == function.current,
                spec.abi,
                spec.module,
                spec.module_bytes,
                function.times[index],
                self.node,
                spec.init,
                self.snapshot,
            )
            for index, spec in enumerate(function.specs)
        ]
        return tuple(reversed(views))

    async def rollback(self, name: str, version: str | None) -> Deployed:
        await trio.lowlevel.checkpoint()
        function = self._get(name)
        previous = self._current(function)
        if version is None:
            if function.current == 0:
                raise Conflict("there is no version before the current one")
            function.current -= 1
        else:
            ids = [version_of(encode_spec(spec)) for spec in function.specs]
            fits = [index for index, full in enumerate(ids) if full.startswith(version)]
            if not fits:
                raise FunctionNotFound(f"{name!r} has no version {version}")
            if len(fits) > 1:
                raise BadRequest(f"{version} fits {len(fits)} versions")
            function.current = fits[0]
        return self._deployed(name, function, previous)

    async def remove(self, name: str) -> Deployed:
        await trio.lowlevel.checkpoint()
        function = self._get(name)
        previous = self._current(function)
        del self.table[name]
        for reader in list(function.readers):
            reader.close()
        return Deployed(name, None, previous, created=True, sharing=self.sharing)

    def future_records(self) -> tuple[FutureRecord, ...]:
        return self.future

    async def discard_future(self) -> tuple[FutureRecord, ...]:
        await trio.lowlevel.checkpoint()
        gone, self.future = self.future, ()
        return gone

    # ------------------------------------------------------------ logs
    def say(self, name: str, text: str) -> None:
        """The guest writes a line to its stderr."""
        function = self.table[name]
        line = LogLine(len(function.log), 1e9, self._current(function), "stderr", text)
        function.log.append(line)
        for reader in function.readers:
            reader.send_nowait(line)

    def logs(self, name: str, *, tail: int) -> list[LogLine]:
        log = self._get(name).log
        return log[len(log) - min(tail, len(log)) :]

    async def follow(self, name: str, *, tail: int) -> AsyncIterator[LogLine]:
        function = self._get(name)
        lines = self.logs(name, tail=tail)
        send, receive = trio.open_memory_channel[LogLine](100)
        function.readers.add(send)
        self.following += 1
        try:
            for line in lines:
                yield line
            async for line in receive:
                yield line
        finally:
            self.following -= 1
            function.readers.discard(send)
            receive.close()
            send.close()

    # ------------------------------------------------------------ views
    def explain(self, name: str, what_if: Mapping[str, float]) -> ExplainView:
        summary = self._summary(name)
        form = FormView(
            "module", "module", True, summary.module_bytes, summary.module, {"parse_s": 0.001}
        )
        none = FormView("artifact", "module", False, None, None, {})
        return ExplainView(
            summary.name,
            summary.version,
            self.node,
            "pulley64",
            KEY,
            "compiled",
            (form, none),
            self._holders(),
            plan=sample_plan(name, what_if),
        )

    def state(self) -> NodeState:
        return self.node_state

    def status(self) -> StatusView:
        self.status_calls += 1
        return StatusView(
            node=self.node,
            node_id=NODE_ID,
            edged="0.1.0",
            region="local",
            state=self.node_state,
            uptime_s=12.5,
            gateway_url=self.gateway_url,
            gossip_address="127.0.0.1:7946",
            target="pulley64",
            artifact_key=KEY,
            members={"alive": 1},
            functions=len(self.table),
            catalog="00" * 32,
            blobs=len(self.modules),
            blob_bytes=sum(self.modules.values()),
            running=0,
            trust_expires_s=4e9,
            repair=RepairReport(0, (), (), (), False),
            gossip=GossipView(
                health=2,
                load=0.25,
                generation=1,
                probing=msgspec.structs.asdict(ProbeCounts(probes=7, acks_direct=5, nacks=1)),
                queues={"updates": 3, "transmits": 0},
                lost={"updates": 0},
                refused={"seal-open": 4},
                syncs={"wanted": 1, "answered": 0},
                datagrams={"in": 8, "out": 9},
                datagram_bytes={"in": 800, "out": 900},
                messages={"in": {"ping": 8}, "out": {"ack": 9}},
                message_bytes={"in": {"ping": 80}, "out": {"ack": 90, "envelope": 810}},
            ),
        )

    async def join(self, seeds: tuple[str, ...]) -> None:
        await trio.lowlevel.checkpoint()
        if not all(seed.rpartition(":")[2].isdigit() for seed in seeds):
            raise BadRequest("seeds: write host:port")
        self.joined.append(seeds)

    def members(self) -> tuple[MemberView, ...]:
        return (
            MemberView(
                self.node,
                NODE_ID,
                "local",
                "alive",
                "127.0.0.1:7946",
                self.gateway_url,
                "pulley64",
                1,
                0,
                None,
                True,
                load=0.25,
                health=2,
                since_s=1_000.0,
            ),
            *self.others,
        )

    def artifacts(self) -> ArtifactsView:
        rows = (
            ArtifactView("a" * 64, "k" * 64, "optimised", "d" * 64, own=False, builders=("n2",)),
        )
        return ArtifactsView("n1", "signed", rows)

    def metrics(self) -> bytes:
        return self.counters.render()
