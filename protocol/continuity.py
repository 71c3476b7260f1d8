"""Whether this node was away for longer than tombstones last, and what it may then say. SPEC §6.7.

A node remembers when it last agreed with a peer on every live record (`agreed`), and from when on
it has witnessed every removal (`since`). One that comes back after more than tombstones last is
*returning*: a record of before that others lack may have been removed and forgotten meanwhile, or
they may never have had it. Only a witness of its whole absence can tell; where there is none,
nothing is lost.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from .catalog import TOMBSTONE_MS
from .clock import HLC_MAX, SKEW_MS_MAX, hlc_of
from .errors import RemoteProtocolError

NO_WITNESS: Final = HLC_MAX
AWAY_MS_MAX: Final = TOMBSTONE_MS - 2 * SKEW_MS_MAX
"""A tombstone is kept for TOMBSTONE_MS by its signer's clock, which may differ from the keeper's,
and `agreed` is by this node's."""
GAP_MS: Final = 600_000
"""Without agreement for longer, something may have been said and removed that this node missed,
until one that missed nothing has told it everything."""
WAIT_S: Final = 60.0
"""A returning node in company asks for so long whether anyone stayed: with PER_INTERVAL_MAX syncs
per second that is everyone in a cluster of hundreds."""
SAVE_MS: Final = 300_000
"""While nothing changes, how coarse the saved time of agreement is: it shortens the absence that
is safe by as much."""

_Hlc = Annotated[int, Meta(ge=0, le=HLC_MAX)]


class _Saved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    agreed_ms: Annotated[int, Meta(ge=-1, le=HLC_MAX)]
    agreed_hlc: _Hlc
    since: _Hlc


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Saved)


class Continuity:
    def __init__(self) -> None:
        self._agreed_ms: int | None = None
        self._agreed_hlc = 0
        self._since = NO_WITNESS
        self._returning = False
        self._gap = False
        """Since the last agreement this node may have missed something: it is no witness yet."""
        self._off = False
        """Not running since the last agreement, at least for a while."""
        self._saved = self._state()

    @property
    def returning(self) -> bool:
        return self._returning

    @property
    def since(self) -> int:
        """For peers: NO_WITNESS while it is not known what was missed."""
        return NO_WITNESS if self._returning or self._gap else self._since

    @property
    def agreed_hlc(self) -> int:
        """Others know every record up to it; -1: none."""
        return -1 if self._agreed_ms is None else self._agreed_hlc

    @property
    def away(self) -> int:
        """For peers: the agreed hlc of a node that was off and is returning; else NO_WITNESS."""
        return self._agreed_hlc if self._returning and self._off else NO_WITNESS

    def since_for(self, away: int) -> int:
        """As `since`, for one who asks with that `away`. Who ran on, alone, had every record up to
        the agreement that they had together, and knows which of them it removed."""
        stayed = not self._off and away <= self._agreed_hlc and self._agreed_ms is not None
        return self._since if stayed else self.since

    @property
    def unspread_from(self) -> int:
        """Own records up to this hlc are held back while returning; -1: none."""
        return self._agreed_hlc if self._returning else -1

    def resume(self, saved: bytes, wall_ms: int) -> None:
        """Takes up what `take_unsaved` gave before the restart.

        Raises RemoteProtocolError("continuity"): not what was saved. Then nothing is known, so
        that nothing will be taken for removed."""
        try:
            state = _decoder.decode(saved)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RemoteProtocolError("continuity", str(error)) from error
        self._agreed_ms = state.agreed_ms if state.agreed_ms >= 0 else None
        self._agreed_hlc, self._since = state.agreed_hlc, state.since
        self._saved = self._state()
        self._off = self._agreed_ms is not None
        self.look(wall_ms)

    def look(self, wall_ms: int) -> None:
        """Has this node been without agreement for too long? Also while it runs, cut off."""
        if self._agreed_ms is not None:
            self._returning |= wall_ms - self._agreed_ms > AWAY_MS_MAX
            self._gap |= self._missed(wall_ms)

    def agree(self, wall_ms: int, hlc: int) -> None:
        """A peer has the very same live records, the latest from `hlc`. Two who return together
        may agree as well: that says nothing."""
        self.look(wall_ms)
        if self._returning:
            return
        if self._gap or self._missed(wall_ms):
            self._since = max(hlc, hlc_of(wall_ms))
        self._gap = self._off = False
        self._agreed_ms, self._agreed_hlc = wall_ms, hlc

    def _missed(self, wall_ms: int) -> bool:
        return self._agreed_ms is None or not 0 <= wall_ms - self._agreed_ms <= GAP_MS

    def judged_by(self, peer_since: int) -> bool:
        """Whether a peer witnessed all of the time since this node last agreed with anyone."""
        if self._agreed_ms is None:
            return False
        return peer_since <= hlc_of(max(0, self._agreed_ms - SKEW_MS_MAX))

    def inherit(self, peer_since: int, wall_ms: int, hlc: int) -> None:
        """All that a peer knows, tombstones included, has been taken over; and if this node was
        returning, that peer has judged."""
        if peer_since == NO_WITNESS:
            return
        if self.judged_by(peer_since) or not (self._gap or self._missed(wall_ms)):
            self._since = min(self._since, peer_since)
        else:
            self._since = peer_since
        self._returning = self._gap = self._off = False
        self._agreed_ms, self._agreed_hlc = wall_ms, hlc

    def keep(self) -> None:
        """Nobody stayed: whatever is here counts as not yet spread."""
        self._returning = self._gap = self._off = False
        self._agreed_ms, self._agreed_hlc, self._since = None, 0, NO_WITNESS

    @property
    def unsaved(self) -> bool:
        """Whether `take_unsaved` has something: what is agreed on moved, or much time passed."""
        if self._returning or self._state() == self._saved:
            return False
        agreed_ms, *rest = self._state()
        return rest != list(self._saved[1:]) or not 0 <= agreed_ms - self._saved[0] < SAVE_MS

    def take_unsaved(self) -> bytes | None:
        if not self.unsaved:
            return None
        self._saved = self._state()
        return _encoder.encode(_Saved(*self._saved))

    def _state(self) -> tuple[int, int, int]:
        agreed_ms = -1 if self._agreed_ms is None else self._agreed_ms
        return agreed_ms, self._agreed_hlc, self._since
