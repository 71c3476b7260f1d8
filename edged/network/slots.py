"""Who may go next: transfers into this node, and segments out of it. Bounded, fair, no tasks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from protocol.ids import NodeId


class TransferSlots:
    """At most `slots_max` at once, of which `background_max` that nobody waits for; who is waited
    for goes first."""

    def __init__(self, slots_max: int, background_max: int) -> None:
        self._free = slots_max
        self._background_free = background_max
        self._waiting: list[TransferSlot] = []

    @asynccontextmanager
    async def hold(self, slot: TransferSlot) -> AsyncIterator[None]:
        self._waiting.append(slot)
        self.grant()
        try:
            await slot.granted.wait()
            yield
        finally:
            if slot in self._waiting:
                self._waiting.remove(slot)
            elif slot.granted.is_set():
                self._free += 1
                self._background_free += slot.counted
            self.grant()

    def grant(self) -> None:
        """Also after a waiting slot became urgent."""
        self._waiting.sort(key=lambda slot: not slot.urgent)  # stable: then first come, first go
        while self._waiting and self._free:
            slot = self._waiting[0]
            if not slot.urgent and not self._background_free:
                return
            self._waiting.pop(0)
            slot.counted = not slot.urgent
            self._free -= 1
            self._background_free -= slot.counted
            slot.granted.set()


class TransferSlot:
    def __init__(self, *, urgent: bool) -> None:
        self.urgent = urgent
        self.counted = False
        self.granted = trio.Event()


class UploadBudget:
    """Bytes read for peers that have not left yet: `bytes_max` in all, `peer_bytes_max` for one, so
    that one which takes nothing keeps nobody waiting. Peers that wait take turns."""

    def __init__(self, bytes_max: int, peer_bytes_max: int) -> None:
        self._free = bytes_max
        self._peer_bytes_max = peer_bytes_max
        self._held: dict[NodeId, int] = {}
        self._waiting: OrderedDict[NodeId, deque[tuple[int, trio.Event]]] = OrderedDict()

    async def take(self, peer: NodeId, size: int) -> None:
        """Waits for its turn. At least one request of a peer is granted, whatever its size."""
        if not self._waiting and self._fits(peer, size):
            self._grant(peer, size)
            return
        turn = size, trio.Event()
        self._waiting.setdefault(peer, deque()).append(turn)
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn[1].is_set():
                self.give_back(peer, size)
            else:
                self._forget(peer, turn)
            raise

    def give_back(self, peer: NodeId, size: int) -> None:
        self._free += size
        left = self._held[peer] - size
        if left:
            self._held[peer] = left
        else:
            del self._held[peer]
        self._go_on()

    def _fits(self, peer: NodeId, size: int) -> bool:
        held = self._held.get(peer, 0)
        return self._free >= size and (not held or held + size <= self._peer_bytes_max)

    def _grant(self, peer: NodeId, size: int) -> None:
        self._free -= size
        self._held[peer] = self._held.get(peer, 0) + size

    def _forget(self, peer: NodeId, turn: tuple[int, trio.Event]) -> None:
        queue = self._waiting[peer]
        queue.remove(turn)
        if not queue:
            del self._waiting[peer]
        self._go_on()

    def _go_on(self) -> None:
        granted = True
        while granted:
            granted = False
            for peer in list(self._waiting):
                size, event = self._waiting[peer][0]
                if not self._fits(peer, size):
                    continue
                queue = self._waiting[peer]
                queue.popleft()
                if queue:
                    self._waiting.move_to_end(peer)
                else:
                    del self._waiting[peer]
                self._grant(peer, size)
                event.set()
                granted = True
