"""Makers for protocol tests: one CA, identities by number, machines on an in-memory wire."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TypeVar

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.catalog import Catalog, SavedRecord
from protocol.errors import RemoteProtocolError
from protocol.events import Datagram, Event, StreamProbe, SyncWanted
from protocol.function import (
    FunctionSpec,
    InitCall,
    InitSpec,
    decode_spec,
    encode_spec,
    init_digest,
    version_of,
)
from protocol.gossip import Gossip, GossipConfig
from protocol.identity import ROLES, Credential, Role, TrustAnchor, issue_credential, public_bytes
from protocol.ids import FunctionName, NodeId, VersionId, digest_of
from protocol.member import Address, Metadata
from protocol.presets import LAN, Knobs
from protocol.records import Record, encode_alias, encode_record, encode_version, sign_record
from protocol.seal import WIRE_VERSION, Keyring
from protocol.snapshots import SnapshotFacts, SnapshotStatement, state_snapshot

WALL_MS = 1_800_000_000_000
NOT_AFTER_S = 4_000_000_000
CLUSTER_KEY = bytes(range(32))
DIGEST = "ab" * 32

E = TypeVar("E")


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(blake3(name.encode()).digest())


CA = key_of("ca")


def anchor() -> TrustAnchor:
    return TrustAnchor(public_bytes(CA))


def credential_of(
    name: str, *, roles: tuple[Role, ...] = ROLES, not_after_s: int = NOT_AFTER_S
) -> Credential:
    public = public_bytes(key_of(name))
    return issue_credential(CA, name=name, public_key=public, roles=roles, not_after_s=not_after_s)


def node_id(name: str) -> NodeId:
    return credential_of(name).node_id


def spec_bytes(text: str = "", *, args_bytes: int = 0) -> bytes:
    args = tuple("x" * min(8000, args_bytes - at) for at in range(0, args_bytes, 8000))
    module = digest_of(text.encode())
    return encode_spec(FunctionSpec("raw", module, 100, module, args=args))


INIT = InitSpec(
    (InitCall("init"), InitCall("load", (1, -2.5))), {"LANG": "C"}, stubs=("env", "host")
)


def init_spec_bytes(text: str = "", init: InitSpec = INIT) -> bytes:
    module = digest_of(text.encode())
    return encode_spec(FunctionSpec("raw", module, 100, module, init=init))


def statement_of(
    spec: bytes,
    *,
    by: str = "n0",
    not_after_s: int = NOT_AFTER_S,
    roles: tuple[Role, ...] = ROLES,
    snapshot: str = "after init",
) -> SnapshotStatement:
    decoded = decode_spec(spec)
    assert decoded.init is not None
    return state_snapshot(
        key_of(by),
        credential_of(by, roles=roles, not_after_s=not_after_s),
        module=decoded.module,
        init=init_digest(decoded.init),
        snapshot_format=1,
        snapshot=digest_of(snapshot.encode()),
        size_bytes=5_000,
        manifest=digest_of(b"manifest"),
        facts=SnapshotFacts(2_000, 300, 400, 1.5, 0.001, None),
    )


def version_record(
    name: str,
    spec: bytes,
    *,
    hlc: int = WALL_MS << 16,
    by: str = "n0",
    tombstone: bool = False,
    deployed: int | None = None,
    snapshot: SnapshotStatement | None = None,
) -> Record:
    at = hlc if deployed is None else deployed
    return sign_record(
        key_of(by),
        credential_of(by),
        kind="version",
        name=FunctionName(name),
        version=version_of(spec),
        hlc=hlc,
        value=b"" if tombstone else encode_version(spec, at, snapshot),
    )


def alias_record(
    name: str, version: VersionId | None, *, hlc: int = WALL_MS << 16, by: str = "n0"
) -> Record:
    return sign_record(
        key_of(by),
        credential_of(by),
        kind="alias",
        name=FunctionName(name),
        version="",
        hlc=hlc,
        value=b"" if version is None else encode_alias(version),
    )


def make_catalog(name: str = "n0", *, roles: tuple[Role, ...] = ROLES) -> Catalog:
    return Catalog(anchor(), key_of(name), credential_of(name, roles=roles))


def saved_records(rows: Iterable[tuple[str, bytes]]) -> list[SavedRecord]:
    """As a disk gives them back, with nothing proven."""
    return [SavedRecord(key, encoded) for key, encoded in rows]


def feed(catalog: Catalog, record: Record, *, wall_ms: int = WALL_MS) -> bool:
    """Whether it was news."""
    verified = catalog.check(encode_record(record), wall_ms=wall_ms)
    return verified is not None and catalog.merge(verified)


def tell(one: Catalog, two: Catalog, wall_ms: int = WALL_MS) -> int:
    """All that `one` knows; how many records were news to `two`."""
    news = 0
    for entry in list(one.entries()):
        verified = two.check(entry.encoded, wall_ms=wall_ms)
        news += verified is not None and two.merge(verified)
    return news


def metadata_of(name: str, address: Address) -> Metadata:
    return Metadata(name, address, address, gateway_url="http://127.0.0.1:1")


def address_of(index: int) -> Address:
    return (f"10.0.0.{index + 1}", 7946)


def make_gossip(
    index: int,
    *,
    generation: int = 1,
    knobs: Knobs = LAN,
    now: float = 0.0,
    address: Address | None = None,
    key: bytes = CLUSTER_KEY,
    roles: tuple[Role, ...] = ROLES,
    wire: int = WIRE_VERSION,
) -> Gossip:
    name = f"n{index}"
    return Gossip(
        GossipConfig(
            metadata=metadata_of(name, address or address_of(index)),
            generation=generation,
            knobs=knobs,
            wire_version=wire,
        ),
        Keyring([key]),
        anchor(),
        key_of(name),
        credential_of(name, roles=roles),
        random.Random(index + 1000 * generation),
        now=now,
        wall_ms=WALL_MS + int(now * 1000),
    )


def carry_sync(asker: Gossip, answerer: Gossip, now: float, wall_ms: int) -> list[int]:
    """A whole sync, as a driver carries it; the payloads' sizes, requests and replies in turn."""
    sizes: list[int] = []
    request: bytes | None = asker.sync_begin(answerer.node_id, now)
    while request is not None:
        reply = answerer.sync_answer(request, asker.node_id, now, wall_ms)
        sizes += [len(request), len(reply)]
        request = asker.sync_next(reply, answerer.node_id, now, wall_ms)
    return sizes


class Wire:
    """Machines that hear each other at once; `cut` addresses hear and say nothing."""

    def __init__(
        self, count: int, *, knobs: Knobs = LAN, wires: tuple[int, ...] = (WIRE_VERSION,)
    ) -> None:
        """`wires`: versions of the machines, in turn."""
        self.now = 0.0
        self.machines = {
            address_of(i): make_gossip(i, knobs=knobs, wire=wires[i % len(wires)])
            for i in range(count)
        }
        self.tape: list[tuple[Address, Datagram]] = []
        """Every datagram sent, and by whom."""
        self.cut: set[Address] = set()
        self.refuse = False
        self.events: list[tuple[str, Event]] = []
        self.errors: list[str] = []

    def __getitem__(self, index: int) -> Gossip:
        return self.machines[address_of(index)]

    @property
    def wall_ms(self) -> int:
        return WALL_MS + int(self.now * 1000)

    def join_all(self) -> None:
        for machine in list(self.machines.values()):
            machine.join([address_of(0), address_of(1)], self.now)
        self.run(1.0)

    def pump(self) -> None:
        busy = True
        while busy:
            busy = sum(self._drain(address) for address in list(self.machines)) > 0

    def _drain(self, address: Address) -> bool:
        machine = self.machines[address]
        busy = False
        while (datagram := machine.poll_transmit()) is not None:
            busy = True
            self.tape.append((address, datagram))
            target = self.machines.get(datagram.address)
            if address in self.cut or datagram.address in self.cut:
                continue
            if target is None:
                if self.refuse:
                    machine.note_refused(datagram.address, self.now)
                continue
            try:
                target.receive_datagram(datagram.data, address, self.now, self.wall_ms)
            except RemoteProtocolError as error:
                self.errors.append(error.code)
        while (event := machine.poll_event()) is not None:
            busy = True
            self.events.append((machine.member(machine.node_id).name, event))  # type: ignore[union-attr]
            if isinstance(event, SyncWanted) and address not in self.cut:
                self.sync(machine, event.peer.metadata.stream_address)
            if isinstance(event, StreamProbe) and address not in self.cut:
                self.look(machine, event)
        return busy

    def look(self, machine: Gossip, probe: StreamProbe) -> None:
        address = probe.member.metadata.stream_address
        if address in self.cut:
            return
        if address in self.machines:
            machine.on_stream_probe(probe.probe_id, "pong", self.now)
        elif self.refuse:
            machine.on_stream_probe(probe.probe_id, "refused", self.now)

    def sync(self, machine: Gossip, address: Address) -> None:
        peer = self.machines.get(address)
        if peer is None or address in self.cut:
            return
        carry_sync(machine, peer, self.now, self.wall_ms)

    def run(self, for_s: float) -> None:
        until = self.now + for_s
        self.pump()
        while True:
            deadlines = [m.next_deadline() for m in self.machines.values()]
            due = min((at for at in deadlines if at is not None), default=until)
            if due >= until:
                break
            self.now = max(self.now, due)
            for machine in list(self.machines.values()):
                at = machine.next_deadline()
                if at is not None and at <= self.now:
                    machine.on_timer(self.now)
            self.pump()
        self.now = until

    def states(self, index: int) -> dict[str, str]:
        return {member.name: member.state for member in self[index].members()}

    def seen(self, name: str, kind: type[E]) -> list[E]:
        return [event for who, event in self.events if who == name and isinstance(event, kind)]
