"""Sealed datagrams: what opens, what does not, and that refusal changes nothing. SPEC §4."""

from __future__ import annotations

import pytest
from protocol_support import CLUSTER_KEY, node_id

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.seal import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    TAG_BYTES,
    WINDOW_BITS,
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
        assert len(data) == HEADER_BYTES + size + TAG_BYTES <= DATAGRAM_BYTES_MAX
        opened = take(receiver, data)
        assert (opened.sender, opened.generation, opened.payload) == (A, 7, b"p" * size)
    with pytest.raises(LocalProtocolError):
        sender.seal(b"p" * (PAYLOAD_BYTES_MAX + 1))


def test_what_does_not_open() -> None:
    data = seal_of().seal(b"hello")
    receiver = seal_of(B)
    altered = {
        "seal-short": data[: HEADER_BYTES + TAG_BYTES - 1],
        "seal-long": data + bytes(DATAGRAM_BYTES_MAX),
        "seal-magic": b"xx" + data[2:],
        "seal-version": data[:2] + b"\x02" + data[3:],
        "seal-key": data[:3] + b"\x00\x00\x00\x00" + data[7:],
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
    receiver = seal_of(B, senders_max=2)
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
        seal_of(node, generation).seal(b"same")[HEADER_BYTES:]
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
