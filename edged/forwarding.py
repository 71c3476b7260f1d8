"""Requests to and from peers' gateways: whom this node may ask, and to whom it stays connected.

Peers that could answer what this node could not are few and known before the first request comes:
to the nearest of them a connection is kept warm, so that a forward costs one round trip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from protocol.ids import NodeId

from .config import GatewaySection
from .gateway import Forwarder
from .interfaces import FunctionView, Peer
from .network import GatewayPool, GatewayPoolLimits, Shaper
from .telemetry import Log, Metrics
from .trust import Trust

WARM_MAX: Final = 4
"""Peers with a warm connection that nobody has asked for: 0.1 MB at each end."""
LOOKED_AT_MAX: Final = 256
"""Functions per look for them."""


class Forwarding:
    """Owned by the node's event loop."""

    def __init__(
        self,
        section: GatewaySection,
        *,
        trust: Trust,
        ready: Callable[[FunctionView], Sequence[Peer]],
        functions: Callable[[], Iterable[FunctionView]],
        is_near: Callable[[FunctionView], bool],
        on_answer: Callable[[NodeId, FunctionView, float], None],
        shaper: Shaper | None,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`ready`: peers that could run a version at once; `functions`: all, as they are now;
        `is_near`: those that this node needs no peer for; `on_answer`: of a peer, how long it
        took to begin its answer."""
        self._ready = ready
        self._functions = functions
        self._is_near = is_near
        self.pool = GatewayPool(
            trust=trust,
            shaper=shaper,
            log=log,
            warm=self.warm if section.forward else lambda: (),
            limits=GatewayPoolLimits(
                in_flight_max=section.forwards_max,
                per_peer_max=min(
                    max(section.forwards_max // 4, 1), GatewayPoolLimits().per_peer_max
                ),
            ),
        )
        self.forwarder: Forwarder | None = None
        if section.forward:
            self.forwarder = Forwarder(
                self.pool,
                ready=ready,
                on_answer=on_answer,
                node_name=trust.name,
                hops_max=section.forward_hops,
                metrics=metrics,
                log=log,
            )

    def changed(self) -> None:
        """There are new functions, or peers."""
        self.pool.look_again()

    def doubted(self, peer: NodeId) -> None:
        """It is suspect."""
        self.pool.doubt(peer)

    def lost(self, peer: NodeId, *, down: bool) -> None:
        """It is down, or has left."""
        self.pool.drop(peer, down=down)

    def warm(self) -> list[Peer]:
        """The nearest ready peers for functions that are not ready here."""
        found: dict[NodeId, Peer] = {}
        for function in itertools.islice(self._functions(), LOOKED_AT_MAX):
            if len(found) >= WARM_MAX:
                break
            if not self._is_near(function):
                for peer in self._ready(function)[:1]:
                    found[peer.node_id] = peer
        return list(found.values())
