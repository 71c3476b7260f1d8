"""Whom a node stays connected to before it needs them, and which version a name stands for."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from edged.config import GatewaySection
from edged.errors import FunctionNotFound
from edged.forwarding import LOOKED_AT_MAX, WARM_MAX, Forwarding
from edged.interfaces import FunctionView, Peer
from edged.lookup import Lookup
from edged.telemetry import Metrics, make_log
from edged.trust import create_ca, issue_node, load_trust
from protocol.catalog import Catalog
from protocol.function import FunctionSpec
from protocol.ids import Digest, FunctionName, NodeId, VersionId, digest_of


def module(index: int) -> Digest:
    return digest_of(b"%d" % index)


def function(index: int) -> FunctionView:
    digest = module(index)
    spec = FunctionSpec(abi="raw", module=digest, module_bytes=1, manifest=digest)
    return FunctionView(FunctionName(f"f{index}"), VersionId(digest), spec)


def peer(name: str) -> Peer:
    nowhere = ("127.0.0.1", 1)
    return Peer(NodeId(name * 32), name, "local", nowhere, nowhere, "http://x", None)


def forwarding(
    directory: Path,
    *,
    modules: int,
    near: set[Digest],
    ready: dict[Digest, list[Peer]],
    section: GatewaySection,
) -> tuple[Forwarding, list[Digest]]:
    """And which modules' peers were looked up."""
    create_ca(directory / "ca")
    issue_node(directory / "ca", directory / "n", name="n", roles=("serve",))
    asked: list[Digest] = []

    def find(function: FunctionView) -> list[Peer]:
        asked.append(function.spec.module)
        return ready.get(function.spec.module, [])

    made = Forwarding(
        section,
        trust=load_trust(directory / "n"),
        ready=find,
        functions=lambda: map(function, range(modules)),
        is_near=lambda view: view.spec.module in near,
        on_answer=lambda *_: None,
        shaper=None,
        metrics=Metrics(),
        log=make_log("n", stream=io.StringIO()),
    )
    return made, asked


def test_the_nearest_ready_peer_of_each_far_function_is_kept_warm(tmp_path: Path) -> None:
    a, b, c = peer("a"), peer("b"), peer("c")
    ready = {module(0): [a, b], module(1): [b], module(2): [b, c], module(3): []}
    made, asked = forwarding(
        tmp_path, modules=4, near={module(1)}, ready=ready, section=GatewaySection()
    )
    assert made.warm() == [a, b]
    assert asked == [module(0), module(2), module(3)]


def test_warm_peers_and_the_search_for_them_are_bounded(tmp_path: Path) -> None:
    ready = {module(index): [peer("0123456789abcdef"[index])] for index in range(16)}
    section = GatewaySection()
    made, _ = forwarding(tmp_path / "1", modules=16, near=set(), ready=ready, section=section)
    assert len(made.warm()) == WARM_MAX
    made, asked = forwarding(tmp_path / "2", modules=1000, near=set(), ready={}, section=section)
    assert made.warm() == []
    assert len(asked) == LOOKED_AT_MAX


def test_who_does_not_forward_has_no_forwarder(tmp_path: Path) -> None:
    section = GatewaySection(forward=False, forwards_max=1)
    made, _ = forwarding(tmp_path, modules=0, near=set(), ready={}, section=section)
    assert made.forwarder is None
    assert made.pool.has_room(peer("a"))


def test_any_live_version_is_found_and_no_other() -> None:
    def spec(text: bytes) -> FunctionSpec:
        digest = digest_of(text)
        return FunctionSpec(abi="raw", module=digest, module_bytes=1, manifest=digest)

    old, new = VersionId("0" * 64), VersionId("1" * 64)
    specs = {old: spec(b"old"), new: spec(b"new")}
    current = SimpleNamespace(version=new, spec=specs[new], snapshot=None)
    fake = SimpleNamespace(
        lookup=lambda name: current if name == "f" else None,
        spec=lambda _, version: specs.get(version),
        snapshots=SimpleNamespace(at=lambda _: None),
    )
    lookup = Lookup(cast(Catalog, fake))
    assert lookup.current("f").version == new
    assert lookup.version("f", new).spec is specs[new]
    assert lookup.version("f", old).spec is specs[old]
    for name, version in (("f", VersionId("2" * 64)), ("g", old)):
        with pytest.raises(FunctionNotFound):
            lookup.version(name, version)
