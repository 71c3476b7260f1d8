"""Segments kept in memory for peers: only while somebody wants them, and never too many."""

from __future__ import annotations

from edged.network.hot import HotSegments
from protocol.ids import digest_of

A, B = digest_of(b"a"), digest_of(b"b")


def test_kept_only_while_wanted() -> None:
    hot = HotSegments()
    hot.put(A, 0, b"nobody wants it")
    assert hot.get(A, 0) is None
    hot.open(A)
    hot.open(A)
    hot.open(B)
    hot.put(A, 0, b"frame")
    hot.put(B, 0, b"other")
    hot.close(A)
    assert hot.get(A, 0) == b"frame"
    assert hot.size_bytes == 10
    hot.close(A)
    assert hot.get(A, 0) is None
    assert hot.get(B, 0) == b"other"
    assert hot.size_bytes == 5
    hot.close(B)
    assert hot.size_bytes == 0


def test_the_least_recently_used_go_first() -> None:
    hot = HotSegments(bytes_max=30)
    hot.open(A)
    for index in range(3):
        hot.put(A, index, bytes(10))
    assert hot.get(A, 0) is not None
    hot.put(A, 3, bytes(10))
    assert [index for index in range(4) if hot.get(A, index) is not None] == [0, 2, 3]
    hot.put(A, 0, bytes(10))
    assert hot.size_bytes == 30, "twice is once"
    hot.put(A, 9, bytes(31))
    assert hot.size_bytes == 0, "one that is too large stays no more than another"
