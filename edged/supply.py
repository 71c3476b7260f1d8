"""Where a module's optimised artifact comes from: fetched, waited for, or compiled here. SPEC §9.3.

Decides by protocol.building with what is seen and measured; knows how long each module has been
waited for, and which peers were asked in vain. Compiles nothing itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import msgspec
import trio

from protocol.building import (
    CLAIM_S,
    PATIENCE,
    SMALL_S,
    YIELD_S,
    Scene,
    goes_on,
    next_step,
    rank_of,
)
from protocol.ids import ArtifactKey, Digest, NodeId

from .acceptance import Acceptance
from .acquisition import Acquisition
from .artifacts import Artifacts
from .errors import NoHolder, PeerError
from .interfaces import Peer
from .rates import Rates
from .telemetry import Log

POLL_S: Final = 0.1
"""While another node's compile is waited for."""
FETCH_MIN_S: Final = 2.0
"""A fetch may take this long, however quick the compiler: links falter."""
WAITS_MAX: Final = 1024
FORGOTTEN_S: Final = 5.0
"""Who has not looked for so long had stopped waiting."""

Step = Literal["fetched", "wait", "build"]
Made = TypeVar("Made")


class Rivals(msgspec.Struct, frozen=True):
    """Reachable peers of this node's artifact key, by what they show of a module."""

    ready: frozenset[NodeId]
    building: frozenset[NodeId]
    able: frozenset[NodeId]
    """Those that have the module."""


@dataclass(slots=True)
class _Wait:
    since_s: float
    looked_s: float
    asked: frozenset[NodeId] = field(default_factory=frozenset)


class Supply:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        key: ArtifactKey,
        acceptance: Acceptance,
        acquisition: Acquisition,
        artifacts: Artifacts,
        rivals: Callable[[Digest], Rivals],
        rates: Rates,
        log: Log,
    ) -> None:
        self._node_id = node_id
        self._key = key
        self._acceptance = acceptance
        self._acquisition = acquisition
        self._artifacts = artifacts
        self._rivals = rivals
        self._rates = rates
        self._log = log
        self._waits: OrderedDict[Digest, _Wait] = OrderedDict()

    def offered(self, module: Digest) -> bool:
        """Whether peers show an artifact that this node might accept."""
        return bool(self._acceptance.builders_needed and self._acquisition.sources(module))

    def sources(self, module: Digest) -> list[Peer]:
        """Peers whose artifact of it this node might accept, nearest first."""
        return self._acquisition.sources(module) if self._acceptance.builders_needed else []

    def module_of(self, artifact: Digest) -> Digest | None:
        """Whose code an artifact is that is fetched now."""
        return self._acquisition.module_of(artifact)

    async def sooner(self, module: Digest, *, make_s: float) -> bool:
        """Fetches the artifact, if somebody has it and it is expected here before `make_s`, what
        making code costs. Raises StoreError, Draining, Overloaded."""
        if not self.offered(module):
            return False
        return await self._fetch(module, budget_s=make_s, urgent=True) == "fetched"

    async def step(self, module: Digest, *, module_bytes: int, urgent: bool) -> tuple[Step, float]:
        """What to do next about the optimised artifact, which may be here then; and what compiling
        is expected to cost. Called again, after POLL_S, for "wait".

        Raises StoreError, Draining, Overloaded."""
        estimate_s = await self._artifacts.estimate_s(
            module, "optimised", module_bytes=module_bytes
        )
        waiting = self._waiting(module)
        found = self._look(module, estimate_s, waiting, urgent=urgent)
        if found == "wait":
            return "wait", estimate_s
        if found == "build":
            self._waits.pop(module, None)
            return "build", estimate_s
        waiting.asked = self._rivals(module).ready
        fetched = await self._fetch(module, budget_s=PATIENCE * estimate_s, urgent=urgent)
        waiting.looked_s = trio.current_time()
        if fetched == "none":
            return "wait", estimate_s  # looks again at once: there may be nothing to wait for
        self._waits.pop(module, None)
        return "fetched" if fetched == "fetched" else "build", estimate_s

    async def claim(self, module: Digest) -> bool:
        """Whether this node, which shows that it builds, shall begin: not if there is an artifact
        by now, or if better ranked ones show the same, who did not know of it either."""
        needed = self._acceptance.builders_needed
        if not needed:
            return True
        before = self._rivals(module).ready
        await trio.sleep(CLAIM_S)
        seen = self._rivals(module)
        if seen.ready - before:
            return False
        return goes_on(self._node_id, module, self._key, seen.building, builders=needed)

    async def first_of_all(
        self, module: Digest, make: Callable[[], Awaitable[Made]], *, estimate_s: float
    ) -> Made | None:
        """What `make` returns, which compiles the module for a request and shows it; None, and it
        is cancelled, if a better ranked node turns out to do the same. Raises as `make`."""
        if estimate_s < YIELD_S:
            return await make()
        made: Made | None = None
        failed: Exception | None = None

        async def run() -> None:
            nonlocal made, failed
            try:
                made = await make()
            except Exception as error:  # noqa: BLE001 - raised again below, out of the nursery
                failed = error
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            if not await self.claim(module):
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        if made is None:
            self._log.info("compile left to a better ranked node", module=module)
        return made

    def _waiting(self, module: Digest) -> _Wait:
        now_s = trio.current_time()
        waiting = self._waits.get(module)
        if waiting is None or now_s - waiting.looked_s > FORGOTTEN_S:
            waiting = self._waits[module] = _Wait(now_s, now_s)
            if len(self._waits) > WAITS_MAX:
                self._waits.popitem(last=False)
        waiting.looked_s = now_s
        return waiting

    def _look(
        self, module: Digest, estimate_s: float, waiting: _Wait, *, urgent: bool
    ) -> Literal["fetch", "wait", "build"]:
        seen, needed = self._rivals(module), self._acceptance.builders_needed
        believed = {peer.node_id for peer in self._acquisition.sources(module)} & seen.ready
        new = seen.ready != waiting.asked and bool(believed)
        scene = Scene(
            rank=rank_of(self._node_id, module, self._key, seen.able),
            ready=len(believed) if new else 0,
            # With too few words so far, who has finished still counts towards the policy's number.
            building=len(seen.building | believed if needed > 1 else seen.building),
        )
        return next_step(
            scene,
            builders=needed,
            estimate_s=estimate_s,
            waited_s=trio.current_time() - waiting.since_s,
            urgent=urgent,
        )

    @staticmethod
    def shown(estimate_s: float) -> bool:
        """Whether a compile takes long enough that others are told of it."""
        return estimate_s >= SMALL_S

    async def _fetch(
        self, module: Digest, *, budget_s: float, urgent: bool
    ) -> Literal["fetched", "none", "dear"]:
        try:
            lot = await self._acquisition.survey(module)
            if lot is None:
                return "none"
            if self._rates.fetch_s(lot.wire_bytes) > budget_s:
                return "dear"
            limit_s = max(FETCH_MIN_S, PATIENCE * budget_s)
            if not await self._acquisition.fetch(module, lot, urgent=urgent, limit_s=limit_s):
                self._log.info("artifact not fetched in time", module=module, limit_s=limit_s)
                return "dear"
        except (NoHolder, PeerError) as error:
            self._log.info(
                "artifact not fetched", module=module, why=str(error), private=error.private
            )
            return "none"
        await self._artifacts.adopt(module, lot)
        return "fetched"
