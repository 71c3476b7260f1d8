"""The protocol's error tree.

`RemoteProtocolError`: the peer did something SPEC.md forbids; its input is dropped and counted.
`LocalProtocolError`: this process misused a machine; a bug in edged. Anything else that leaves a
machine is a bug by definition, which the fuzz and property tests look for. After either error the
machine's state is as it was before the call.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of everything `protocol` raises on purpose."""


class LocalProtocolError(ProtocolError):
    """A caller broke a machine's contract."""


class RemoteProtocolError(ProtocolError):
    """Bytes or messages from a peer broke the protocol.

    `code` is a short stable label for counters and logs, e.g. "seal" or "record-signature".
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
