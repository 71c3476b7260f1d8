"""Snapshot statements in version records: what they must say, how long they last, who finds them.
SPEC §14."""

from __future__ import annotations

import msgspec
import pytest
from protocol_support import (
    INIT,
    WALL_MS,
    alias_record,
    anchor,
    feed,
    init_spec_bytes,
    make_catalog,
    saved_records,
    spec_bytes,
    statement_of,
    tell,
    version_record,
)

from protocol.catalog import Catalog
from protocol.errors import RemoteProtocolError
from protocol.function import InitSpec, init_digest, version_of
from protocol.ids import digest_of
from protocol.records import encoded_records, prove_records, verify_record
from protocol.snapshots import SnapshotStatement

SPEC = init_spec_bytes("one")
OTHER = init_spec_bytes("two")
STATED = statement_of(SPEC)
VERSION = version_of(SPEC)
KEY = f"v/f/{VERSION}"


def deploy(
    catalog: Catalog, spec: bytes, stated: SnapshotStatement | None, *, after_ms: int = 0
) -> int:
    """How many records that took."""
    wall_ms = WALL_MS + after_ms
    return len(catalog.apply(catalog.prepare_deploy("f", spec, wall_ms=wall_ms, snapshot=stated)))


def test_what_a_record_says_of_a_snapshot_is_found_by_everyone() -> None:
    one, two = make_catalog("n0"), make_catalog("n1", roles=("serve",))
    assert deploy(one, SPEC, STATED) == 2
    tell(one, two)
    for catalog in (one, two):
        current = catalog.lookup("f")
        assert current is not None
        assert current.snapshot == catalog.versions("f")[0].snapshot == STATED
        assert list(catalog.snapshots) == [STATED.snapshot]
        assert catalog.snapshots.get(STATED.snapshot) == (STATED,)
        assert catalog.snapshots.functions(STATED.snapshot) == ["f"]
        assert catalog.snapshots.keys(STATED.snapshot) == (KEY,)
        assert catalog.snapshots.of(STATED.module, init_digest(INIT)) == (STATED,)
        assert catalog.snapshots.of(STATED.module, init_digest(InitSpec())) == ()


def test_it_is_kept_by_rollback_and_from_disk_and_goes_with_its_version() -> None:
    catalog, peer = make_catalog("n0"), make_catalog("n1")
    deploy(catalog, SPEC, STATED)
    deploy(catalog, OTHER, None, after_ms=1)
    tell(catalog, peer, WALL_MS + 1)
    assert len(catalog.snapshots) == 1
    records = peer.prepare_alias("f", VERSION, wall_ms=WALL_MS + 2)
    peer.apply(records)
    tell(peer, catalog, WALL_MS + 2)
    current = catalog.lookup("f")
    assert current is not None
    assert (current.version, current.snapshot) == (VERSION, STATED)
    again = make_catalog("n2")
    rows = [(entry.key, entry.encoded) for entry in catalog.entries()]
    assert again.load(saved_records(rows)) == ((), ())
    assert again.lookup("f") == current
    catalog.apply(catalog.prepare_remove("f", wall_ms=WALL_MS + 3))
    assert STATED.snapshot not in catalog.snapshots
    assert catalog.snapshots.get(STATED.snapshot) == ()


def test_a_deploy_that_changes_only_the_snapshot_is_one() -> None:
    """The version stays; a second measuring of the same snapshot is no news."""
    catalog = make_catalog()
    assert deploy(catalog, SPEC, None) == 2
    assert deploy(catalog, SPEC, None, after_ms=1) == 0
    assert deploy(catalog, SPEC, STATED, after_ms=2) == 2
    measured = msgspec.structs.replace(STATED.facts, init_s=9.0)
    assert measured != STATED.facts
    assert deploy(catalog, SPEC, statement_of(SPEC, by="n3"), after_ms=3) == 0
    assert deploy(catalog, SPEC, None, after_ms=4) == 2
    assert [row.snapshot for row in catalog.versions("f")] == [None]
    assert len(catalog.snapshots) == 0


def test_two_makers_who_disagree_are_both_known() -> None:
    catalog = make_catalog()
    lie = statement_of(OTHER, by="n1", snapshot="after init")
    feed(catalog, version_record("f", SPEC, snapshot=STATED))
    feed(catalog, version_record("g", OTHER, snapshot=lie))
    feed(catalog, alias_record("f", VERSION))
    assert catalog.snapshots.get(STATED.snapshot) == (STATED, lie)
    assert catalog.snapshots.functions(STATED.snapshot) == ["f", "g"]
    feed(catalog, version_record("f", SPEC, hlc=(WALL_MS << 16) + 1))
    assert catalog.snapshots.get(STATED.snapshot) == (lie,)


@pytest.mark.parametrize(
    ("spec", "stated", "code"),
    [
        (spec_bytes("one"), STATED, "snapshot"),
        (OTHER, STATED, "snapshot"),
        (init_spec_bytes("one", InitSpec()), STATED, "snapshot"),
        (SPEC, msgspec.structs.replace(STATED, snapshot=digest_of(b"x")), "signature"),
        (SPEC, msgspec.structs.replace(STATED, signature=b""), "signature"),
        (SPEC, statement_of(SPEC, roles=("serve", "control")), "credential-role"),
        (SPEC, statement_of(SPEC, not_after_s=WALL_MS // 1000 - 1), "credential-expired"),
    ],
)
def test_a_wrong_statement_is_neither_signed_nor_taken(
    spec: bytes, stated: SnapshotStatement, code: str
) -> None:
    catalog = make_catalog()
    with pytest.raises(RemoteProtocolError) as caught:
        deploy(catalog, spec, stated)
    assert caught.value.code == code
    record = version_record("f", spec, snapshot=stated)
    with pytest.raises(RemoteProtocolError) as caught:
        verify_record(record, anchor(), wall_ms=WALL_MS)
    assert caught.value.code == code
    encoded = encoded_records([record])[0][1]
    proofs = prove_records(anchor().ca_public_key, [(encoded, record)])
    assert (encoded in proofs.held) == (code == "snapshot")
    assert len(catalog) == 0
