"""Holdings: owner-versioned sets, deltas that tolerate loss, bounds. SPEC §7."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from protocol_support import node_id

from protocol import holdings as module
from protocol.errors import RemoteProtocolError
from protocol.holdings import (
    ANSWERING_FORMS,
    DELTA_CHANGES_MAX,
    MODULE_FORMS,
    READY_FORMS,
    Holdings,
)
from protocol.ids import Digest, digest_of
from protocol.messages import Form

A, B, C = node_id("n0"), node_id("n1"), node_id("n2")


def blob(number: int) -> Digest:
    return digest_of(b"%d" % number)


def pair() -> tuple[Holdings, Holdings]:
    """A's own, and B's copy of it."""
    owner, other = Holdings(A, 1), Holdings(B, 1)
    owner.show(B, 1)
    other.show(A, 1)
    return owner, other


def test_deltas_follow_the_owner() -> None:
    owner, other = pair()
    assert owner.state_digest() == other.state_digest()
    assert owner.set_local(blob(1), True)
    assert owner.set_local(blob(1), True), "no change, no version"
    assert owner.version(A) == (1, 1)
    assert owner.dirty
    assert other.merge_update(owner.delta()) == "applied"
    assert other.merge_update(owner.delta()) == "old"
    assert other.holders(blob(1)) == [A]
    owner.set_local(blob(1), True, "artifact")
    owner.set_local(blob(2), True)
    owner.set_local(blob(2), False)
    assert other.merge_update(owner.delta()) == "applied"
    assert other.held(A) == {blob(1): "artifact"}
    assert other.holders(blob(2)) == []
    assert owner.state_digest() == other.state_digest()


def test_holders_are_chosen_by_the_form_they_show() -> None:
    owner, other = pair()
    for number, form in enumerate(get_args(Form)):
        owner.set_local(blob(number), True, form)
    assert other.merge_update(owner.delta()) == "applied"
    chosen = (MODULE_FORMS, ANSWERING_FORMS, READY_FORMS)
    found = {
        form: tuple(other.holders(blob(n), forms) == [A] for forms in chosen)
        for n, form in enumerate(get_args(Form))
    }
    assert found == {
        "module": (True, False, False),
        "running": (True, True, False),
        "building": (True, False, False),
        "ready": (True, True, True),
        "artifact": (False, True, True),
    }
    assert other.form(A, blob(1)) == "running"
    assert other.form(A, blob(9)) is None
    other.hide(A)
    assert other.holders(blob(0)) == []
    assert other.form(A, blob(1)) is None


def test_a_lost_delta_is_made_up_by_the_next_a_long_gap_by_sync() -> None:
    owner, other = pair()
    for number in range(DELTA_CHANGES_MAX):
        owner.set_local(blob(number), True)
    assert other.merge_update(owner.delta()) == "applied"
    for number in range(100, 101 + DELTA_CHANGES_MAX):
        owner.set_local(blob(number), True)
    assert other.merge_update(owner.delta()) == "gap"
    full = owner.export(A, 0, 0)
    assert full is not None
    assert other.merge_set(full)
    assert not other.merge_set(full)
    assert other.held(A) == owner.held(A)
    assert owner.state_digest() == other.state_digest()


def test_sets_follow_their_owners_membership() -> None:
    owner, other = pair()
    owner.set_local(blob(1), True)
    other.merge_update(owner.delta())
    before = other.state_digest()
    other.hide(A)
    assert other.holders(blob(1)) == []
    assert other.held(A) == {}
    other.show(A, 1)
    assert other.holders(blob(1)) == [A], "kept while down"
    assert other.state_digest() == before
    other.show(A, 2)
    assert other.holders(blob(1)) == [], "a restarted node speaks anew"
    assert other.version(A) == (2, 0)
    assert other.merge_update(owner.delta()) == "old"
    other.retain({B})
    assert other.version(A) == (0, 0)
    assert other.export(A, 0, 0) is None
    assert other.merge_update(owner.delta()) == "gap"
    other.hide(C)
    other.retain({B})
    assert other.held(B) == {}


def test_a_newer_generation_is_a_gap_and_nobody_speaks_for_this_node() -> None:
    owner, other = pair()
    owner.set_local(blob(1), True)
    newer = msgspec.structs.replace(owner.delta(), generation=2)
    assert other.merge_update(newer) == "gap"
    forged = msgspec.structs.replace(owner.delta(), version=9)
    assert owner.merge_update(forged) == "old"
    full = owner.export(A, 0, 0)
    assert full is not None
    assert not owner.merge_set(msgspec.structs.replace(full, version=9))
    assert not other.merge_set(msgspec.structs.replace(full, generation=2))


def test_holdings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, other = pair()
    monkeypatch.setattr(module, "PER_NODE_MAX", 2)
    assert owner.set_local(blob(1), True)
    assert owner.set_local(blob(2), True)
    assert not owner.set_local(blob(3), True)
    monkeypatch.setattr(module, "PER_NODE_MAX", 1)
    with pytest.raises(RemoteProtocolError, match="holdings-full"):
        other.merge_update(owner.delta())
    full = owner.export(A, 0, 0)
    assert full is not None
    with pytest.raises(RemoteProtocolError, match="holdings-full"):
        other.merge_set(full)
    assert other.version(A) == (1, 0)
    monkeypatch.setattr(module, "PER_NODE_MAX", 2)
    assert other.merge_set(full)
    assert len(other.held(A)) == 2
