"""The kernel's filter of the gossip socket takes what could open and drops the rest. SPEC §4.8."""

from __future__ import annotations

import os
import socket

import pytest

from edged.network import admission
from edged.network.admission import admit_only, dropped_by_kernel
from protocol.ids import NodeId
from protocol.seal import DATAGRAM_BYTES_MAX, Keyring, Seal

KEYS = [bytes([i]) * 32 for i in range(8)]
RECEIVER = bytes(16)


def sealed(key: bytes, *, size: int = 10) -> tuple[bytes, bytes]:
    seal = Seal(Keyring([key]), NodeId("ab" * 16), 1)
    return seal.seal(bytes(size)), seal.seal_short(bytes(size), RECEIVER, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_what_could_open_passes_and_nothing_else(host: str, count: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)
        admit_only(sock, Keyring(KEYS[:count]).ids)

        def passes(data: bytes) -> bool:
            sock.sendto(data, sock.getsockname())
            try:
                return sock.recv(9000) == data
            except BlockingIOError:
                return False

        for key in KEYS[:count]:
            assert all(passes(data) for data in (*sealed(key), *sealed(key, size=1000)))
        long, short = sealed(KEYS[0])
        bad = [
            *sealed(KEYS[count]),
            *(os.urandom(1) + b"x" + os.urandom(size) for size in (24, 100, 1190)),
            b"",
            long[:25],
            short[:25],
            b"eh" + long[2:],
            long[:2] + b"\x02" + long[3:],
            b"\xe3" + short[1:],
            long + bytes(DATAGRAM_BYTES_MAX),
        ]
        before = dropped_by_kernel(sock)
        assert [passes(data) for data in bad] == [False] * len(bad)
        assert dropped_by_kernel(sock) - before == len(bad)
        others = [("127.0.0.9", 9), ("::9", 9), ("not an address", 9)] * 5
        own = sock.getsockname()[:2]
        admit_only(sock, Keyring(KEYS[:count]).ids, others)
        assert passes(long)
        admit_only(sock, Keyring(KEYS[:count]).ids, [*others, (own[0], own[1] ^ 1)])
        assert passes(long)
        admit_only(sock, Keyring(KEYS[:count]).ids, [*others, own])
        assert not passes(long)
        admit_only(sock, Keyring(KEYS[count : count + 1]).ids)
        assert all(passes(data) for data in sealed(KEYS[count]))
        assert not any(passes(data) for data in (long, short))


def test_a_filter_that_is_refused_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The former one would keep out what a new key seals."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        admit_only(sock, Keyring(KEYS[:1]).ids)
        monkeypatch.setattr(admission, "_RETURN", 0xFF)  # no such instruction
        admit_only(sock, Keyring(KEYS[:2]).ids)
        for data in sealed(KEYS[1]):
            sock.sendto(data, sock.getsockname())
            assert sock.recv(9000) == data
