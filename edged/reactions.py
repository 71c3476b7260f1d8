"""What this node does when gossip tells that members or records changed: whom forwarding, fetching,
replication and the log hear it from. Views ask the machine itself and need no telling."""

from __future__ import annotations

from collections.abc import Callable

from protocol.events import (
    Event,
    IdentityClash,
    MemberDown,
    MemberLeft,
    MemberSuspect,
    MemberUp,
    MemberUpdated,
    RecordsAccepted,
    RecordsPurged,
)
from protocol.gossip import Gossip
from protocol.ids import FunctionName
from protocol.member import Member
from protocol.replicas import Site

from .acquaintances import Acquaintances
from .errors import IdentityTaken
from .forwarding import Forwarding
from .journal import Journal
from .network import ExchangeService
from .replication import ReplicationService
from .telemetry import Log


class Reactions:
    """Stateless; called in the node's event loop, in the order in which things happened."""

    def __init__(
        self,
        *,
        gossip: Gossip,
        acquaintances: Acquaintances,
        forwarding: Forwarding,
        exchange: ExchangeService,
        replication: ReplicationService,
        journal: Journal,
        wall_ms: Callable[[], int],
        shunned: Callable[[IdentityTaken], None],
        log: Log,
    ) -> None:
        """`shunned`: this run of the node cannot join the cluster."""
        self._gossip = gossip
        self._acquaintances = acquaintances
        self._forwarding = forwarding
        self._exchange = exchange
        self._replication = replication
        self._journal = journal
        self._wall_ms = wall_ms
        self._shunned = shunned
        self._log = log

    def on_event(self, event: Event) -> None:
        match event:
            case MemberUpdated(member):
                self._note_reachable(member)
            case MemberUp(member):
                self._forwarding.changed()
                self._acquaintances.changed()
                self._note_reachable(member)
                self._tell(event)
            case MemberSuspect(member):
                self._forwarding.doubted(member.node_id)
                self._note_reachable(member)
                self._tell(event, why=event.reason.text)
            case MemberDown(member):
                self._forwarding.lost(member.node_id, down=True)
                self._exchange.drop(member.node_id)
                self._note_reachable(member)
                self._tell(event, why=event.reason.text)
            case MemberLeft(member):
                self._forwarding.lost(member.node_id, down=False)
                self._acquaintances.changed()
                self._note_reachable(member)
                self._tell(event)
            case RecordsAccepted():
                self._forwarding.changed()
                self._forget_removed(event)
                self._replication.look()
            case RecordsPurged():
                self._replication.look()
            case IdentityClash():
                self._tell_clash(event)
            case _:
                pass  # nobody here minds

    def _tell(self, event: MemberUp | MemberSuspect | MemberDown | MemberLeft, **more: str) -> None:
        kind = type(event).__name__.removeprefix("Member").lower()
        member = event.member
        self._log.info(f"member {kind}", member=member.name, member_id=member.node_id, **more)

    def _tell_clash(self, event: IdentityClash) -> None:
        error = IdentityTaken(
            generation=self._gossip.members()[0].generation,
            known=event.generation,
            ahead_s=(event.generation - self._wall_ms()) / 1000,
        )
        self._log.error(str(error), **error.extra)
        if event.shunned:
            self._shunned(error)

    def _note_reachable(self, member: Member) -> None:
        if member.reachable:
            self._replication.member_up(Site(member.node_id, member.metadata.region))
        else:
            self._replication.member_gone(member.node_id)

    def _forget_removed(self, event: RecordsAccepted) -> None:
        """A function removed elsewhere leaves no log here."""
        for key, _ in event.records:
            kind, _, name = key.partition("/")
            if kind == "a" and self._gossip.catalog.lookup(name) is None:
                self._journal.forget(FunctionName(name))
