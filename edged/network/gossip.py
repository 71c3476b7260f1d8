"""Runs a protocol.gossip.Gossip: datagrams in and out, its one timer, its syncs, its events.

`run` owns the loop; other tasks may call the machine between its steps (trio switches only at
await) and then `notify`. The loop waits for nobody, a disk that hangs least of all: a node that
does not answer is declared dead. Above EVENTS_MAX undelivered events records are owed to the disk
until it is back, and what else was to be told is dropped and counted.

A record from a peer is in force, and passed on, as soon as it verifies; it is saved a moment after,
before `on_event` hears of it or of what came later. If this node dies in between, its peers still
have it. Whoever saves own records shares `persisting` and holds it from preparing them until they
are published: the disk keeps one record per key and takes the last one written, so only what is in
force may be written.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from protocol.errors import RemoteProtocolError
from protocol.events import (
    Event,
    RecordsAccepted,
    RecordsPurged,
    SeedsSilent,
    StreamOutcome,
    StreamProbe,
    StreamProbeEnd,
    SyncWanted,
)
from protocol.gossip import Gossip
from protocol.ids import NodeId
from protocol.member import Address, Member
from protocol.records import (
    NO_PROOFS,
    Proofs,
    Record,
    decode_bundle,
    decode_record,
    prove_records,
    record_key,
)
from protocol.streams import ErrorReply, Reply, Sync, SyncReply

from ..clock import Clock
from ..config import parse_address
from ..errors import ConfigError, Outdone, PeerError, StoreError
from ..telemetry import Log, Metrics
from ..trust import Trust
from .admission import admit_only, dropped_by_kernel
from .shaping import Shaper
from .sockets import GossipSockets, Names
from .streamprobes import StreamProber, known_generation
from .streams import Connection, dial

BATCH: Final = 64
"""Datagrams taken in one go before timers and transmits get their turn."""
EVENTS_MAX: Final = 16_384
"""Not delivered yet: every member at once, and some."""
SYNCS_MAX: Final = 4
"""At once, and one per peer; those wanted meanwhile follow when one ends."""
WISHES_MAX: Final = 64
"""Peers whose sync waits; the machine asks again for those refused, but later."""
DIAL_TIMEOUT_S: Final = 3.0
SYNC_TIMEOUT_S: Final = 30.0
"""For one request and its reply: up to 1 MiB each way."""
PROVERS: Final = 1
"""Threads that check signatures: they share the interpreter with the loop anyway."""
COUNT_S: Final = 0.5
"""How often the kernel is asked what it dropped; 5 µs each."""
RETRIED_MAX: Final = 256
"""Records whose writing failed that are tried again per event."""
SAVE_AFTER_S: Final = 0.1
"""From a record's arrival to its writing, which costs as much as all else about it: first it is
passed on, by this node and by others on the same machine, and a burst of them is one write."""
SAVE_BYTES: Final = 1024 * 1024
"""Of records that wait for each other at most, but for the last event's."""
LEAVE_S: Final = 0.5
"""How long goodbyes keep going out, as Gossip.leave asks."""

OnEvent = Callable[[Event], Awaitable[None]]


class SaveRecords(Protocol):
    async def __call__(self, records: Sequence[tuple[str, bytes]], /) -> None:
        """Durable when it returns. Raises StoreError."""


class DropRecords(Protocol):
    async def __call__(self, keys: Sequence[str], /) -> None:
        """Gone from disk when it returns; absent ones are fine. Raises StoreError."""


class GossipService:
    """Also the server.SyncResponder of this node."""

    def __init__(
        self,
        gossip: Gossip,
        sockets: GossipSockets,
        *,
        trust: Trust,
        save_records: SaveRecords,
        metrics: Metrics,
        log: Log,
        on_event: OnEvent | None = None,
        observe: Callable[[Event], None] = lambda _event: None,
        persisting: trio.Lock | None = None,
        drop_records: DropRecords | None = None,
        clock: Clock,
        shaper: Shaper | None = None,
    ) -> None:
        """`on_event` gets the events that ask nothing of the driver, in order; it may take its
        time. `observe` gets them the moment they happen, before anything is saved, and must be
        quick. Nobody but the holder of `persisting` writes records to disk, or drops them from
        it. Without `drop_records` what the catalog forgets stays there until the next start."""
        self._gossip = gossip
        self._sockets = sockets
        self._shaper = shaper
        self._sender = sockets if shaper is None else shaper
        self._trust = trust
        self._save_records = save_records
        self._metrics = metrics
        self._log = log
        self._on_event = on_event
        self._observe = observe
        self._persisting = persisting or trio.Lock()
        self._drop_records = drop_records
        self._wall_ms = clock.now_ms
        self._names = Names()
        self._prober = StreamProber(
            trust, numeric=self._numeric, report=self._stream_probed, shaper=shaper
        )
        self._provers = trio.CapacityLimiter(PROVERS)
        self._waiting = trio.CancelScope()
        self.caught_up: Final = trio.Event()
        """Set once this node knows all that one of its peers knew."""
        self._stopping = False
        self._ended = trio.Event()
        self._ended.set()
        self._filtered: tuple[tuple[str, ...], tuple[Address, ...]] = ((), ())
        self._dropped = 0
        self._owed: dict[str, None] = {}
        """Keys of which the disk has not what is in force."""
        self._late = False
        """Events were dropped since the last one was delivered."""
        self._count_at_s = 0.0
        self._syncing: dict[NodeId, None] = {}
        self._wished: dict[NodeId, None] = {}
        self._out = metrics.datagrams.labels("out")
        self._out_bytes = metrics.datagram_bytes.labels("out")
        self._in = metrics.datagrams.labels("in")
        self._in_bytes = metrics.datagram_bytes.labels("in")

    # ------------------------------------------------------------ verbs
    async def join_named(self, seeds: Sequence[str]) -> None:
        """As `join`, for someone who waits for the answer: names are resolved first. Raises
        ConfigError, naming also what does not resolve; then nobody was knocked at."""
        for seed in seeds:
            host, _ = parse_address(seed, key="seeds")
            if not await self._names.resolves(host, self._sockets.udp.family):
                raise ConfigError(f"seeds: {host!r} of {seed!r} does not resolve on this node")
        self.join(seeds)

    def join(self, seeds: Sequence[str], known: Sequence[Address] = ()) -> None:
        """`seeds`: host:port of any members, this node's own allowed; `known`: members of former
        runs, asked if no seed answers. Raises ConfigError."""
        addresses = [parse_address(seed, key="gossip.seeds") for seed in seeds]
        self._gossip.join(addresses, trio.current_time(), known=known)
        self.notify()

    def notify(self) -> None:
        """The machine was changed: its transmits and deadline are looked at now."""
        self._waiting.cancel()

    async def leave(self) -> None:
        """Says goodbye, then ends `run` and waits for that; about half a second."""
        self._gossip.leave(trio.current_time())
        self.notify()
        await trio.sleep(LEAVE_S)
        self._stopping = True
        self.notify()
        await self._ended.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `leave` or cancellation; closes the UDP socket."""
        self._ended = trio.Event()
        events, delivering = trio.open_memory_channel[Event](EVENTS_MAX)
        try:
            async with trio.open_nursery() as nursery, trio.open_nursery() as helpers:
                nursery.start_soon(self._deliver, delivering)
                task_status.started()
                async with events:
                    await self._loop(helpers, events)
                helpers.cancel_scope.cancel()
        finally:
            trio.lowlevel.notify_closing(self._sockets.udp)
            self._sockets.close()
            self._ended.set()

    # ------------------------------------------------------------ the loop
    async def _loop(self, helpers: trio.Nursery, events: trio.MemorySendChannel[Event]) -> None:
        while not self._stopping:
            # One scope for as long as only datagrams come: making and leaving one costs as much as
            # opening a datagram.
            with trio.CancelScope() as self._waiting:
                while True:
                    self._step(helpers, events)
                    # Nothing is awaited between the last look at the machine and this wait.
                    await trio.lowlevel.wait_readable(self._sockets.udp)

    def _step(self, helpers: trio.Nursery, events: trio.MemorySendChannel[Event]) -> None:
        """What has come and what is due; then the wait is set to end by the next deadline."""
        self._filter()
        self._receive()
        self._count_drops()
        self._gossip.on_timer(trio.current_time())
        while (event := self._gossip.poll_event()) is not None:
            match event:
                case SyncWanted():
                    self._start_sync(helpers, event.peer)
                case StreamProbe():
                    self._prober.start(helpers, event)
                case StreamProbeEnd():
                    self._prober.end(event.probe_id)
                case SeedsSilent():
                    for address in event.addresses:
                        helpers.start_soon(self._ask_seed, address)
                case _:
                    self._observe(event)
                    try:
                        events.send_nowait(event)
                    except trio.WouldBlock:
                        self._shed(event)
        self._transmit()
        for host in self._names.take_wanted():
            helpers.start_soon(self._names.look_up, host, self._sockets.udp.family)
        deadline = self._gossip.next_deadline()
        until_s = math.inf if deadline is None else deadline
        if until_s != self._waiting.deadline:
            self._waiting.deadline = until_s

    def _shed(self, event: Event) -> None:
        if isinstance(event, RecordsAccepted):
            self._owed |= dict.fromkeys(key for key, _ in event.records)
        elif isinstance(event, RecordsPurged):
            self._owed |= dict.fromkeys(event.keys)
        self._metrics.errors.labels("events-late").inc()
        if not self._late:
            self._late = True
            self._log.error("events are delivered too late; does the disk hang?")

    def _receive(self) -> None:
        now, wall_ms = trio.current_time(), self._wall_ms()
        received = self._sockets.receive(BATCH)
        for data, source in received:
            try:
                self._gossip.receive_datagram(data, source, now, wall_ms)
            except RemoteProtocolError as error:
                self._metrics.datagrams_dropped.labels(error.code).inc()
        if received:
            self._in.inc(len(received))
            self._in_bytes.inc(sum(len(data) for data, _ in received))
        for address in self._sockets.refused(BATCH):
            if self._shaper is not None and not self._shaper.hears(address):
                continue
            self._gossip.note_refused(address, now)

    def _filter(self) -> None:
        blocked = self._gossip.blocked_sources(trio.current_time())
        wanted = (self._gossip.keyring_ids, blocked)
        if wanted != self._filtered:
            admit_only(self._sockets.udp, *wanted)
            self._filtered = wanted

    def _count_drops(self) -> None:
        now = trio.current_time()
        if now < self._count_at_s:
            return
        self._count_at_s = now + COUNT_S
        dropped = dropped_by_kernel(self._sockets.udp)
        since = dropped - self._dropped & 0xFFFFFFFF
        if since:
            self._dropped = dropped
            self._metrics.datagrams_dropped.labels("kernel").inc(since)

    def _transmit(self) -> None:
        now = trio.current_time()
        sent = sent_bytes = 0
        while (datagram := self._gossip.poll_transmit()) is not None:
            address = self._names.numeric(datagram.address, now)
            if address is None:
                reason: str | None = "send-name"
            else:
                reason = self._sender.send(datagram.data, address)
            if reason is None:
                sent += 1
                sent_bytes += len(datagram.data)
            else:
                self._metrics.datagrams_dropped.labels(reason).inc()
        if sent:
            self._out.inc(sent)
            self._out_bytes.inc(sent_bytes)

    async def _ask_seed(self, address: Address) -> None:
        known = await known_generation(address, self._trust, self._shaper)
        self._gossip.on_generation_known(known, trio.current_time())
        self.notify()

    def _numeric(self, address: Address) -> Address | None:
        return self._names.numeric(address, trio.current_time())

    def _stream_probed(self, probe_id: int, outcome: StreamOutcome) -> None:
        self._gossip.on_stream_probe(probe_id, outcome, trio.current_time())
        self.notify()

    async def _deliver(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        async for event in events:
            self._late = False
            batch = [event]
            if isinstance(event, RecordsAccepted):
                await trio.sleep(SAVE_AFTER_S)
                batch += _more(events, _record_bytes(event))
            if self._owed:
                await self._write_owed()
            await self._persist(batch)
            for each in batch:
                if isinstance(each, RecordsPurged):
                    await self._forget(each)
                if self._on_event is not None:
                    await self._on_event(each)

    async def _persist(self, batch: Sequence[Event]) -> None:
        """What the batch accepted."""
        accepted = [
            row for each in batch if isinstance(each, RecordsAccepted) for row in each.records
        ]
        if not accepted:
            return
        async with self._persisting:
            # Whatever was superseded while this waited is, or will be, saved by whoever did it.
            encoded = self._gossip.catalog.encoded
            records = [row for row in dict.fromkeys(accepted) if encoded(row[0]) == row[1]]
            try:
                if records:
                    await self._save_records(records)
            except StoreError as error:
                # They are in memory and with the peers that sent them: the node goes on.
                keys = [key for key, _ in records]
                self._owed |= dict.fromkeys(keys)
                self._log.error("records not saved", keys=keys[:8], reason=str(error))
                self._metrics.errors.labels("records-not-saved").inc()

    async def _forget(self, event: RecordsPurged) -> None:
        if self._drop_records is None:
            return
        async with self._persisting:
            keys = [key for key in event.keys if self._gossip.catalog.encoded(key) is None]
            try:
                if keys:
                    await self._drop_records(keys)
            except StoreError as error:
                self._owed |= dict.fromkeys(keys)
                self._log.error("records not dropped", keys=keys[:8], reason=str(error))
                self._metrics.errors.labels("records-not-dropped").inc()

    async def _write_owed(self) -> None:
        """As much of it as one event may cost; a failure was told of when it was new."""
        async with self._persisting:
            keys = list(itertools.islice(self._owed, RETRIED_MAX))
            rows = [(key, self._gossip.catalog.encoded(key)) for key in keys]
            kept = [(key, encoded) for key, encoded in rows if encoded is not None]
            gone = [key for key, encoded in rows if encoded is None]
            with contextlib.suppress(StoreError):
                if kept:
                    await self._save_records(kept)
                if gone and self._drop_records is not None:
                    await self._drop_records(gone)
                for key, encoded in rows:
                    if self._gossip.catalog.encoded(key) == encoded:
                        del self._owed[key]

    # ------------------------------------------------------------ syncs
    def _start_sync(self, helpers: trio.Nursery, peer: Member) -> None:
        """One per peer: a sync goes on until nothing differs."""
        if peer.node_id in self._syncing:
            return
        if len(self._syncing) < SYNCS_MAX:
            self._syncing[peer.node_id] = None
            helpers.start_soon(self._sync, helpers, peer)
        elif len(self._wished) < WISHES_MAX:
            self._wished[peer.node_id] = None

    def _end_sync(self, helpers: trio.Nursery, ended: NodeId) -> None:
        del self._syncing[ended]
        for node_id in [one for one in self._wished if one not in self._syncing]:
            del self._wished[node_id]
            peer = self._gossip.member(node_id)
            if peer is not None and peer.reachable:
                self._start_sync(helpers, peer)
                return

    async def _sync(self, helpers: trio.Nursery, peer: Member) -> None:
        try:
            await self._sync_with(peer)
            self.caught_up.set()
        except (PeerError, RemoteProtocolError) as error:
            self._gossip.sync_failed(peer.node_id)
            private = error.private if isinstance(error, PeerError) else ""
            self._log.info("sync failed", peer=peer.name, reason=str(error), private=private)
        finally:
            self._end_sync(helpers, peer.node_id)

    async def _sync_with(self, peer: Member) -> None:
        """Raises PeerError, RemoteProtocolError."""
        connection: Connection[Reply] | None = None
        with trio.move_on_after(DIAL_TIMEOUT_S):
            connection = await dial(
                peer.metadata.stream_address,
                self._trust,
                expected=peer.node_id,
                shaper=self._shaper,
            )
        if connection is None:
            raise PeerError(f"no connection in {DIAL_TIMEOUT_S:g} s")
        try:
            request: bytes | None = self._gossip.sync_begin(peer.node_id, trio.current_time())
            for number in itertools.count():
                if request is None:
                    return
                reply = await _exchange(connection, number, request)
                proofs = await self._prove(reply, reply=True)
                now, wall_ms = trio.current_time(), self._wall_ms()
                request = self._gossip.sync_next(reply, peer.node_id, now, wall_ms, proofs)
                self.notify()
        finally:
            await connection.aclose()

    async def _prove(self, payload: bytes, *, reply: bool) -> Proofs:
        """The signatures of a payload's records, checked beside the loop: 256 take 30 to 50 ms."""
        return await self._prove_records(self._gossip.sync_unproven(payload, reply=reply))

    async def _prove_records(self, records: list[tuple[bytes, Record]]) -> Proofs:
        if not records:
            return NO_PROOFS
        prove = partial(prove_records, self._trust.anchor.ca_public_key, records)
        return await trio.to_thread.run_sync(prove, limiter=self._provers)

    async def answer_sync(self, peer: NodeId, body: bytes) -> bytes:
        """Raises PeerError."""
        await trio.lowlevel.checkpoint()
        proofs = await self._prove(body, reply=False)
        try:
            reply = self._gossip.sync_answer(
                body, peer, trio.current_time(), self._wall_ms(), proofs
            )
        except RemoteProtocolError as error:
            raise PeerError(f"sync refused: {error}") from error
        self.notify()
        return reply

    async def store_records(self, body: bytes) -> None:
        """A bundle that a peer wants on this disk: verified, in force, durable when it returns.
        What is in force already is fine; one that is refused refuses the rest.

        Raises PeerError, StoreError; Outdone: something else is in force, later, under a name."""
        try:
            bundle = decode_bundle(body)
            records = [decode_record(encoded) for encoded in bundle]
            keys = list(map(record_key, records))
            wall_ms = self._wall_ms()
            proofs = await self._prove_records(self._gossip.catalog.unproven(bundle))
            for encoded in bundle:
                self._gossip.take_record(encoded, trio.current_time(), wall_ms, proofs)
        except RemoteProtocolError as error:
            raise PeerError(f"record refused: {error}") from error
        finally:
            self.notify()
        async with self._persisting:
            rows = [(key, self._gossip.catalog.encoded(key)) for key in keys]
            await self._save_records([(key, row) for key, row in rows if row is not None])
        for record, (_, row) in zip(records, rows, strict=True):
            _check_in_force(record, row)


def _check_in_force(record: Record, encoded: bytes | None) -> None:
    """`encoded` is in force under the key of `record`. Raises Outdone.

    A version's record says the same whoever signed it."""
    if record.kind != "alias" or encoded is None:
        return
    now = decode_record(encoded)
    if now.value != record.value:
        raise Outdone(
            f"{record.name}: {now.credential.name} changed it at a later time by its clock; look"
            " at what is deployed, and where clocks differ set them"
        )


def _record_bytes(event: Event) -> int:
    return sum(len(row[1]) for row in event.records) if isinstance(event, RecordsAccepted) else 0


def _more(events: trio.MemoryReceiveChannel[Event], size_bytes: int) -> list[Event]:
    """Events that are there already, up to SAVE_BYTES of records with the `size_bytes` before."""
    found: list[Event] = []
    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
        while size_bytes < SAVE_BYTES:
            found.append(event := events.receive_nowait())
            size_bytes += _record_bytes(event)
    return found


async def _exchange(connection: Connection[Reply], number: int, body: bytes) -> bytes:
    """Raises PeerError."""
    with trio.move_on_after(SYNC_TIMEOUT_S):
        await connection.send(Sync(number), body)
        frame = await connection.receive()
        if frame is None:
            raise PeerError("closed the connection")
        message, answer = frame
        if isinstance(message, ErrorReply):
            raise PeerError(f"{message.code}: {message.text}")
        if not isinstance(message, SyncReply) or message.id != number:
            raise PeerError("answered something else")
        return answer
    raise PeerError(f"no answer in {SYNC_TIMEOUT_S:g} s")
