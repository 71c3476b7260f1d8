"""The knobs of gossip with the formula or measurement behind each, and three presets. SPEC §5.

All are frozen: a driver picks a preset and may replace single knobs (msgspec.structs.replace).
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec


class Knobs(msgspec.Struct, frozen=True, kw_only=True):
    probe_interval_s: float
    """T. One probe per node and period, so each member is probed once per period on average and
    first suspected after about T/(1 − 1/e) + window, whatever N (SWIM §3.3)."""
    neighbour_probes: bool = True
    """Every other probe goes to the next member on the ring. SWIM's random order alone finds a dead
    one after T on average but has no bound (e^-3 are left after 3 T); the two together probe it
    first after t with chance (1 − t/2T)·e^(−t/2T): 0.74 T on average, and never after 2 T."""
    probe_window_s: float
    """From the ping to the verdict. Never below T of lan: 0.4 s flapped under CPU starvation."""
    direct_timeout_min_s: float
    direct_timeout_max_s: float
    """Direct wait = clamp(srtt + 4·rttvar, min, max) · (health + 1); the rest of the window is for
    the indirect probes (RFC 6298's estimator)."""
    indirect_probes: int = 3
    """k. False suspicion per probe = (1−q²)(1−q⁴)^k with q = 1 − loss: 20 % loss, k = 3: 7 %."""
    suspicion_min_s: float
    """With enough confirmations. Not scaled with N: the verifiers make it safe (1.5 s without
    them gave 124 false deaths at 20 % loss, 2.0 s with them none)."""
    suspicion_max_factor: float = 5.0
    """Without any confirmation the suspicion lasts factor · min (Lifeguard §IV-B)."""
    confirmations: int = 3
    """K: timeout(c) = max − (max − min)·log(c+1)/log(K+1), c independent accusers after the first;
    K is capped at the number of other possible accusers."""
    verifiers: int = 6
    """Members, chosen by consistent hashing of the suspicion, who probe it at once when they hear:
    their K confirmations arrive after one window instead of whenever somebody happens to probe."""
    verifier_grace_s: float = 1.0
    """All others wait so much longer before they declare."""
    last_look: bool = True
    """Before a verdict: one patient ping, and a look over TCP."""
    stream_probe: bool = True
    """A look over TCP beside the indirect probes: it passes where datagrams do not, and tells a
    stopped process (`stalled`) from a dead one (`refused`)."""
    stall_patience_s: float = 12.0
    """Since the suspicion's start: so long a member whose kernel takes connections is taken for
    stopped, not dead. Pauses of 8 s are survived, 20 s are not; memberlist gives 4 to 6 s."""
    stall_look_s: float = 1.0
    """Between two looks at a stalled one."""
    buddy: bool = True
    """Whatever is sent to a suspect tells it that it is one (Lifeguard §IV-C)."""
    gossip_interval_s: float = 0.1
    """Repeats of pending updates; the first goes at once."""
    gossip_fanout: int = 3
    retransmit_factor: int = 4
    """Sends per update and node = factor · ceil(log10(N + 1)) (memberlist's formula)."""
    health_max: int = 8
    """Local health 0..max; intervals and direct timeouts are multiplied by health + 1."""
    stall_s: float
    """A timer that runs so late means this process was stopped: no verdict is drawn from it. Below
    the probe window, or a stop would go unnoticed and fail a probe."""
    join_retry_s: float
    """A lost knock costs so much; two round trips and a TLS handshake at least."""
    reconnect_s: float = 5.0
    """Every so often a down member is pinged with probability max(down/N, R·rate/reachable)."""
    reconnect_rate_hz: float = 1.0
    """So many pings per second at least cross a healed partition from each side, however big: two
    sides first meet after 0.5 s on average, e^-10 is left after 5 s."""
    reap_down_s: float = 24 * 3600.0
    """Serf's reconnect timeout: a partition that lasts longer heals by seeds only."""
    reap_left_s: float = 3600.0
    """Only so that operators see who left; a leave needs no healing."""
    sync_quiet_s: float
    """A digest mismatch counts only if nothing changed here for so long: updates in flight are the
    usual reason. Bounds how late a missed update arrives: quiet + one probe period."""
    sync_interval_s: float
    """At most one requested sync per peer and interval; without effect, ever rarer."""
    sync_backstop_s: float = 300.0
    """Every so often, ± half, a sync with a random member, for what digests do not show (an Ack has
    32 bits of one): about 5 KB with its handshake, 17 bytes/s."""


LAN: Final = Knobs(
    probe_interval_s=0.5,
    probe_window_s=0.5,
    direct_timeout_min_s=0.05,
    direct_timeout_max_s=0.2,
    suspicion_min_s=2.0,
    stall_s=0.4,
    join_retry_s=1.0,
    sync_quiet_s=0.5,
    sync_interval_s=1.0,
)
"""Measured (FACTS §4): a silent host is known to all of 30 in 3 s at 250 bytes/s idle per node."""

LOCAL: Final = msgspec.structs.replace(
    LAN,
    direct_timeout_min_s=0.1,
    suspicion_min_s=1.5,
    suspicion_max_factor=4.0,
    join_retry_s=0.25,
    sync_quiet_s=0.3,
    sync_interval_s=0.5,
)
"""One machine: no loss, but many processes on few cores, so the direct timeout is generous."""

WAN: Final = Knobs(
    probe_interval_s=1.5,
    probe_window_s=1.5,
    direct_timeout_min_s=0.3,
    direct_timeout_max_s=0.9,
    suspicion_min_s=5.0,
    suspicion_max_factor=6.0,
    verifier_grace_s=2.0,
    gossip_interval_s=0.3,
    gossip_fanout=4,
    stall_s=1.0,
    join_retry_s=3.0,
    sync_quiet_s=1.5,
    sync_interval_s=3.0,
)
"""RTT up to 300 ms and loss bursts of a second."""


def without_lifeguard(knobs: Knobs) -> Knobs:
    """Plain SWIM with the same probes and dissemination, to measure what the rest is worth: one
    fixed suspicion; no local health, buddies, verifiers, last looks or looks over TCP; no notice
    of own stops."""
    return msgspec.structs.replace(
        knobs,
        health_max=0,
        suspicion_max_factor=1.0,
        confirmations=0,
        verifiers=0,
        verifier_grace_s=0.0,
        last_look=False,
        stream_probe=False,
        buddy=False,
        stall_s=math.inf,
    )


PresetName = Literal["local", "lan", "wan"]
PRESETS: Final[dict[PresetName, Knobs]] = {"local": LOCAL, "lan": LAN, "wan": WAN}
