"""Asking a peer what it has of a module's artifact, and who vouches for it. SPEC §9.2."""

from __future__ import annotations

from typing import Final

import trio

from protocol.ids import ArtifactKey, Digest
from protocol.streams import AttestationsReply, ErrorReply, GetAttestations

from ..errors import PeerError
from ..interfaces import Peer
from ..trust import Trust
from .shaping import Shaper
from .streams import dial

ASK_TIMEOUT_S: Final = 3.0


async def ask_attestations(
    peer: Peer, trust: Trust, module: Digest, key: ArtifactKey, shaper: Shaper | None = None
) -> bytes:
    """The encoded answer, not looked at. Raises PeerError."""
    with trio.move_on_after(ASK_TIMEOUT_S):
        connection = await dial(peer.stream_address, trust, expected=peer.node_id, shaper=shaper)
        try:
            await connection.send(GetAttestations(1, module, key))
            frame = await connection.receive()
        finally:
            await connection.aclose()
        match frame:
            case (AttestationsReply(id=1), body):
                return body
            case (ErrorReply(code=code), _):
                raise PeerError(f"answered {code}")
            case _:
                raise PeerError("answered something else than attestations")
    raise PeerError(f"did not answer in {ASK_TIMEOUT_S:g} s")
