"""Clock, records and catalog: who may say what, and which word wins. SPEC §6."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from protocol_support import (
    NOT_AFTER_S,
    WALL_MS,
    alias_record,
    anchor,
    credential_of,
    feed,
    key_of,
    make_catalog,
    saved_records,
    spec_bytes,
    tell,
    version_record,
)

from protocol import catalog as catalog_module
from protocol.authoring import VERSIONS_KEPT
from protocol.buckets import BUCKETS, GROUPS, place_of_group, unpack_digests
from protocol.catalog import Catalog
from protocol.clock import SKEW_MS_MAX, HybridClock, hlc_of, hlc_wall_ms
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.function import version_of
from protocol.ids import VersionId
from protocol.records import (
    RECORD_BYTES_MAX,
    Record,
    decode_record,
    encode_record,
    encode_version,
    encoded_records,
    record_key,
    sign_record,
    verify_record,
)

SPEC = spec_bytes("one")
VERSION = version_of(SPEC)
OTHER = spec_bytes("two")


def deploy(catalog: Catalog, name: str, spec: bytes, *, wall_ms: int = WALL_MS) -> list[Record]:
    records = catalog.prepare_deploy(name, spec, wall_ms=wall_ms)
    catalog.apply(records)
    return records


def roll_back(catalog: Catalog, name: str, spec: bytes, *, wall_ms: int) -> list[Record]:
    records = catalog.prepare_alias(name, version_of(spec), wall_ms=wall_ms)
    catalog.apply(records)
    return records


def remove(catalog: Catalog, name: str, *, wall_ms: int = WALL_MS) -> list[Record]:
    records = catalog.prepare_remove(name, wall_ms=wall_ms)
    catalog.apply(records)
    return records


def exchange(*catalogs: Catalog, wall_ms: int = WALL_MS) -> None:
    """Each hears all that the others know."""
    for one in catalogs:
        for other in catalogs:
            tell(one, other, wall_ms)


def history(catalog: Catalog, name: str) -> list[tuple[VersionId, bool]]:
    return [(row.version, row.current) for row in catalog.versions(name)]


def code_of(record: Record, *, wall_ms: int | None = WALL_MS) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        verify_record(record, anchor(), wall_ms=wall_ms)
    return caught.value.code


def test_the_clock_never_goes_back() -> None:
    clock = HybridClock()
    first = clock.tick(1000)
    assert hlc_wall_ms(first) == 1000
    assert clock.tick(1000) == first + 1
    assert clock.tick(500) == first + 2
    clock.observe(hlc_of(2000, 0xFFFF))
    assert clock.tick(1500) == hlc_of(2001)
    clock.observe(1)
    assert clock.tick(1500) == hlc_of(2001) + 1


def test_a_record_says_what_it_signs() -> None:
    record = version_record("hello", SPEC)
    verified = verify_record(decode_record(encode_record(record)), anchor(), wall_ms=WALL_MS)
    assert verified.key == f"v/hello/{VERSION}" == record_key(record)
    assert verified.spec is not None
    assert verified.target is None
    alias = verify_record(alias_record("hello", VERSION), anchor(), wall_ms=WALL_MS)
    assert (alias.key, alias.target) == ("a/hello", VERSION)
    assert encoded_records([record]) == [(verified.key, verified.encoded)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "other"}, "signature"),
        ({"name": "Bad"}, "function-name"),
        ({"hlc": (WALL_MS << 16) + 1}, "signature"),
        ({"value": OTHER}, "record"),
        ({"value": encode_version(OTHER, 0)}, "record"),
        ({"value": encode_version(SPEC, (WALL_MS << 16) + 1)}, "record"),
        ({"value": encode_version(SPEC, 1)}, "signature"),
        ({"value": b""}, "signature"),
        ({"version": "x"}, "version"),
        ({"signature": bytes(64)}, "signature"),
        ({"credential": credential_of("n1")}, "signature"),
        ({"kind": "alias"}, "record"),
        ({"kind": "alias", "version": ""}, "record"),
        ({"kind": "alias", "version": "", "value": b"\x91\xa1x"}, "version"),
        ({"hlc": (WALL_MS + SKEW_MS_MAX + 1) << 16}, "record-future"),
        ({"hlc": (NOT_AFTER_S * 1000 + 1000) << 16}, "record-future"),
    ],
)
def test_altered_records_are_refused(change: dict[str, object], code: str) -> None:
    assert code_of(msgspec.structs.replace(version_record("hello", SPEC), **change)) == code


def test_only_control_identities_may_speak() -> None:
    record = sign_record(
        key_of("n5"),
        credential_of("n5", roles=("serve", "build")),
        kind="alias",
        name="hello",  # type: ignore[arg-type]
        version="",
        hlc=WALL_MS << 16,
        value=b"",
    )
    assert code_of(record) == "credential-role"
    serve = make_catalog("n5", roles=("serve",))
    with pytest.raises(RemoteProtocolError, match="credential-role"):
        serve.prepare_deploy("hello", SPEC, wall_ms=WALL_MS)


def test_a_credential_is_judged_at_the_records_time() -> None:
    def signed(hlc_s: int) -> Record:
        return sign_record(
            key_of("n5"),
            credential_of("n5", not_after_s=1000),
            kind="alias",
            name="hello",  # type: ignore[arg-type]
            version="",
            hlc=(hlc_s * 1000) << 16,
            value=b"",
        )

    assert verify_record(signed(999), anchor(), wall_ms=WALL_MS).key == "a/hello"
    assert code_of(signed(1001)) == "credential-expired"


def test_malformed_records_are_refused() -> None:
    good = encode_record(version_record("hello", SPEC))
    for data in (b"", b"\xc1", good[:-1], good + b"x", b"x" * (RECORD_BYTES_MAX + 1)):
        with pytest.raises(RemoteProtocolError, match="record"):
            decode_record(data)


def test_deploy_look_up_roll_back_remove() -> None:
    catalog = make_catalog()
    assert catalog.lookup("hello") is None
    assert catalog.versions("hello") == ()
    assert catalog.prepare_remove("hello", wall_ms=WALL_MS) == []
    first = deploy(catalog, "hello", SPEC)
    assert [record.kind for record in first] == ["version", "alias"]
    assert deploy(catalog, "hello", SPEC) == [], "nothing new to say"
    deploy(catalog, "hello", OTHER, wall_ms=WALL_MS + 5)
    current = catalog.lookup("hello")
    assert current is not None
    assert current.version == version_of(OTHER)
    rows = catalog.versions("hello")
    assert [(row.version, row.current, row.signer_name) for row in rows] == [
        (version_of(OTHER), True, "n0"),
        (VERSION, False, "n0"),
    ]
    assert catalog.spec("hello", VERSION) == rows[1].spec
    assert catalog.spec("hello", "0" * 64) is catalog.spec("nobody", VERSION) is None
    catalog.apply(catalog.prepare_alias("hello", VERSION, wall_ms=WALL_MS + 6))
    assert [name for name, _ in catalog.functions()] == ["hello"]
    assert catalog.functions()[0][1].version == VERSION
    removal = catalog.prepare_remove("hello", wall_ms=WALL_MS + 7)
    assert len(removal) == 3
    assert all(record.tombstone for record in removal)
    catalog.apply(removal)
    assert catalog.lookup("hello") is None
    assert catalog.functions() == catalog.versions("hello") == ()
    assert catalog.state_digest() != 0, "who knows of a removal differs from who does not"
    assert catalog.prepare_remove("hello", wall_ms=WALL_MS + 8) == []
    deploy(catalog, "hello", SPEC, wall_ms=WALL_MS + 9)
    assert catalog.lookup("hello") is not None, "a removed version may come back"


def test_preparing_changes_nothing() -> None:
    catalog = make_catalog()
    catalog.prepare_deploy("hello", SPEC, wall_ms=WALL_MS)
    assert len(catalog) == catalog.state_digest() == 0
    with pytest.raises(RemoteProtocolError, match="function-name"):
        catalog.prepare_deploy("No", SPEC, wall_ms=WALL_MS)
    with pytest.raises(RemoteProtocolError, match="spec"):
        catalog.prepare_deploy("no", b"junk", wall_ms=WALL_MS)


def test_the_later_word_wins_in_any_order() -> None:
    early = alias_record("hello", VERSION, hlc=WALL_MS << 16)
    late = alias_record("hello", version_of(OTHER), hlc=(WALL_MS << 16) + 1, by="n1")
    one, two = make_catalog(), make_catalog()
    for record in (early, late, version_record("hello", SPEC), version_record("hello", OTHER)):
        assert feed(one, record)
    for record in (version_record("hello", OTHER), late, version_record("hello", SPEC)):
        assert feed(two, record)
    assert not feed(two, early)
    assert one.lookup("hello") == two.lookup("hello")
    assert one.state_digest() == two.state_digest() != 0


def test_a_function_does_not_vanish_while_its_new_version_is_on_its_way() -> None:
    catalog = make_catalog()
    deploy(catalog, "hello", SPEC)
    later = (WALL_MS + 1) << 16
    feed(catalog, alias_record("hello", version_of(OTHER), hlc=later))
    current = catalog.lookup("hello")
    assert current is not None
    assert current.version == VERSION
    feed(catalog, version_record("hello", OTHER, hlc=later))
    assert catalog.lookup("hello").version == version_of(OTHER)  # type: ignore[union-attr]


def test_an_alias_of_a_removed_version_means_nothing() -> None:
    catalog = make_catalog()
    deploy(catalog, "hello", SPEC)
    later = (WALL_MS + 1) << 16
    feed(catalog, version_record("hello", SPEC, hlc=later, tombstone=True))
    assert catalog.lookup("hello") is None
    assert catalog.versions("hello") == ()
    deploy(catalog, "hello", OTHER, wall_ms=WALL_MS + 2)
    feed(catalog, version_record("hello", SPEC, hlc=later + 9, tombstone=True))
    feed(catalog, alias_record("hello", VERSION, hlc=(WALL_MS + 3) << 16))
    assert catalog.lookup("hello") is None


def test_known_records_cost_no_signature_check() -> None:
    catalog = make_catalog()
    feed(catalog, version_record("hello", SPEC))
    forged = msgspec.structs.replace(version_record("hello", SPEC), signature=bytes(64))
    assert catalog.check(encode_record(forged), wall_ms=WALL_MS) is None
    newer = msgspec.structs.replace(forged, hlc=forged.hlc + 1)
    with pytest.raises(RemoteProtocolError, match="signature"):
        catalog.check(encode_record(newer), wall_ms=WALL_MS)
    assert catalog.hlc(record_key(forged)) == forged.hlc
    assert catalog.hlc("a/hello") == -1
    assert catalog.encoded("a/hello") is None
    assert catalog.encoded(record_key(forged)) == encode_record(version_record("hello", SPEC))


def test_loading_verifies_each_and_stops_at_none() -> None:
    source = make_catalog()
    records = deploy(source, "hello", SPEC)
    stored = encoded_records(records)
    bad = [
        ("v/x/y", stored[0][1]),
        ("a/hello", b"junk"),
        ("a/x", stored[1][1]),
        ("a/hello", encode_record(msgspec.structs.replace(records[1], signature=bytes(64)))),
    ]
    catalog = make_catalog("n1")
    # A node whose clock starts in 1970 still knows what it knew, and says nothing yet.
    loaded = catalog.load(saved_records([*bad, *stored]))
    assert [(key, error.code) for key, error in loaded.refused] == [
        ("v/x/y", "record"),
        ("a/hello", "record"),
        ("a/x", "record"),
        ("a/hello", "signature"),
    ]
    assert loaded.drop == ("v/x/y", "a/hello", "a/x"), "another trust directory may cure the last"
    assert catalog.lookup("hello") is not None
    with pytest.raises(RemoteProtocolError, match="record-future"):
        catalog.prepare_deploy("hello", OTHER, wall_ms=0)
    later = catalog.prepare_deploy("hello", OTHER, wall_ms=WALL_MS)
    assert later[0].hlc > records[1].hlc, "its next word still wins"


def test_tombstones_on_disk_take_no_room_of_live_records(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_catalog()
    stored: list[tuple[str, bytes]] = []
    for name in ("gone", "gone-too"):
        deploy(source, name, OTHER)
        stored += encoded_records(remove(source, name))
    live = encoded_records(deploy(source, "hello", SPEC))
    monkeypatch.setattr(catalog_module, "RECORDS_MAX", 2)
    monkeypatch.setattr(catalog_module, "NAMES_MAX", 1)
    monkeypatch.setattr(catalog_module, "TOMBSTONES_MAX", 2)
    catalog = make_catalog("n1")
    loaded = catalog.load(saved_records([*stored, *live]))
    assert loaded.refused == ()
    assert loaded.drop == tuple(key for key, _ in stored[:2])
    assert catalog.lookup("hello") is not None
    assert len(catalog) == 4
    assert catalog.take_given_up() == [], "told once"


def test_a_clock_that_was_ahead_signs_nothing_that_peers_refuse() -> None:
    ahead, peer = make_catalog(), make_catalog("n1")
    wrong_ms = WALL_MS + 2 * SKEW_MS_MAX
    deploy(ahead, "hello", SPEC, wall_ms=wrong_ms)
    for prepare in (
        lambda: ahead.prepare_deploy("hello", OTHER, wall_ms=WALL_MS),
        lambda: ahead.prepare_remove("hello", wall_ms=WALL_MS),
    ):
        with pytest.raises(RemoteProtocolError, match="record-future"):
            prepare()
    in_time_ms = wrong_ms - SKEW_MS_MAX + 1
    for record in deploy(ahead, "hello", OTHER, wall_ms=in_time_ms):
        assert feed(peer, record, wall_ms=in_time_ms)


def test_the_catalog_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = make_catalog()
    deploy(catalog, "hello", SPEC)
    monkeypatch.setattr(catalog_module, "RECORDS_MAX", 2)
    with pytest.raises(RemoteProtocolError, match="catalog-full"):
        catalog.prepare_deploy("hello", OTHER, wall_ms=WALL_MS)
    with pytest.raises(RemoteProtocolError, match="catalog-full"):
        feed(catalog, version_record("hello", OTHER))
    again = alias_record("hello", version_of(OTHER), hlc=(WALL_MS + 1) << 16)
    assert feed(catalog, again), "known keys may move"
    monkeypatch.setattr(catalog_module, "RECORDS_MAX", 99)
    monkeypatch.setattr(catalog_module, "NAMES_MAX", 1)
    with pytest.raises(RemoteProtocolError, match="names"):
        catalog.prepare_deploy("more", SPEC, wall_ms=WALL_MS)
    monkeypatch.setattr(catalog_module, "BYTES_MAX", 10)
    with pytest.raises(RemoteProtocolError, match="bytes"):
        catalog.prepare_deploy("hello", OTHER, wall_ms=WALL_MS)


def test_a_removal_always_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, other = make_catalog(), make_catalog("n1")
    deploy(catalog, "hello", SPEC)
    deploy(other, "else", OTHER)
    for bound in ("RECORDS_MAX", "NAMES_MAX", "BYTES_MAX"):
        monkeypatch.setattr(catalog_module, bound, 1)
    for record in remove(other, "else", wall_ms=WALL_MS + 1):
        assert feed(catalog, record), "of what is not known here as well"
    assert len(remove(catalog, "hello")) == 2
    assert catalog.lookup("hello") is None


def test_what_replaces_a_record_takes_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = make_catalog()
    deploy(catalog, "hello", SPEC)
    deploy(catalog, "hello", OTHER, wall_ms=WALL_MS + 1)
    size_bytes = sum(len(entry.encoded) for entry in catalog.entries())
    monkeypatch.setattr(catalog_module, "BYTES_MAX", size_bytes)
    again = version_record("hello", SPEC, hlc=(WALL_MS + 2) << 16)
    assert feed(catalog, again)
    assert len(roll_back(catalog, "hello", SPEC, wall_ms=WALL_MS + 3)) == 2
    remove(catalog, "hello", wall_ms=WALL_MS + 4)
    assert deploy(catalog, "hello", SPEC, wall_ms=WALL_MS + 5), "tombstones take none of it"


def test_tombstones_are_bounded_by_giving_up_the_earliest_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog_module, "TOMBSTONES_MAX", 3)
    catalog = make_catalog()
    for name in ("a", "b"):
        deploy(catalog, name, SPEC)
        remove(catalog, name)
    assert len(catalog) == 3
    assert catalog.take_given_up() == [f"v/a/{VERSION}"]
    assert catalog.take_given_up() == []
    assert catalog.encoded("a/a") is not None
    other = make_catalog("n1")
    for entry in reversed(list(catalog.entries())):
        verified = other.check(entry.encoded, wall_ms=WALL_MS)
        assert verified is not None
        assert other.merge(verified)
    (first, *_) = sorted(catalog.entries(), key=lambda entry: entry.hlc)
    earlier = alias_record("c", None, hlc=first.hlc - 1)
    assert not feed(other, earlier), "it would be given up at once, and taught again for ever"
    assert feed(other, alias_record("c", None, hlc=first.hlc + 1))
    assert other.take_given_up() == [first.key]


def test_a_function_keeps_its_latest_versions() -> None:
    catalog = make_catalog()
    for number in range(VERSIONS_KEPT):
        deploy(catalog, "hello", spec_bytes(str(number)), wall_ms=WALL_MS + number)
    roll_back(catalog, "hello", spec_bytes("1"), wall_ms=WALL_MS + 100)
    for number in range(2):
        deploy(catalog, "hello", spec_bytes(f"new {number}"), wall_ms=WALL_MS + 101 + number)
    rows = catalog.versions("hello")
    assert len(rows) == VERSIONS_KEPT
    dropped = {version_of(spec_bytes(text)) for text in ("0", "1")}
    assert not dropped & {row.version for row in rows}, "a rollback makes nothing younger"
    assert rows[0].current
    third = version_of(spec_bytes("2"))
    deploy(catalog, "hello", spec_bytes("2"), wall_ms=WALL_MS + 200)
    assert len(catalog.versions("hello")) == VERSIONS_KEPT, "known before: nothing is trimmed"
    assert history(catalog, "hello")[0] == (third, True), "deployed again is deployed last"


def test_the_current_version_is_not_trimmed() -> None:
    catalog = make_catalog()
    for number in range(VERSIONS_KEPT):
        deploy(catalog, "hello", spec_bytes(str(number)), wall_ms=WALL_MS + number)
    roll_back(catalog, "hello", spec_bytes("0"), wall_ms=WALL_MS + 100)
    deploy(catalog, "hello", spec_bytes("new"), wall_ms=WALL_MS + 101)
    assert catalog.spec("hello", version_of(spec_bytes("0"))) is not None
    assert catalog.spec("hello", version_of(spec_bytes("1"))) is None


def test_a_rollback_goes_back_in_history_and_stays_there() -> None:
    catalog = make_catalog()
    one, two, three = (version_of(spec) for spec in (SPEC, OTHER, spec_bytes("three")))
    for number, spec in enumerate((SPEC, OTHER, spec_bytes("three"))):
        deploy(catalog, "hello", spec, wall_ms=WALL_MS + number)
    deployed_ms = [row.deployed_ms for row in catalog.versions("hello")]
    assert deployed_ms == [WALL_MS + 2, WALL_MS + 1, WALL_MS]
    roll_back(catalog, "hello", OTHER, wall_ms=WALL_MS + 10)
    assert history(catalog, "hello") == [(three, False), (two, True), (one, False)]
    roll_back(catalog, "hello", SPEC, wall_ms=WALL_MS + 11)
    assert history(catalog, "hello") == [(three, False), (two, False), (one, True)]
    assert [row.deployed_ms for row in catalog.versions("hello")] == deployed_ms
    deploy(catalog, "hello", OTHER, wall_ms=WALL_MS + 12)
    assert history(catalog, "hello") == [(two, True), (three, False), (one, False)]
    for records in (
        roll_back(catalog, "hello", OTHER, wall_ms=WALL_MS + 13),
        deploy(catalog, "hello", OTHER, wall_ms=WALL_MS + 13),
    ):
        assert records == [], "current already"


@pytest.mark.parametrize("act", [deploy, roll_back])
def test_an_acknowledged_change_survives_a_removal_it_did_not_know_of(
    act: Callable[..., list[Record]],
) -> None:
    one, two = make_catalog(), make_catalog("n1")
    deploy(one, "f", SPEC)
    deploy(one, "f", OTHER, wall_ms=WALL_MS + 1)
    exchange(one, two)
    remove(one, "f", wall_ms=WALL_MS + 1000)
    assert act(two, "f", SPEC, wall_ms=WALL_MS + 2000)
    exchange(one, two)
    for catalog in (one, two):
        assert catalog.lookup("f").version == VERSION  # type: ignore[union-attr]
        assert history(catalog, "f") == [(VERSION, True)]


def test_a_removal_that_came_later_is_whole() -> None:
    one, two = make_catalog(), make_catalog("n1")
    deploy(one, "f", SPEC)
    deploy(one, "f", OTHER, wall_ms=WALL_MS + 1)
    exchange(one, two)
    roll_back(two, "f", SPEC, wall_ms=WALL_MS + 1000)
    remove(one, "f", wall_ms=WALL_MS + 2000)
    exchange(one, two)
    assert one.functions() == two.functions() == ()


def test_an_acknowledged_rollback_survives_trimming_elsewhere() -> None:
    one, two = make_catalog(), make_catalog("n1")
    for number in range(VERSIONS_KEPT):
        deploy(one, "f", spec_bytes(str(number)), wall_ms=WALL_MS + number)
    exchange(one, two)
    deploy(one, "f", spec_bytes("new"), wall_ms=WALL_MS + 1000)
    roll_back(two, "f", spec_bytes("0"), wall_ms=WALL_MS + 2000)
    exchange(one, two)
    for catalog in (one, two):
        assert catalog.lookup("f").version == version_of(spec_bytes("0"))  # type: ignore[union-attr]


def test_a_deploy_of_what_the_name_still_means_is_no_repetition() -> None:
    """The alias names a version on its way: the name's former meaning has to be said again."""
    catalog = make_catalog()
    deploy(catalog, "f", SPEC)
    feed(catalog, alias_record("f", version_of(OTHER), hlc=(WALL_MS + 1) << 16))
    assert len(deploy(catalog, "f", SPEC, wall_ms=WALL_MS + 2)) == 2
    feed(catalog, version_record("f", OTHER, hlc=(WALL_MS + 1) << 16))
    assert catalog.lookup("f").version == VERSION  # type: ignore[union-attr]


def test_whatever_lives_can_be_removed() -> None:
    catalog = make_catalog()
    feed(catalog, alias_record("f", VERSION))
    assert catalog.lookup("f") is None, "its version is not here"
    assert [record_key(record) for record in remove(catalog, "f")] == ["a/f"]
    feed(catalog, version_record("f", SPEC, hlc=(WALL_MS + 1) << 16))
    assert catalog.versions("f") == ()
    said = [record_key(record) for record in remove(catalog, "f")]
    assert said == [f"v/f/{VERSION}", "a/f"], "the dead alias too, newer than the version"
    assert remove(catalog, "f") == []


def test_only_a_version_that_is_here_can_be_made_current() -> None:
    catalog = make_catalog()
    deploy(catalog, "f", SPEC)
    with pytest.raises(LocalProtocolError):
        catalog.prepare_alias("f", version_of(OTHER), wall_ms=WALL_MS)


def test_buckets_digest_all_records_and_list_them() -> None:
    one, two = make_catalog(), make_catalog("n1")
    deploy(one, "both", SPEC)
    deploy(one, "gone", OTHER)
    remove(one, "gone", wall_ms=WALL_MS + 1)
    assert tell(one, two) == 4
    assert one.digests.groups() == two.digests.groups() != make_catalog().digests.groups()
    places = [place_of_group(group) for group in range(GROUPS)]
    listed = [entry for place in places for entry in one.at(place)]
    assert sorted(entry.key for entry in listed) == sorted(entry.key for entry in one.entries())
    assert sum(one.count_at(place) for place in places) == len(one) == 4
    assert {entry.key for bucket in range(BUCKETS) for entry in one.at(bucket)} == {
        entry.key for entry in listed
    }
    assert all(one.by_hash(entry.hashed) is entry for entry in listed)
    assert one.by_hash(12345) is None
    deploy(two, "mine", OTHER, wall_ms=WALL_MS + 2)
    differing = [
        group
        for group, (a, b) in enumerate(
            zip(
                unpack_digests(one.digests.groups()),
                unpack_digests(two.digests.groups()),
                strict=True,
            )
        )
        if a != b
    ]
    assert 1 <= len(differing) <= 2
    known = list(two._entries)
    assert two.forget([*known, "a/nobody"]) == known
    assert two.functions() == ()
    assert two.digests.groups() == bytes(512)
    assert (two.state_digest(), two._bytes, two._names, two._buckets) == (0, 0, {}, {})


def test_equal_times_are_settled_by_signer() -> None:
    one, two = make_catalog(), make_catalog()
    first = alias_record("hello", VERSION, by="n0")
    second = alias_record("hello", VersionId(version_of(OTHER)), by="n1")
    for catalog, order in ((one, (first, second)), (two, (second, first))):
        for record in order:
            feed(catalog, record)
    assert one.state_digest() == two.state_digest()
