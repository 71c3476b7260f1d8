"""Runs protocol.replication: keeps wanted modules at their number, gives up surplus copies. SPEC
§11.4, §11.5.

Owned by the node's event loop: others tell it what changed, `run` fetches, asks and removes. At
most as many fetches as the machine allows, all behind whatever somebody waits for; one removal at a
time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import trio

from protocol.ids import Digest, NodeId
from protocol.modules import Modules
from protocol.replicas import Site
from protocol.replication import (
    ANSWER_S,
    AskHolders,
    Drop,
    Event,
    Repair,
    Replication,
    ReplicationConfig,
)
from protocol.rng import Rng

from .acknowledging import Nodes
from .errors import EdgedError
from .eventlog import function_of
from .interfaces import EventKind, Fetcher, ReplicasView, ReplicationView
from .telemetry import Log, Metrics

ASK_TIMEOUT_S: Final = ANSWER_S * 0.8


class ReplicationService:
    def __init__(
        self,
        region: str,
        config: ReplicationConfig,
        *,
        nodes: Nodes,
        modules: Modules,
        fetcher: Fetcher,
        held: Callable[[Digest], bool],
        holders: Callable[[Digest], Collection[NodeId]],
        in_use: Callable[[Digest], bool],
        remove: Callable[[Digest], Awaitable[bool]],
        on_held: Callable[[Digest], None],
        note: Callable[[EventKind, str, str], None],
        metrics: Metrics,
        log: Log,
        rng: Rng | None = None,
    ) -> None:
        """`held`: a module's bytes are durable here; `holders`: reachable members that say so of
        themselves, this one or not; `remove` deletes a module unless it has come into use, and says
        which; it raises StoreError."""
        self._nodes = nodes
        self._modules = modules
        self._fetcher = fetcher
        self._holders = holders
        self._remove = remove
        self._on_held = on_held
        self._note = note
        self._metrics = metrics
        self._log = log
        self._machine = Replication(
            Site(nodes.me, region),
            config,
            rng or random.SystemRandom(),
            held=held,
            holders=lambda module: [node for node in holders(module) if node != nodes.me],
            in_use=in_use,
        )
        self._wake = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        machine = self._machine
        self.look(all_of_them=True)
        async with trio.open_nursery() as tasks:
            task_status.started()
            while True:
                machine.on_timer(trio.current_time())
                while (event := machine.poll_event()) is not None:
                    self._obey(event, tasks)
                deadline = machine.next_deadline()
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._wake.wait()
                self._wake = trio.Event()

    # ------------------------------------------------------------ what others tell
    def member_up(self, site: Site) -> None:
        """Reachable, or moved to another region."""
        self._machine.member_up(site, trio.current_time())
        self._wake.set()

    def member_gone(self, node: NodeId) -> None:
        self._machine.member_gone(node, trio.current_time())
        self._wake.set()

    def look(self, *, all_of_them: bool = False) -> None:
        """The catalog has changed."""
        changed = self._modules.take_changed()
        if all_of_them:
            changed = list(self._modules)
        now = trio.current_time()
        for module in changed:
            self._machine.want(module, self._modules.get(module), now)
        if changed:
            self._wake.set()

    def touch(self, module: Digest) -> None:
        """It came, or was lost, here."""
        self._machine.touch(module, trio.current_time())
        self._wake.set()

    def promise(self, module: Digest) -> bool:
        """A peer relies on this node's copy. False: there is none, or it is just going."""
        return self._machine.promise(module, trio.current_time())

    def promised(self, module: Digest) -> bool:
        return self._machine.promised(module, trio.current_time())

    # ------------------------------------------------------------ views
    def view(self) -> ReplicationView:
        return ReplicationView(
            modules=len(self._modules),
            under_replicated=len(self._machine.lacking()),
            repairing=self._machine.repairing,
            waiting=self._machine.waiting,
        )

    def absent(self) -> list[Digest]:
        """Modules that belong here and are not on this disk."""
        return self._machine.absent()

    def replicas(self, module: Digest) -> ReplicasView:
        """Of a wanted module."""
        wanted = self._modules.get(module)
        holders = frozenset(self._holders(module))
        placed = self._machine.placed(module)
        number = 0 if wanted is None else wanted.replicas
        name = self._nodes.name
        return ReplicasView(
            wanted=number,
            asked_by=function_of(self._modules.asking_most(module)) if wanted else "",
            placed=tuple(name(node) for node in placed),
            missing=tuple(name(node) for node in placed if node not in holders),
            holders=len(holders),
            under_replicated=len(holders) < number,
        )

    # ------------------------------------------------------------ what the machine wants
    def _obey(self, event: Event, tasks: trio.Nursery) -> None:
        match event:
            case Repair():
                tasks.start_soon(self._repair, event)
            case AskHolders(blob, peers):
                for peer in peers:
                    tasks.start_soon(self._ask, blob, peer)
            case Drop(blob):
                tasks.start_soon(self._drop, blob)

    async def _repair(self, repair: Repair) -> None:
        module, ok = repair.blob, False
        self._tell("repair-started", module, f"{repair.copies} copies elsewhere")
        try:
            await self._fetcher.fetch(
                module, repair.manifest, progress=lambda _done, _of: None, urgent=False
            )
            self._on_held(module)
            ok = True
            self._tell("repair-done", module, "")
        except EdgedError as error:
            self._log.warning("repair failed", module=module, why=str(error), private=error.private)
            self._tell("repair-failed", module, str(error))
        self._metrics.repairs.labels("done" if ok else "failed").inc()
        self._machine.repaired(module, trio.current_time(), ok=ok)
        self._wake.set()

    async def _ask(self, module: Digest, node: NodeId) -> None:
        held = False
        peer = self._nodes.find_peer(node)
        if peer is not None:
            line = self._nodes.dial(peer)
            try:
                with trio.move_on_after(ASK_TIMEOUT_S):
                    held = await line.confirm(module)
            except EdgedError as error:
                self._log.debug("copy not confirmed", module=module, peer=node, why=str(error))
            finally:
                await line.aclose()
        self._machine.confirmed(module, node, trio.current_time(), held=held)
        self._wake.set()

    async def _drop(self, module: Digest) -> None:
        try:
            if await self._remove(module):
                self._metrics.copies_dropped.inc()
                self._tell("copy-dropped", module, "its placement has it")
        except EdgedError as error:
            self._log.error("surplus copy not removed", module=module, why=str(error))
        self._machine.dropped(module, trio.current_time())
        self._wake.set()

    def _tell(self, kind: EventKind, module: Digest, detail: str) -> None:
        key = self._modules.named_by(module)
        about = f"module {module[:12]}"
        self._note(kind, function_of(key) if key else about, f"{about}: {detail}".rstrip(": "))
