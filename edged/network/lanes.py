"""What this node sends to one peer: the pipe it goes through, what became of it, its streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from protocol.shaping import CLEAR, Drop, Pipe

from ..topology import End

if TYPE_CHECKING:
    from .shapedstreams import ShapedStream


class LaneCounts(msgspec.Struct):
    """Since this node's start."""

    datagrams: int = 0
    """That this node meant to send."""
    datagrams_delayed: int = 0
    datagrams_duplicated: int = 0
    datagrams_dropped: dict[Drop, int] = msgspec.field(
        default_factory=lambda: {"cut": 0, "queue": 0, "loss": 0}
    )
    stream_bytes: int = 0
    """Of ciphertext."""
    stream_bytes_delayed: int = 0
    streams_reset: int = 0
    connects_held: int = 0
    """Packets of connecting that did not get there, or back."""
    connects_refused: int = 0


class Lane:
    def __init__(self, end: End, pipe: Pipe, back: Pipe) -> None:
        """`pipe` may be shared with other peers of the region; `back` is the way back, for what the
        peer cannot delay as it does not know yet who calls."""
        self.end = end
        self.counts = LaneCounts()
        self.streams: dict[ShapedStream, None] = {}
        self.pipe = pipe
        self.back: Final = back
        self.look()

    def look(self) -> None:
        """What holds of its links now."""
        self.is_clear = self.pipe.link == CLEAR and self.back.link.cut is None
        self.is_reset = "reset" in (self.pipe.link.cut, self.back.link.cut)
