"""Shaped links of one node: what the control API needs, and what it answers."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from ..links import Document


class LinkView(msgspec.Struct, frozen=True):
    """In the units of the document."""

    latency_ms: float
    jitter_ms: float
    jitter: str
    correlation: float
    loss: float
    duplicate: float
    reorder: float
    bandwidth_mbit: float | None
    cut: Literal["drop", "reset"] | None


class LinkPeerView(msgspec.Struct, frozen=True):
    """What this node sends to one peer. Counters are since this node's start."""

    name: str
    region: str
    link: LinkView
    datagrams: int = 0
    """That this node meant to send."""
    datagrams_delayed: int = 0
    datagrams_duplicated: int = 0
    datagrams_dropped: dict[str, int] = {}
    """By "cut", "queue" (it was full) and "loss"."""
    stream_bytes: int = 0
    """Of ciphertext."""
    stream_bytes_delayed: int = 0
    streams_reset: int = 0
    connects_held: int = 0
    """Packets of connecting that did not get there, or back."""
    connects_refused: int = 0
    streams: int = 0
    """Now."""
    queue_bytes: int = 0
    """Waiting for bandwidth now, of all that share it."""


class LinksView(msgspec.Struct, frozen=True):
    node: str
    region: str
    document: Document
    """In force."""
    changed_at_ms: int
    """Unix time since when."""
    pending_at_ms: int | None
    """When another one, already here, will be."""
    peers: tuple[LinkPeerView, ...]


class LinksChange(msgspec.Struct, frozen=True):
    """Answer to a change."""

    at_ms: int
    """Unix time from which on the document is in force."""
    rules: int


class LinkOperator(Protocol):
    """What the control API needs of the node."""

    def view(self) -> LinksView:
        """Raises LinksDisabled."""
        ...

    def schedule(self, document: Document, at_ms: int | None) -> LinksChange:
        """At that instant of Unix time, or now; it takes the place of one that was to come.

        Raises LinksDisabled, BadRequest: the instant is too far away."""
        ...
