"""This node's artifacts: made, attested, checked each time before they are mapped (SPEC §9).

Owns what the store has of them under this node's artifact keys, one per tier. Native code is
opened only after its attestation and its hash hold.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.artifact import attest, check_attestation, decode_attestation, encode_attestation
from protocol.errors import RemoteProtocolError
from protocol.identity import Credential, TrustAnchor
from protocol.ids import Digest

from .errors import ArtifactRefused, BlobCorrupt, BlobNotFound
from .interfaces import ArtifactRow, CompileReport, LoadedModule, Runtime, Store, Tier
from .metrics import Metric
from .telemetry import Log, Metrics

MEASURED_MAX: Final = 1024
Compiler = Callable[[Path, Path], Awaitable[CompileReport]]
BEST_FIRST: Final[tuple[Tier, ...]] = ("optimised", "fast")


class Artifacts:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        *,
        store: Store,
        runtime: Runtime,
        private_key: Ed25519PrivateKey,
        credential: Credential,
        anchor: TrustAnchor,
        on_change: Callable[[Digest], None],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`on_change` is told of a module whose artifact came, went, or is being made."""
        self._store = store
        self._runtime = runtime
        self._private_key = private_key
        self._credential = credential
        self._anchor = anchor
        self._on_change = on_change
        self._building: Counter[Digest] = Counter()
        self._metrics = metrics
        self._log = log
        self._costs: OrderedDict[Digest, dict[tuple[Tier, str], float]] = OrderedDict()
        """What making each module ready cost here."""

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
        """Whether its optimised artifact is being compiled here now."""
        return module in self._building

    async def trusted(self, module: Digest) -> tuple[Tier, ArtifactRow] | None:
        """The best artifact of `module` of which all that is claimed holds; what is refused is
        dropped, and made anew when nothing else is left."""
        for tier in BEST_FIRST:
            row = self.row(module, tier)
            if row is None:
                continue
            try:
                await self._check(module, row)
            except (RemoteProtocolError, ArtifactRefused, BlobNotFound) as error:
                self._log.error(
                    "artifact refused", module=module, artifact=row.digest, why=str(error)
                )
                await self._drop(module, row)
            else:
                return tier, row
        return None

    async def _check(self, module: Digest, row: ArtifactRow) -> None:
        builder = check_attestation(
            decode_attestation(row.attestation),
            self._anchor,
            module=module,
            key=row.key,
            artifact=row.digest,
            wall_s=time.time(),
            own_public_key=self._credential.public_key,
        )
        if builder != self._credential.node_id:
            raise ArtifactRefused("built by another node")
        if not await self._store.verify(row.digest):
            raise ArtifactRefused("its bytes do not hash to its digest")

    # ------------------------------------------------------------ making
    async def make(self, module: Digest) -> tuple[Tier, ArtifactRow]:
        """Compiles `module`, which has been verified, to whichever tier is ready first.

        Raises as Runtime.compile, and StoreError."""
        with contextlib.ExitStack() as stack:
            if "fast" not in self._runtime.keys:
                stack.enter_context(self._shown_building(module))
            return await self._make_checked(module, self._runtime.compile, self._metrics.compiles)

    async def optimise(self, module: Digest) -> None:
        """Compiles `module` to the tier "optimised", out of everyone's way.

        Raises as Runtime.optimise, and StoreError."""
        if not await self._store.verify(module):
            raise BlobCorrupt(f"module {module[:12]} is damaged on this disk")
        with self._shown_building(module):
            await self._make_checked(module, self._runtime.optimise, self._metrics.optimisations)

    @contextlib.contextmanager
    def _shown_building(self, module: Digest) -> Iterator[None]:
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
        output = self._store.temp_path()
        report = await compiler(self._store.path(module), output)
        counter.labels("ok").inc()
        self._metrics.compile_seconds.inc(report.cpu_s)
        info = await self._store.put_file(output, kind="artifact")
        key = self._runtime.keys[report.tier]
        attestation = attest(
            self._private_key, self._credential, module=module, key=key, artifact=info.digest
        )
        row = ArtifactRow(
            module=module,
            key=key,
            digest=info.digest,
            size_bytes=info.size_bytes,
            compile_s=report.cpu_s,
            attestation=encode_attestation(attestation),
        )
        await self._store.put_artifact(row)
        self._on_change(module)
        peak_bytes = float(report.peak_rss_bytes)
        self.measure(module, report.tier, compile_cpu_s=report.cpu_s, compile_peak_bytes=peak_bytes)
        return report.tier, row

    # ------------------------------------------------------------ using
    async def load(self, module: Digest, tier: Tier, row: ArtifactRow) -> LoadedModule:
        """`row` has been checked. Raises ArtifactRefused; the artifact is then dropped."""
        try:
            return await self._runtime.load(module, self._store.path(row.digest), tier)
        except ArtifactRefused:
            await self._drop(module, row)
            raise

    async def drop(self, module: Digest, tier: Tier) -> None:
        """From the disk; code that is mapped stays usable."""
        row = self.row(module, tier)
        if row is not None:
            await self._drop(module, row)

    async def _drop(self, module: Digest, row: ArtifactRow) -> None:
        await self._store.delete_artifact(module, row.key)
        self._on_change(module)

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
