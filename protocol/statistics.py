"""What a gossip machine counts. SPEC §5–§7.

`ProbeCounts` belongs to Membership and is changed in place; `Statistics` is a frozen reading.
"""

from __future__ import annotations

import msgspec

from .member import MemberState


class ProbeCounts(msgspec.Struct):
    """Since the start."""

    probes: int = 0
    """Of this node's own: rounds, verifications and last looks."""
    acks_direct: int = 0
    acks_indirect: int = 0
    """The probe was answered, through a helper first."""
    acks_stream: int = 0
    """Only the stream answered: datagrams are lost on the way."""
    nacks: int = 0
    probes_failed: int = 0
    suspicions_raised: int = 0
    """By this node's own evidence."""
    suspicions: int = 0
    """All, whoever raised them."""
    suspicions_refuted: int = 0
    """The suspect contradicted."""
    stalls_spared: int = 0
    """Last looks without an answer that found a stopped process, not a dead one."""
    deaths: int = 0
    false_deaths: int = 0
    """Known after the fact: it came back in the same generation."""
    refutations: int = 0
    """This node's, of what was said of it."""
    stalls: int = 0
    """This node's own: a timer ran late by more than `stall_s`."""


class Statistics(msgspec.Struct, frozen=True):
    """Counters since the start, and gauges of now."""

    datagrams_received: int
    datagrams_sent: int
    bytes_received: int
    bytes_sent: int
    """UDP payload bytes."""
    messages_received: dict[str, int]
    messages_sent: dict[str, int]
    """By type (traffic.NAMES)."""
    message_bytes_received: dict[str, int]
    message_bytes_sent: dict[str, int]
    """By type, and traffic.ENVELOPE for what is around them; together all the bytes."""
    transmits_queued: int
    sources_blocked: int
    """Addresses whose datagrams are dropped unread for a while (SPEC §4.8)."""
    transmits_lost: int
    updates_lost: int
    """By overflow of the broadcast queue."""
    updates_queued: int
    refused: dict[str, int]
    """Items refused inside accepted input, by code; raised errors are the driver's to count."""
    syncs_wanted: int
    syncs_answered: int
    syncs_futile: int
    """Asked for, and ended without any news for either side."""
    probing: ProbeCounts
    """A copy."""
    probes_running: int
    stream_probes_open: int
    suspects: int
    health: int
    """Local health; 0 is well."""
    members: dict[MemberState, int]
    records: int
    state_digest: int
