"""What follows when a builder is caught: it is trusted no more here, and what only it vouches for
goes from disk and memory. SPEC §9.4, §14.4. Stateless; called in the node's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocol.ids import Digest, NodeId

from .artifacts import Artifacts
from .errors import EdgedError
from .telemetry import Log


class Distrust:
    def __init__(self, artifacts: Artifacts, *, unmap: Callable[[Digest], None], log: Log) -> None:
        self._artifacts = artifacts
        self._unmap = unmap
        self._log = log

    async def builders(self, builders: Sequence[NodeId], *, also: Sequence[Digest] = ()) -> None:
        """`also`: modules that are unmapped in any case."""
        lacking = self._artifacts.distrust(tuple(builders))
        for module in dict.fromkeys([*also, *lacking]):
            self._unmap(module)
        try:
            await self._artifacts.forget(lacking)
        except EdgedError as error:  # none of it is opened again all the same, while this node runs
            self._log.error("distrust is not on disk", builders=builders, why=str(error))
