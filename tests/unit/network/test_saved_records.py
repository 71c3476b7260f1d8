"""Rows on disk prove themselves to the node that wrote them, and to nobody else."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from edged.saved import MAC_BYTES, SavedRecords
from edged.trust import Trust, create_ca, issue_node, load_trust
from protocol import records as records_module
from protocol.catalog import Catalog
from protocol.function import FunctionSpec, encode_spec
from protocol.ids import digest_of
from protocol.records import encoded_records

SPEC = encode_spec(FunctionSpec("raw", digest_of(b"m"), 100, digest_of(b"manifest")))


def trust_of(folder: Path, name: str, ca: str) -> Trust:
    if not (folder / ca).exists():
        create_ca(folder / ca)
    issue_node(folder / ca, folder / f"{ca}-{name}", name=name)
    return load_trust(folder / f"{ca}-{name}")


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return trust_of(tmp_path, "a", "ca")


def catalog_of(trust: Trust) -> Catalog:
    return Catalog(trust.anchor, trust.private_key, trust.credential)


def deployed(trust: Trust) -> list[tuple[str, bytes]]:
    wall_ms = time.time_ns() // 1_000_000
    return encoded_records(catalog_of(trust).prepare_deploy("f", SPEC, wall_ms=wall_ms))


def test_own_rows_cost_no_signature_check(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    records = deployed(trust)
    rows = SavedRecords(trust).wrap(records)
    monkeypatch.setattr(records_module, "verify", None)
    saved = SavedRecords(trust).unwrap(rows)
    assert [(row.key, row.encoded) for row in saved] == records
    catalog = catalog_of(trust)
    assert catalog.load(saved) == ((), ())
    assert catalog.lookup("f") is not None


def test_altered_and_foreign_rows_prove_nothing(trust: Trust, tmp_path: Path) -> None:
    saved = SavedRecords(trust)
    rows = saved.wrap(deployed(trust))
    (key, row), (other, _) = rows
    same_key = dataclasses.replace(trust, ca_public_key=bytes(32))
    for shelf, one in (
        (SavedRecords(trust_of(tmp_path, "b", "ca")), (key, row)),
        (SavedRecords(same_key), (key, row)),
        (saved, (other, row)),
        (saved, (key, row[:-1])),
        (saved, (key, row + b"x")),
        (saved, (key, bytes(MAC_BYTES) + row[MAC_BYTES:])),
        (saved, (key, row[:3])),
        (saved, (key, b"")),
        *((saved, (key, flipped(row, at))) for at in range(0, len(row), 17)),
    ):
        (found,) = shelf.unwrap([one])
        assert not found.proven


def flipped(row: bytes, at: int) -> bytes:
    altered = bytearray(row)
    altered[at] ^= 1
    return bytes(altered)


def test_what_is_not_proven_is_verified_as_from_a_peer(trust: Trust, tmp_path: Path) -> None:
    """A hostile disk changes nothing that signatures protect; another node's disk still loads."""
    foreign = trust_of(tmp_path, "c", "ca2")
    rows = SavedRecords(trust).wrap(deployed(trust)) + SavedRecords(foreign).wrap(
        [(f"{key}x", value) for key, value in deployed(foreign)]
    )
    other = trust_of(tmp_path, "b", "ca")
    saved = SavedRecords(other).unwrap(rows)
    assert not any(row.proven for row in saved)
    loaded = catalog_of(other).load(saved)
    assert len(loaded.refused) == 2
    forged = SavedRecords(trust).unwrap([(key, flipped(row, -1)) for key, row in rows[:2]])
    refused = catalog_of(trust).load(forged).refused
    assert [error.code for _, error in refused] == ["signature"] * 2
