"""What connection and exchange share: sizes of reads, and the ways a read or write ends early."""

from __future__ import annotations

from typing import Final

RECV_HEAD_BYTES: Final = 16 * 1024
RECV_BODY_BYTES: Final = 256 * 1024
"""As large as what an uploader has in flight on a fast link; smaller reads cost a pass each."""
JOIN_BYTES_MAX: Final = 64 * 1024
"""A larger answer is sent without copying it behind its head: two copies would be in memory."""


class ClientGone(OSError):
    """The client closed the connection, or takes no bytes. ASGI: send raises OSError."""


class ReadTimeout(Exception):
    """The connection's `read_deadline` has passed."""


class Woken(Exception):
    """The connection should close: it is idle and the listener drains, or it gives way."""
