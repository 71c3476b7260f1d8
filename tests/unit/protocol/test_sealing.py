"""Sealed datagrams: what opens, what does not, and that refusal changes nothing. SPEC §4."""

from __future__ import annotations

import pytest
from protocol_support import CLUSTER_KEY, node_id

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.ids import NodeId
from protocol.links import SAME_SESSION_MAX, Links
from protocol.replay import WINDOW_BITS, rebuild
from protocol.seal import (
    DATAGRAM_BYTES_MAX,
    LONG_BYTES,
    PAYLOAD_BYTES_MAX,
    SHORT_BYTES,
    TAG_BYTES,
    Keyring,
    Opened,
    Seal,
    key_id,
)

A, B = node_id("n0"), node_id("n1")
NEW_KEY = b"n" * 32


def seal_of(node=A, generation=7, keys=(CLUSTER_KEY,), **options) -> Seal:
    return Seal(Keyring(keys), node, generation, **options)


def code_of(seal: Seal, data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        seal.open(data)
    return caught.value.code


def take(seal: Seal, data: bytes) -> Opened:
    opened = seal.open(data)
    seal.commit(opened)
    return opened


def test_round_trip_up_to_the_limit() -> None:
    sender, receiver = seal_of(), seal_of(B, 1)
    for size in (0, 1, PAYLOAD_BYTES_MAX):
        data = sender.seal(b"p" * size)
        assert len(data) == LONG_BYTES + size + TAG_BYTES <= DATAGRAM_BYTES_MAX
        opened = take(receiver, data)
        assert (opened.sender, opened.generation, opened.payload) == (A, 7, b"p" * size)
    with pytest.raises(LocalProtocolError):
        sender.seal(b"p" * (PAYLOAD_BYTES_MAX + 1))


def test_what_does_not_open() -> None:
    data = seal_of().seal(b"hello")
    receiver = seal_of(B)
    altered = {
        "seal-short": data[: LONG_BYTES + TAG_BYTES - 1],
        "seal-long": data + bytes(DATAGRAM_BYTES_MAX),
        "seal-magic": b"xx" + data[2:],
        "seal-version": data[:2] + b"\x02" + data[3:],
        "seal-key": data[:4] + b"\x00\x00\x00\x00" + data[8:],
    }
    assert {code_of(receiver, wrong) for wrong in altered.values()} == set(altered)
    for code, wrong in altered.items():
        assert code_of(receiver, wrong) == code
    assert code_of(receiver, b"") == "seal-short"
    assert code_of(seal_of(B, keys=[b"f" * 32]), data) == "seal-key"


def test_every_bit_is_authenticated() -> None:
    data = seal_of().seal(b"hello")
    receiver = seal_of(B)
    for at in range(len(data)):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert code_of(receiver, wrong).startswith("seal-")
    for size in range(len(data)):
        assert code_of(receiver, data[:size]).startswith("seal-")
    assert not receiver._ciphers, "a forgery found a place in the cache"
    assert not receiver._windows
    assert take(receiver, data).payload == b"hello"


def test_replays_are_refused_and_late_ones_are_not() -> None:
    sender, receiver = seal_of(), seal_of(B)
    datagrams = [sender.seal(b"%d" % i) for i in range(WINDOW_BITS + 2)]
    take(receiver, datagrams[1])
    take(receiver, datagrams[0])
    assert code_of(receiver, datagrams[0]) == "seal-replay"
    take(receiver, datagrams[-1])
    assert code_of(receiver, datagrams[1]) == "seal-replay", "known before the jump"
    take(receiver, datagrams[2])
    assert code_of(receiver, datagrams[0]) == "seal-replay", "older than the window"


def test_a_jump_over_the_whole_window_forgets_it() -> None:
    receiver = seal_of(B)
    take(receiver, seal_of().seal(b"first"))
    far = seal_of()
    far._counter = 1 << 40
    take(receiver, far.seal(b"far"))
    near = seal_of()
    near._counter = (1 << 40) - 1
    assert take(receiver, near.seal(b"near")).payload == b"near"


def test_opening_without_commit_consumes_nothing() -> None:
    data, receiver = seal_of().seal(b"x"), seal_of(B)
    assert receiver.open(data) == receiver.open(data)
    take(receiver, data)
    assert code_of(receiver, data) == "seal-replay"


def test_a_new_generation_ends_the_old_one() -> None:
    old, new, receiver = seal_of(generation=1), seal_of(generation=2), seal_of(B)
    take(receiver, old.seal(b"a"))
    take(receiver, new.seal(b"b"))
    assert code_of(receiver, old.seal(b"c")) == "seal-replay"


def test_memory_is_bounded_by_senders() -> None:
    receiver = seal_of(B, windows_max=2, ciphers_max=2)
    for index in range(5):
        take(receiver, seal_of(node_id(f"n{index + 2}")).seal(b"x"))
    assert len(receiver._windows) == len(receiver._ciphers) == 2


def test_keys_rotate_with_nodes_a_step_apart() -> None:
    old, both = seal_of(keys=[CLUSTER_KEY]), seal_of(B, keys=[CLUSTER_KEY, NEW_KEY])
    take(both, old.seal(b"1"))
    take(old, both.seal(b"2"))
    both.set_keyring(Keyring([NEW_KEY, CLUSTER_KEY]))
    third = seal_of(node_id("n2"), keys=[NEW_KEY, CLUSTER_KEY])
    take(third, both.seal(b"3"))
    take(both, old.seal(b"4"))
    assert code_of(old, both.seal(b"5")) == "seal-key"
    both.set_keyring(Keyring([NEW_KEY]))
    assert code_of(both, old.seal(b"6")) == "seal-key"


def test_same_key_other_sender_or_generation_is_another_cipher() -> None:
    sealed = {
        seal_of(node, generation).seal(b"same")[LONG_BYTES:]
        for node in (A, B)
        for generation in (1, 2)
    }
    assert len(sealed) == 4


@pytest.mark.parametrize(
    "keys", [[], [b"short"], [CLUSTER_KEY] * 2, [bytes([i]) * 32 for i in range(9)]]
)
def test_keyrings_are_checked(keys: list[bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        Keyring(keys)
    assert len(key_id(CLUSTER_KEY)) == 4


# ------------------------------------------------------------ binding and short headers
RAW_A, RAW_B = bytes.fromhex(A), bytes.fromhex(B)


def test_what_is_bound_opens_there_only() -> None:
    sender = seal_of()
    here, restarted, other = seal_of(B, 3), seal_of(B, 4), seal_of(node_id("n2"), 3)
    anyone, node = sender.seal(b"x"), sender.seal(b"x", RAW_B)
    one = sender.seal(b"x", RAW_B, 3, known=True)
    for receiver, codes in (
        (here, ("", "", "")),
        (restarted, ("", "", "seal-open")),
        (other, ("", "seal-open", "seal-open")),
    ):
        for data, code in zip((anyone, node, one), codes, strict=True):
            if code:
                assert code_of(receiver, data) == code
            else:
                assert receiver.open(data).bound == (data is one)
    assert here.open(one).known
    assert not here.open(node).known


def linked() -> tuple[Seal, Seal]:
    """A and B after each has told the other that it knows it."""
    a, b = seal_of(A, 7), seal_of(B, 3)
    take(b, a.seal(b"", RAW_B, 3, known=True))
    take(a, b.seal(b"", RAW_A, 7, known=True))
    take(b, a.seal(b"", RAW_B, 3, known=True))
    return a, b


def test_a_short_header_needs_both_to_know_each_other() -> None:
    a, b = seal_of(A, 7), seal_of(B, 3)
    assert a.header_bytes(RAW_B, 3, 2) == LONG_BYTES
    take(b, a.seal(b"", RAW_B, 3, known=True))
    assert b.header_bytes(RAW_A, 7, 2) == LONG_BYTES, "a has not been told"
    take(a, b.seal(b"", RAW_A, 7, known=False))
    assert a.header_bytes(RAW_B, 3, 2) == LONG_BYTES, "b does not know a"
    take(a, b.seal(b"", RAW_A, 7, known=True))
    assert a.header_bytes(RAW_B, 3, 2) == SHORT_BYTES
    assert a.header_bytes(RAW_B, 4, 2) == LONG_BYTES, "another generation"
    assert a.header_bytes(RAW_B, 3, 1) == LONG_BYTES, "an older version"
    data = a.seal_short(b"hello", RAW_B, 3)
    assert len(data) == SHORT_BYTES + 5 + TAG_BYTES
    opened = take(b, data)
    assert (opened.sender, opened.generation, opened.payload) == (A, 7, b"hello")
    assert opened.bound
    assert code_of(b, data) == "seal-replay"
    assert code_of(seal_of(B, 4), data) == "seal-session"
    a.links.doubt(RAW_B)
    assert a.links.doubted(RAW_B)
    assert a.header_bytes(RAW_B, 3, 2) == LONG_BYTES
    take(a, b.seal_short(b"", RAW_A, 7))
    assert not a.links.doubted(RAW_B)
    assert a.header_bytes(RAW_B, 3, 2) == SHORT_BYTES


def test_every_bit_of_a_short_datagram_is_authenticated() -> None:
    a, b = linked()
    data = a.seal_short(b"hello", RAW_B, 3)
    for at in range(len(data)):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert code_of(b, wrong).startswith("seal-")
    for size in range(len(data)):
        assert code_of(b, data[:size]).startswith("seal-")
    assert take(b, data).payload == b"hello"


def test_short_counters_are_rebuilt_across_the_carry() -> None:
    a, b = linked()
    a._counter = (1 << 32) - 2
    assert a.header_bytes(RAW_B, 3, 2) == LONG_BYTES, "a long one is due by now"
    take(b, a.seal(b"", RAW_B, 3, known=True))
    first, second = (a.seal_short(b"%d" % i, RAW_B, 3) for i in range(2))
    assert take(b, second).counter == 1 << 32
    assert take(b, first).counter == (1 << 32) - 1
    assert code_of(b, first) == "seal-replay"


def test_counters_are_rebuilt_as_near_as_possible() -> None:
    for top in (-1, 5, (1 << 31) - 1, (1 << 32) - 1, (1 << 32) + 7, (1 << 40) + 3, (1 << 64) - 2):
        for step in (-(1 << 31) + 2, -1024, -1, 0, 1, 1024, (1 << 31)):
            counter = top + step
            if 0 <= counter < 1 << 64:
                assert rebuild(top, counter & 0xFFFFFFFF) == counter, (top, step)


def test_ids_that_begin_alike_are_told_apart() -> None:
    receiver = seal_of(B, 3)
    twins = [NodeId(A[:8] + f"{i:024x}") for i in range(SAME_SESSION_MAX + 2)]
    seals = [seal_of(twin, 5) for twin in twins]
    for seal in seals:
        take(receiver, seal.seal(b"", RAW_B, 3, known=True))
    kept = list(zip(twins, seals, strict=True))[-SAME_SESSION_MAX:]
    for twin, seal in kept:
        assert take(receiver, seal.seal_short(b"", RAW_B, 3)).sender == twin
    assert code_of(receiver, seals[0].seal_short(b"", RAW_B, 3)) in ("seal-open", "seal-replay")
    assert len(receiver.links) == SAME_SESSION_MAX


def test_links_are_bounded_and_follow_generations() -> None:
    links = Links(links_max=2)
    for index in range(5):
        links.heard(bytes([index]) * 16, 1, known=True)
    assert len(links) == 2
    assert links.senders(bytes([0]) * 4) == []
    four = bytes([4]) * 16
    links.told(four, 1, 0)
    assert links.short(four, 1, 1)
    links.told(four, 2, 2)
    assert links.senders(four[:4]) == [(four, 2)]
    assert not links.short(four, 2, 3), "a new generation knows nobody"
    links.told(four, 1, 4)
    links.heard(four, 1, known=True)
    assert not links.short(four, 2, 5), "word of a former one changes nothing"
    links.heard(four, 2, known=False)
    assert not links.short(four, 2, 5)
    links.doubt(bytes(16))
    assert not links.doubted(bytes(16)), "of a stranger there is nothing to doubt"


def test_key_hints_may_be_shared() -> None:
    keys = [bytes([0, i]) * 16 for i in range(256)]
    first = next(key for key in keys for other in keys if _alike(key, other))
    second = next(other for other in keys if _alike(first, other))
    a, b = seal_of(A, 7, keys=[second]), seal_of(B, 3, keys=[first, second])
    take(b, a.seal(b"", RAW_B, 3, known=True))
    assert take(b, a.seal_short(b"x", RAW_B, 3)).payload == b"x"


def _alike(one: bytes, other: bytes) -> bool:
    return one != other and key_id(one)[0] == key_id(other)[0]
