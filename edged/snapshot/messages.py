"""What a snapshot's worker is asked, and what it tells: msgpack in frames of 4 + n bytes."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from edged.errors import (
    CannotSnapshot,
    DiskFull,
    EdgedError,
    InitExited,
    InitTimeout,
    InitTrapped,
    InvocationError,
    Overloaded,
    PolicyDenied,
)
from edged.interfaces import InitPlan, SnapshotLimits, SnapshotReport
from protocol.function import Policy

HEAD_BYTES: Final = 4
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of what is told."""
OUTPUT_BYTES_MAX: Final = 64 * 1024
"""Of the guest's stdout and stderr, their ends."""

Phase = Literal["parse", "instrument", "compile", "instantiate", "init", "capture", "rewrite"]


class Job(msgspec.Struct, frozen=True):
    library: str
    target: str
    module_fd: int
    output_fd: int
    plan: InitPlan
    policy: Policy
    mounts: dict[str, str]
    scratch: str
    """Directory for a private /tmp; "" if there is none."""
    limits: SnapshotLimits
    fast: bool
    """Whether the fast compiler may be tried."""


class Entered(msgspec.Struct, frozen=True, tag=True):
    """A phase begins."""

    phase: Phase


class Done(msgspec.Struct, frozen=True, tag=True):
    report: SnapshotReport


class Failed(msgspec.Struct, frozen=True, tag=True):
    error: str
    """Name of its class."""
    detail: str
    private: str
    reason: str = ""
    thing: str = ""
    stderr: bytes = b""
    exit_status: int | None = None


Told = Entered | Done | Failed
"""By the worker: any number of the first, one of the others."""

_encoder = msgspec.msgpack.Encoder()
decode_job: Final = msgspec.msgpack.Decoder(Job).decode
decode_told: Final = msgspec.msgpack.Decoder(Told).decode
_PLAIN: Final[dict[str, type[EdgedError]]] = {
    kind.__name__: kind for kind in (PolicyDenied, Overloaded, DiskFull)
}
_OF_GUEST: Final[dict[str, type[InvocationError]]] = {
    kind.__name__: kind for kind in (InitTrapped, InitExited, InitTimeout)
}


def frame(message: Job | Told) -> bytes:
    data = _encoder.encode(message)
    return len(data).to_bytes(HEAD_BYTES, "little") + data


class Messages:
    """Takes frames from a stream of bytes. What is not one ends the listening: the worker is then
    heard as one that died without a word."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken = False

    def receive(self, data: bytes | bytearray) -> list[Told]:
        """The messages that are complete now."""
        told: list[Told] = []
        if self._broken:
            return told
        self._buffer += data
        while len(self._buffer) >= HEAD_BYTES:
            end = HEAD_BYTES + int.from_bytes(self._buffer[:HEAD_BYTES], "little")
            if end > FRAME_BYTES_MAX:
                self._broken = True
                break
            if len(self._buffer) < end:
                break
            try:
                told.append(decode_told(bytes(self._buffer[HEAD_BYTES:end])))
            except msgspec.MsgspecError:
                self._broken = True
                break
            del self._buffer[:end]
        return told


def failed(error: EdgedError) -> Failed:
    """Of an error that `error_of` knows; any other is the worker's crash."""
    name, private = type(error).__name__, error.private
    if isinstance(error, CannotSnapshot):
        return Failed(name, str(error), private, reason=error.reason, thing=error.thing)
    if isinstance(error, InvocationError) and name in _OF_GUEST:
        status = error.extra.get("exit_status")
        return Failed(
            name, str(error), private, stderr=error.stderr[-OUTPUT_BYTES_MAX:], exit_status=status
        )
    if name in _PLAIN:
        return Failed(name, str(error), private)
    raise error


def error_of(told: Failed) -> EdgedError:
    if told.error in _PLAIN:
        return _PLAIN[told.error](told.detail, private=told.private)
    if told.error in _OF_GUEST:
        extra = {} if told.exit_status is None else {"exit_status": told.exit_status}
        return _OF_GUEST[told.error](told.detail, private=told.private, stderr=told.stderr, **extra)
    return CannotSnapshot(told.reason, told.detail, thing=told.thing, private=told.private)
