"""A filter in the kernel for the gossip socket: what cannot open never reaches this process.
SPEC §4.8.

Classic BPF over the UDP datagram. It looks at lengths, magic, versions and the ids of the keyring,
which are no secrets: it keeps out noise and floods from afar, and the seal judges the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Sequence
from typing import Final

from protocol.member import Address
from protocol.seal import (
    DATAGRAM_BYTES_MAX,
    LONG_VERSION,
    MAGIC,
    SHORT_BYTES,
    SHORT_KIND,
    TAG_BYTES,
)

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; none is in Python's socket module
_SO_DETACH_FILTER: Final = 27
_SO_MEMINFO: Final = 55
_DROPS: Final = 8  # SK_MEMINFO_DROPS, linux/sock_diag.h
_INSTRUCTION: Final = struct.Struct("=HBBI")

_UDP_HEADER: Final = 8
_LENGTH: Final = 0x80  # BPF_LD | BPF_W | BPF_LEN
_WORD, _HALF, _BYTE = 0x20, 0x28, 0x30  # BPF_LD | size | BPF_ABS
_EQUAL, _ABOVE, _AT_LEAST = 0x15, 0x25, 0x35  # BPF_JMP | test | BPF_K
_RETURN: Final = 0x06
_TAKE: Final = 0xFFFFFFFF
_NETWORK_HEADER: Final = 0xFFF00000  # SKF_NET_OFF, linux/filter.h: from the IP header on
_SOURCE_4: Final = 12
_SOURCE_6: Final = 8
BLOCKED_MAX: Final = 16
"""A jump spans 255 instructions at most, and blocking an IPv6 address takes 11."""

Line = str | tuple[int, str, str, int]
"""A label, or: code, label to go to if true, if false ("": the next line), operand."""


def admit_only(
    sock: socket.socket, key_ids: Sequence[str], blocked: Sequence[Address] = ()
) -> None:
    """From now on, and nothing from `blocked`; replaces a former filter. If the kernel refuses it
    (knows no filters, has no memory for them) there is none: it saves time, nothing relies on it,
    and the former one would keep out what a new key seals."""
    program = b"".join(_INSTRUCTION.pack(*each) for each in _program(key_ids, blocked))
    held = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    described = struct.pack("HP", count, ctypes.addressof(held))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    except OSError:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def dropped_by_kernel(sock: socket.socket) -> int:
    """Datagrams since the start that the filter refused or the receive buffer had no room for; 32
    bits. 0 where the kernel does not say."""
    size = 4 * (_DROPS + 1)
    with contextlib.suppress(OSError):
        values = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size)
        if len(values) == size:
            return int(struct.unpack_from("=I", values, 4 * _DROPS)[0])
    return 0


def _program(key_ids: Sequence[str], blocked: Sequence[Address]) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, operand) each."""
    identifiers = [int(key_id, 16) for key_id in key_ids]
    hints = dict.fromkeys(identifier >> 24 for identifier in identifiers)
    return _resolved(
        [
            (_LENGTH, "", "", 0),
            (_AT_LEAST, "", "drop", _UDP_HEADER + SHORT_BYTES + TAG_BYTES),
            (_ABOVE, "drop", "", _UDP_HEADER + DATAGRAM_BYTES_MAX),
            *(
                line
                for at, address in enumerate(blocked[:BLOCKED_MAX])
                for line in _block(at, address)
            ),
            (_HALF, "", "", _UDP_HEADER),
            (_EQUAL, "long", "", int.from_bytes(MAGIC)),
            (_BYTE, "", "", _UDP_HEADER),
            (_EQUAL, "", "drop", SHORT_KIND),
            (_BYTE, "", "", _UDP_HEADER + 1),
            *((_EQUAL, "take", "", hint) for hint in hints),
            (_RETURN, "", "", 0),
            "long",
            (_BYTE, "", "", _UDP_HEADER + 2),
            (_EQUAL, "", "drop", LONG_VERSION),
            (_WORD, "", "", _UDP_HEADER + 4),
            *((_EQUAL, "take", "", identifier) for identifier in identifiers),
            "drop",
            (_RETURN, "", "", 0),
            "take",
            (_RETURN, "", "", _TAKE),
        ]
    )


def _block(number: int, address: Address) -> list[Line]:
    """Drops what comes from there."""
    host, port = address
    try:
        source = ipaddress.ip_address(host)
    except ValueError:
        return []
    start = _NETWORK_HEADER + (_SOURCE_4 if source.version == 4 else _SOURCE_6)
    words = [int.from_bytes(source.packed[at : at + 4]) for at in range(0, len(source.packed), 4)]
    other = f"not {number}"
    lines: list[Line] = [(_HALF, "", "", 0), (_EQUAL, "", other, port)]
    for at, word in enumerate(words):
        lines += [(_WORD, "", "", start + 4 * at), (_EQUAL, "", other, word)]
    return [*lines, (_RETURN, "", "", 0), other]


def _resolved(source: Sequence[Line]) -> list[tuple[int, int, int, int]]:
    """Labels to distances, which count from the next instruction; "" is that one."""
    places: dict[str, int] = {}
    lines: list[tuple[int, str, str, int]] = []
    for line in source:
        if isinstance(line, str):
            places[line] = len(lines)
        else:
            lines.append(line)

    def distance(label: str, at: int) -> int:
        return places[label] - at - 1 if label else 0

    return [
        (code, distance(true, at), distance(false, at), operand)
        for at, (code, true, false, operand) in enumerate(lines)
    ]
