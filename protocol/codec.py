"""Bytes to messages and back, with limits. Arbitrary bytes raise only RemoteProtocolError.

Messages of a datagram are encoded one by one when they are made, so that an update sent eight
times is encoded once; a payload is their concatenation behind an array header. SPEC §4.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, TypeVar

import msgspec

from .errors import LocalProtocolError, RemoteProtocolError
from .messages import MESSAGES_MAX, Message
from .seal import DATAGRAM_BYTES_MAX, PAYLOAD_BYTES_MAX, SHORT_BYTES, TAG_BYTES
from .syncmessages import SYNC_BYTES_MAX, SyncPayload, SyncReply, SyncRequest

_ARRAY16: Final = Struct(">BH")
FRAME_BYTES: Final = _ARRAY16.size
"""At most, of a payload before its first message."""
_FEW: Final = 15
"""Messages that a one-byte array header can count."""
MESSAGE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX - FRAME_BYTES

_encoder: Final = msgspec.msgpack.Encoder()
_packet_decoder: Final = msgspec.msgpack.Decoder(tuple[Message, ...])
_raw_decoder: Final = msgspec.msgpack.Decoder(tuple[msgspec.Raw, ...])
_request_decoder: Final[msgspec.msgpack.Decoder[SyncRequest]] = msgspec.msgpack.Decoder(SyncRequest)
_reply_decoder: Final[msgspec.msgpack.Decoder[SyncReply]] = msgspec.msgpack.Decoder(SyncReply)

S = TypeVar("S")


def encode_message(message: Message) -> bytes:
    return _encoder.encode(message)


def join_messages(parts: Sequence[bytes]) -> bytes:
    """The payload of a datagram made of encoded messages.

    Raises LocalProtocolError over the limits."""
    count = len(parts)
    header = bytes((0x90 | count,)) if count <= _FEW else _ARRAY16.pack(0xDC, count)
    payload = header + b"".join(parts)
    if count > MESSAGES_MAX or len(payload) > DATAGRAM_BYTES_MAX - SHORT_BYTES - TAG_BYTES:
        raise LocalProtocolError(f"{len(parts)} messages, {len(payload)} bytes")
    return payload


def split_packet(payload: bytes) -> list[bytes]:
    """The encoded messages of a payload that decode_packet took."""
    if payload[0] == 0x91:
        return [payload[1:]]
    return [bytes(raw) for raw in _raw_decoder.decode(payload)]


def decode_packet(payload: bytes) -> tuple[Message, ...]:
    """Raises RemoteProtocolError("codec"). An empty packet is one too."""
    try:
        messages = _packet_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("codec", str(error)) from error
    if not 0 < len(messages) <= MESSAGES_MAX:
        raise RemoteProtocolError("codec", f"{len(messages)} messages; 1 to {MESSAGES_MAX}")
    return messages


def encode_sync(payload: SyncPayload) -> bytes:
    """Raises LocalProtocolError over SYNC_BYTES_MAX: the maker budgets."""
    data = _encoder.encode(payload)
    if len(data) > SYNC_BYTES_MAX:
        raise LocalProtocolError(f"sync payload of {len(data)} bytes")
    return data


def decode_sync_request(data: bytes) -> SyncRequest:
    """Raises RemoteProtocolError("sync"): too large, malformed, or a reply."""
    return _decode_sync(data, _request_decoder)


def decode_sync_reply(data: bytes) -> SyncReply:
    """Raises RemoteProtocolError("sync"): too large, malformed, or a request."""
    return _decode_sync(data, _reply_decoder)


def _decode_sync(data: bytes, decoder: msgspec.msgpack.Decoder[S]) -> S:
    if len(data) > SYNC_BYTES_MAX:
        raise RemoteProtocolError("sync", f"{len(data)} bytes; at most {SYNC_BYTES_MAX}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteProtocolError("sync", str(error)) from error
