"""Snapshots and modules by the functions whose code they are, and what they are like."""

from __future__ import annotations

from protocol_support import WALL_MS, init_spec_bytes, make_catalog, spec_bytes, statement_of

from edged.lookup import Lookup, code_of, functions_of
from protocol.catalog import Catalog
from protocol.function import decode_spec
from protocol.ids import FunctionName
from protocol.snapshots import SnapshotStatement

OLD, NEW = init_spec_bytes("old"), init_spec_bytes("new")
OLD_STATED, NEW_STATED = statement_of(OLD, snapshot="s1"), statement_of(NEW, snapshot="s2")


def deploy(
    catalog: Catalog, name: str, spec: bytes, stated: SnapshotStatement | None, after_ms: int = 0
) -> None:
    wall_ms = WALL_MS + after_ms
    catalog.apply(catalog.prepare_deploy(name, spec, wall_ms=wall_ms, snapshot=stated))


def test_a_snapshot_is_like_its_module_and_other_versions_snapshots() -> None:
    catalog = make_catalog()
    deploy(catalog, "f", OLD, OLD_STATED)
    deploy(catalog, "f", NEW, NEW_STATED, 1)
    lookup = Lookup(catalog)
    assert lookup.kin(NEW_STATED.snapshot) == [NEW_STATED.module, OLD_STATED.snapshot]
    assert lookup.kin(NEW_STATED.module) == [OLD_STATED.module]
    assert lookup.kin(OLD_STATED.module) == [], "no function's code now"


def test_manifests_and_functions_of_a_snapshot_are_known() -> None:
    catalog = make_catalog()
    deploy(catalog, "f", NEW, NEW_STATED)
    deploy(catalog, "g", NEW, statement_of(NEW, snapshot="s2", by="n1"))
    deploy(catalog, "plain", spec_bytes("plain"), None)
    lookup, snapshot = Lookup(catalog), NEW_STATED.snapshot
    assert lookup.manifests(snapshot) == (NEW_STATED.manifest,)
    assert lookup.manifests(NEW_STATED.module) == (decode_spec(NEW).manifest,)
    assert functions_of({snapshot}, catalog) == ("f", "g")
    assert list(code_of(catalog, FunctionName("f"))) == [NEW_STATED.module, snapshot]
    assert len(list(code_of(catalog, FunctionName("plain")))) == 1
