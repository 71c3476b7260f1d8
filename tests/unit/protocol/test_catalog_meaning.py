"""What a name means is a function of the records that are there. SPEC §6.3."""

from __future__ import annotations

import itertools

import pytest
from protocol_support import (
    WALL_MS,
    alias_record,
    feed,
    make_catalog,
    saved_records,
    spec_bytes,
    version_record,
)

from protocol import catalog as catalog_module
from protocol.function import version_of
from protocol.records import encoded_records

SPEC, OTHER, THIRD, FOURTH, FIFTH = (
    spec_bytes(text) for text in ("one", "two", "three", "four", "five")
)
VERSION = version_of(SPEC)


def test_what_a_name_means_follows_from_its_records_alone() -> None:
    """`hello` meant THIRD, was rolled back to SPEC, and now names a version that nobody has."""
    now = WALL_MS << 16
    records = [
        version_record("hello", THIRD, hlc=now, deployed=now),
        version_record("hello", SPEC, hlc=now + 2, deployed=now - 9),
        version_record("hello", FOURTH, hlc=now + 6),
        version_record("hello", FIFTH, hlc=now + 1, tombstone=True),
        alias_record("hello", version_of(OTHER), hlc=now + 5),
    ]
    restarted = make_catalog()
    restarted.load(saved_records(encoded_records(records)))
    current = restarted.lookup("hello")
    assert current is not None
    assert current.version == VERSION, "what was signed last before the alias, and lives"
    for several in itertools.permutations(records):
        catalog = make_catalog()
        for record in several:
            feed(catalog, record)
        assert catalog.lookup("hello") == current
        assert catalog.state_digest() == restarted.state_digest()


def test_a_name_that_never_meant_anything_else_waits_for_its_version() -> None:
    catalog = make_catalog()
    feed(catalog, alias_record("hello", VERSION))
    assert catalog.lookup("hello") is None
    feed(catalog, version_record("hello", OTHER, hlc=(WALL_MS << 16) + 1))
    assert catalog.lookup("hello") is None, "a later deploy, whose alias is on its way"


def test_meaning_follows_tombstones_that_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "TOMBSTONES_MAX", 1)
    now = WALL_MS << 16
    catalog = make_catalog()
    feed(catalog, version_record("hello", SPEC, hlc=now))
    feed(catalog, version_record("hello", OTHER, hlc=now, tombstone=True))
    feed(catalog, alias_record("hello", version_of(OTHER), hlc=now + 1))
    assert catalog.lookup("hello") is None
    feed(catalog, alias_record("x", None, hlc=now + 2))
    other = make_catalog()
    for entry in catalog.entries():
        feed(other, entry.record())
    assert other.state_digest() == catalog.state_digest()
    assert catalog.lookup("hello") is not None
    assert other.lookup("hello") == catalog.lookup("hello")
