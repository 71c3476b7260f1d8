"""Catalog.modules: what live versions name, however records come and go. SPEC §11.2."""

from __future__ import annotations

from protocol_support import WALL_MS, make_catalog, saved_records, tell

from protocol.catalog import Catalog
from protocol.function import FunctionSpec, encode_spec, version_of
from protocol.ids import Digest, digest_of
from protocol.modules import Wanted
from protocol.records import encoded_records

ONE, TWO = digest_of(b"one"), digest_of(b"two")
MANIFEST, OTHER = digest_of(b"manifest"), digest_of(b"other")


def spec(module: Digest, manifest: Digest = MANIFEST, replicas: int = 3, arg: str = "") -> bytes:
    return encode_spec(FunctionSpec("raw", module, 100, manifest, args=(arg,), replicas=replicas))


def deploy(catalog: Catalog, name: str, encoded: bytes, after_ms: int = 0) -> None:
    catalog.apply(catalog.prepare_deploy(name, encoded, wall_ms=WALL_MS + after_ms))


def test_the_most_that_any_version_asks_for_and_every_manifest() -> None:
    catalog = make_catalog()
    deploy(catalog, "f", spec(ONE, replicas=2))
    deploy(catalog, "g", spec(ONE, OTHER, replicas=5))
    deploy(catalog, "f", spec(TWO))
    modules = catalog.modules
    assert modules.get(ONE) == Wanted((MANIFEST, OTHER), 5)
    assert modules.get(TWO) == Wanted((MANIFEST,), 3)
    assert modules.named_by(ONE).startswith("v/f/")
    assert (modules.functions(ONE), modules.functions(TWO)) == (["f", "g"], ["f"])
    assert list(modules) == [ONE, TWO]
    assert len(modules) == 2
    assert modules.take_changed() == [ONE, TWO]
    assert modules.take_changed() == []


def test_nothing_is_wanted_once_the_last_version_is_removed() -> None:
    catalog, peer = make_catalog("n0"), make_catalog("n1")
    deploy(catalog, "f", spec(ONE))
    deploy(catalog, "g", spec(ONE, replicas=4))
    tell(catalog, peer)
    catalog.apply(catalog.prepare_remove("g", wall_ms=WALL_MS + 1))
    assert catalog.modules.get(ONE) == Wanted((MANIFEST,), 3)
    catalog.apply(catalog.prepare_remove("f", wall_ms=WALL_MS + 2))
    tell(catalog, peer)
    for one in (catalog, peer):
        assert one.modules.get(ONE) is None
        assert (list(one.modules), one.modules.named_by(ONE)) == ([], "")


def test_a_rollback_is_no_news_and_what_is_forgotten_is_not_wanted() -> None:
    catalog = make_catalog()
    deploy(catalog, "f", spec(ONE))
    deploy(catalog, "f", spec(TWO), 1)
    catalog.modules.take_changed()
    version = version_of(spec(ONE))
    catalog.apply(catalog.prepare_alias("f", version, wall_ms=WALL_MS + 2))
    assert catalog.modules.take_changed() == []
    catalog.forget([f"v/f/{version}"])
    assert catalog.modules.take_changed() == [ONE]
    assert catalog.modules.get(ONE) is None


def test_loaded_records_name_what_they_named() -> None:
    catalog, again = make_catalog(), make_catalog()
    records = catalog.prepare_deploy("f", spec(ONE), wall_ms=WALL_MS)
    assert again.load(saved_records(encoded_records(records))).refused == ()
    assert again.modules.get(ONE) == Wanted((MANIFEST,), 3)
