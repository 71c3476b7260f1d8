"""What a node says of itself, and a member as this node sees it. SPEC §5."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .ids import NodeId

_LABEL = r"[0-9A-Za-z:%_-]{1,63}"
Address = tuple[
    Annotated[str, Meta(max_length=64, pattern=rf"^{_LABEL}(\.{_LABEL})*\.?\Z")],
    Annotated[int, Meta(ge=1, le=65535)],
]
"""Host (IPv4, IPv6 without brackets, or a name) and port. Labels of 1 to 63 characters (RFC 1035
§2.3.4): resolvers fail in surprising ways on others."""

MemberState = Literal["alive", "suspect", "down", "left"]

_Text = Annotated[str, Meta(max_length=64, pattern=r"^[\x20-\x7e]*\Z")]
_Url = Annotated[str, Meta(max_length=128, pattern=r"^[\x21-\x7e]*\Z")]
_NodeName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z", max_length=63)]


class Metadata(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Versioned by (generation, incarnation): a change is a new incarnation.

    At most about 640 bytes encoded, so that one always fits a datagram."""

    name: _NodeName
    gossip_address: Address
    stream_address: Address
    gateway_url: _Url = ""
    region: _Text = "local"
    target: _Text = ""
    artifact_key: Annotated[str, Meta(max_length=64, pattern=r"^[0-9a-f]*\Z")] = ""
    """A prefix (16 digits do) of the node's artifact key: tells a builder whom an artifact fits."""
    keyring: Annotated[str, Meta(max_length=64, pattern=r"^([0-9a-f]{8})*\Z")] = ""
    """Ids of the cluster keys this node holds, 8 digits each, the one it seals with first: how a
    rotation sees that all have got so far. Filled in by Gossip."""
    wire: Annotated[int, Meta(ge=1, le=127)] = 1
    """The highest wire version this node speaks. Filled in by Gossip."""


class Member(msgspec.Struct, frozen=True):
    """A frozen view, this node itself included."""

    node_id: NodeId
    state: MemberState
    generation: int
    incarnation: int
    metadata: Metadata
    rtt_s: float | None
    """Smoothed round trip of direct probes; None before the first."""
    is_self: bool
    changed_at_s: float
    """`now` of the last change of state."""
    load: float | None = None
    """Busy share of its capacity, 0 to 1, by its last Ack; None before the first."""

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def reachable(self) -> bool:
        """Worth a connection attempt: alive, or merely suspected."""
        return self.state in ("alive", "suspect")
