"""This node's artifacts: made, attested, checked each time before they are mapped (SPEC §9).

Owns what the store has of them under this node's artifact keys, one per tier. Native code is
opened only after the policy is content with its attestations (acceptance.py) and its bytes hash to
what they say: `trusted` and nothing else says so.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.artifact import (
    ATTESTATIONS_MAX,
    Attestation,
    Attested,
    attest,
    decode_attestations,
    encode_attestations,
    encode_attested,
)
from protocol.errors import RemoteProtocolError
from protocol.identity import Credential
from protocol.ids import ArtifactKey, Digest, NodeId
from protocol.manifest import manifest_digest

from .acceptance import Acceptance, Words
from .acquisition import Lot
from .errors import ArtifactRefused, BlobCorrupt, BlobNotFound
from .interfaces import ArtifactRow, CompileReport, LoadedModule, Runtime, Store, Tier
from .metrics import Metric
from .rates import Rates, code_bytes
from .telemetry import Log, Metrics

MEASURED_MAX: Final = 1024
JUDGED_MAX: Final = 4096
Compiler = Callable[[Path, Path], Awaitable[CompileReport]]
BEST_FIRST: Final[tuple[Tier, ...]] = ("optimised", "fast")
UNSERVED: Final = Digest("")
"""Stands for the manifest of what is never served: fast code."""


class Artifacts:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        *,
        store: Store,
        runtime: Runtime,
        acceptance: Acceptance,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        rates: Rates,
        on_change: Callable[[Digest], None],
        on_refused: Callable[[ArtifactRow, str, str], None],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`on_change` is told of a module whose artifact came, went, or is being made; `on_refused`
        of an artifact here that was not opened (reason, detail), before it is dropped."""
        self._store = store
        self._runtime = runtime
        self._acceptance = acceptance
        self._private_key = private_key
        self._credential = credential
        self._rates = rates
        self._on_change = on_change
        self._on_refused = on_refused
        self._building: Counter[Digest] = Counter()
        self._metrics = metrics
        self._log = log
        self._judged: OrderedDict[Digest, tuple[ArtifactRow, bool]] = OrderedDict()
        self._header_limiter = trio.CapacityLimiter(2)
        self._costs: OrderedDict[Digest, dict[tuple[Tier, str], float]] = OrderedDict()
        """What making each module ready cost here."""
        self._sizes: OrderedDict[Digest, int] = OrderedDict()
        """Of code sections."""

    @property
    def accept(self) -> str:
        """The policy, as in the configuration."""
        return self._acceptance.accept

    # ------------------------------------------------------------ what is here
    def row(self, module: Digest, tier: Tier) -> ArtifactRow | None:
        """Unchecked."""
        key = self._runtime.keys.get(tier)
        return None if key is None else self._store.artifact(module, key)

    def best(self, module: Digest) -> tuple[Tier, ArtifactRow] | None:
        """Unchecked: the artifact that would be mapped."""
        for tier in BEST_FIRST:
            row = self.row(module, tier)
            if row is not None:
                return tier, row
        return None

    def building(self, module: Digest) -> bool:
        """Whether its optimised artifact is being compiled here now, for others to wait for."""
        return module in self._building

    def accepted(self, module: Digest) -> bool:
        """Whether the policy is content with who vouches for the optimised artifact here."""
        row = self.row(module, "optimised")
        if row is None:
            return False
        known = self._judged.get(module)
        if known is None or known[0] is not row:
            try:
                known = row, self._acceptance.enough(self._words(row))
            except RemoteProtocolError:
                known = row, False
            self._judged[module] = known
            if len(self._judged) > JUDGED_MAX:
                self._judged.popitem(last=False)
        return known[1]

    def fetched(self) -> list[ArtifactRow]:
        """Those that this node has not compiled itself."""
        own, found = self._credential.node_id, []
        for row in self._store.artifacts():
            if row.key != self._runtime.keys["optimised"]:
                continue
            with contextlib.suppress(RemoteProtocolError):
                if own not in self._words(row).by_builder:
                    found.append(row)
        return found

    def _words(self, row: ArtifactRow) -> Words:
        """Raises RemoteProtocolError."""
        return self._acceptance.sort(
            decode_attestations(row.attestations),
            module=row.module,
            key=row.key,
            artifact=row.digest,
        )

    def builders(self, row: ArtifactRow) -> dict[NodeId, str]:
        """Whose words for it hold, by the names that the CA gave them: who vouched may be no member
        any more, or not yet. Raises RemoteProtocolError."""
        words = self._words(row).by_builder
        return {builder: word.builder.name for builder, word in words.items()}

    async def trusted(self, module: Digest) -> tuple[Tier, ArtifactRow] | None:
        """The best artifact of `module` of which all that is claimed holds; what is refused is
        dropped, and made anew when nothing else is left."""
        for tier in BEST_FIRST:
            row = self.row(module, tier)
            if row is None:
                continue
            try:
                await self._check(module, row)
            except RemoteProtocolError as error:
                await self._refuse(module, row, error.code, error.detail)
            except ArtifactRefused as error:
                await self._refuse(module, row, error.reason, str(error))
            except BlobNotFound as error:
                await self._refuse(module, row, "bytes", str(error))
            else:
                return tier, row
        return None

    async def _check(self, module: Digest, row: ArtifactRow) -> None:
        if (row.module, row.key) not in ((module, key) for key in self._runtime.keys.values()):
            raise ArtifactRefused("it is of another module or artifact key", reason="attestation")
        self._acceptance.check(self._words(row))
        if not await self._store.verify(row.digest):
            raise ArtifactRefused("its bytes do not hash to its digest", reason="bytes")

    async def _refuse(self, module: Digest, row: ArtifactRow, reason: str, detail: str) -> None:
        self._on_refused(row, reason, detail)
        await self._drop(module, row)

    # ------------------------------------------------------------ for peers
    async def attested(self, module: Digest, key: ArtifactKey) -> bytes:
        """What peers may have of the module's artifact: only what is accepted here, only words
        that hold, and only a wire form that one of them names. An encoded Attested."""
        row = self.row(module, "optimised")
        if row is None or row.key != key or not self.accepted(module):
            return b""
        words = [
            word
            for builder, word in self._words(row).by_builder.items()
            if builder != self._credential.node_id or "build" in self._credential.roles
        ]
        try:
            manifest = await self._store.make_manifest(row.digest)
        except (BlobNotFound, BlobCorrupt):
            return b""
        name = manifest_digest(manifest)
        if name not in {word.manifest for word in words}:
            return b""
        return encode_attested(
            Attested(row.digest, row.size_bytes, manifest.wire_bytes, name, tuple(words))
        )

    async def adopt(self, module: Digest, lot: Lot) -> None:
        """An artifact whose blob has been fetched. Raises StoreError."""
        await self._put(
            ArtifactRow(
                module=module,
                key=self._runtime.keys["optimised"],
                digest=lot.artifact,
                size_bytes=lot.size_bytes,
                compile_s=0.0,
                attestations=encode_attestations(tuple(lot.words.values())[:ATTESTATIONS_MAX]),
            )
        )
        self._metrics.artifacts_fetched.inc()

    async def _put(self, row: ArtifactRow) -> None:
        await self._store.put_artifact(row)
        self._on_change(row.module)

    # ------------------------------------------------------------ making
    async def estimate_s(self, module: Digest, tier: Tier, *, module_bytes: int) -> float:
        """CPU seconds that compiling takes here; by the whole module's size while it is not."""
        size = module_bytes
        with contextlib.suppress(BlobNotFound, OSError):
            path = self._store.path(module)
            size = await trio.to_thread.run_sync(code_bytes, path, limiter=self._header_limiter)
        return self._rates.compile_s(size, tier)

    def code_size(self, module: Digest) -> int | None:
        """Bytes of its code section, if it was compiled here."""
        return self._sizes.get(module)

    async def make(self, module: Digest, *, shown: bool) -> tuple[Tier, ArtifactRow]:
        """Compiles `module`, which has been verified, to whichever tier is ready first; `shown`:
        others are told to wait for it.

        Raises as Runtime.compile, and StoreError."""
        tier: Tier = "fast" if "fast" in self._runtime.keys else "optimised"
        info = self._store.info(module)
        size_bytes = 0 if info is None else info.size_bytes
        estimate_s = await self.estimate_s(module, tier, module_bytes=size_bytes)
        with (
            self.shown_building(module, shown=shown and tier == "optimised"),
            self._rates.job(module, estimate_s),
        ):
            return await self._make_checked(module, self._runtime.compile, self._metrics.compiles)

    async def optimise(self, module: Digest) -> None:
        """Compiles `module` to the tier "optimised", out of everyone's way.

        Raises as Runtime.optimise, and StoreError."""
        if not await self._store.verify(module):
            raise BlobCorrupt(f"module {module[:12]} is damaged on this disk")
        await self._make_checked(module, self._runtime.optimise, self._metrics.optimisations)

    def sharing(self, artifact: Digest) -> list[Digest]:
        """The modules whose code it is said to be here: such as differ in custom sections only."""
        return [row.module for row in self._store.artifacts() if row.digest == artifact]

    async def remake(self, row: ArtifactRow) -> Digest:
        """Compiles again what was fetched, as `optimise`; the digest of what came of it, which is
        this node's artifact from now on. Raises as `optimise`."""
        await self.optimise(row.module)
        made = self.row(row.module, "optimised")
        if made is None:
            raise BlobNotFound(f"the artifact of {row.module[:12]} is gone")
        if made.digest != row.digest:
            named = [
                other.module for other in self._store.artifacts() if other.digest == row.digest
            ]
            await self._store.delete(row.digest)
            for module in named:
                self._on_change(module)
        return made.digest

    @contextlib.contextmanager
    def shown_building(self, module: Digest, *, shown: bool) -> Iterator[None]:
        """Others are told meanwhile, if `shown`, that its artifact is compiled here."""
        if not shown:
            yield
            return
        self._building[module] += 1
        self._on_change(module)
        try:
            yield
        finally:
            self._building[module] -= 1
            self._building += Counter()
            self._on_change(module)

    async def _make_checked(
        self, module: Digest, compiler: Compiler, counter: Metric
    ) -> tuple[Tier, ArtifactRow]:
        """Two modules that differ in custom sections have one artifact, so what was just compiled
        may be on disk already, and damaged: then the copy is quarantined, and compiling again
        writes a good one."""
        for last in (False, True):
            tier, row = await self._make(module, compiler, counter)
            try:
                await self._check(module, row)
            except (ArtifactRefused, BlobNotFound):
                await self._drop(module, row)
                if last:
                    raise
            else:
                return tier, row
        raise AssertionError("the last try returns or raises")

    async def _make(
        self, module: Digest, compiler: Compiler, counter: Metric
    ) -> tuple[Tier, ArtifactRow]:
        source, output = self._store.path(module), self._store.temp_path()
        report = await compiler(source, output)
        counter.labels("ok").inc()
        self._metrics.compile_seconds.inc(report.cpu_s)
        info = await self._store.put_file(output, kind="artifact")
        served = report.tier == "optimised"
        manifest = manifest_digest(await self._store.make_manifest(info.digest)) if served else None
        key = self._runtime.keys[report.tier]
        own = attest(
            self._private_key,
            self._credential,
            module=module,
            key=key,
            artifact=info.digest,
            manifest=manifest or UNSERVED,
        )
        row = ArtifactRow(
            module=module,
            key=key,
            digest=info.digest,
            size_bytes=info.size_bytes,
            compile_s=report.cpu_s,
            attestations=encode_attestations((own, *self._others(module, key, info.digest))),
        )
        await self._put(row)
        size = await trio.to_thread.run_sync(code_bytes, source, limiter=self._header_limiter)
        self._sizes[module] = size
        if len(self._sizes) > MEASURED_MAX:
            self._sizes.popitem(last=False)
        self._rates.compiled(size, report.tier, report.cpu_s)
        peak_bytes = float(report.peak_rss_bytes)
        self.measure(module, report.tier, compile_cpu_s=report.cpu_s, compile_peak_bytes=peak_bytes)
        return report.tier, row

    def _others(
        self, module: Digest, key: ArtifactKey, artifact: Digest
    ) -> tuple[Attestation, ...]:
        """Others' words for what was just made here too."""
        row = self._store.artifact(module, key)
        if row is None or row.digest != artifact:
            return ()
        try:
            words = self._words(row)
        except RemoteProtocolError:
            return ()
        words.by_builder.pop(self._credential.node_id, None)
        return tuple(words.by_builder.values())[: ATTESTATIONS_MAX - 1]

    # ------------------------------------------------------------ using
    async def load(self, module: Digest, tier: Tier, row: ArtifactRow) -> LoadedModule:
        """`row` has been checked. Raises ArtifactRefused; the artifact is then dropped."""
        try:
            return await self._runtime.load(module, self._store.path(row.digest), tier)
        except ArtifactRefused as error:
            await self._refuse(module, row, error.reason, error.private or str(error))
            raise

    async def drop(self, module: Digest, tier: Tier) -> None:
        """From the disk; code that is mapped stays usable."""
        row = self.row(module, tier)
        if row is not None:
            await self._drop(module, row)

    async def _drop(self, module: Digest, row: ArtifactRow) -> None:
        await self._store.delete_artifact(module, row.key)
        self._on_change(module)

    def distrust(self, builders: tuple[NodeId, ...]) -> list[Digest]:
        """Trusts these builders no more; the modules whose artifacts here lack words now."""
        self._acceptance.distrust(builders)
        self.judge_anew()
        key = self._runtime.keys["optimised"]
        modules = [row.module for row in self._store.artifacts() if row.key == key]
        return [module for module in modules if not self.accepted(module)]

    def judge_anew(self) -> None:
        """Whose word counts has changed."""
        self._judged.clear()

    async def forget(self, modules: list[Digest]) -> None:
        """Drops the artifacts of distrusted builders, and remembers whom. Raises StoreError."""
        await self._acceptance.save()
        for module in modules:
            row = self.row(module, "optimised")
            if row is not None:
                await self._refuse(module, row, "distrusted", "its builder failed an audit")

    # ------------------------------------------------------------ costs
    def measure(self, module: Digest, tier: Tier = "optimised", **values: float | None) -> None:
        """Notes what something cost; None did not happen."""
        costs = self._costs.setdefault(module, {})
        costs.update({(tier, name): v for name, v in values.items() if v is not None})
        if len(self._costs) > MEASURED_MAX:
            self._costs.popitem(last=False)

    def cost(self, module: Digest, *names: str, tier: Tier = "optimised") -> dict[str, float]:
        """Those of `names` that have been noted."""
        costs = self._costs.get(module, {})
        return {name: round(costs[tier, name], 6) for name in names if (tier, name) in costs}
