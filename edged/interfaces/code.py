"""What a function can run in: a name for a blob of WebAssembly, and how its bytes are had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from protocol.function import FunctionSpec
from protocol.ids import Digest

from .gateway import FunctionView

if TYPE_CHECKING:
    # It brings cryptography along, which commands have no use for.
    from protocol.snapshots import SnapshotStatement

Way = Literal[
    "artifact", "module", "snapshot-artifact", "snapshot-delta", "snapshot", "snapshot-here"
]
"""How code is had: protocol.costs.PlanForm without forwarding."""


class Code(msgspec.Struct, frozen=True):
    """A blob that is compiled, mapped and called; to whoever makes it ready a digest like any."""

    digest: Digest
    size_bytes: int
    manifest: Digest
    """Digest of its encoded manifest: what a fetch verifies against."""
    stated: SnapshotStatement | None = None
    """Of a snapshot: what it is said to be."""
    spec: FunctionSpec | None = None
    """Of a snapshot: of a version that it serves, whose module's it is."""


def module_code(spec: FunctionSpec) -> Code:
    """A version's module."""
    return Code(spec.module, spec.module_bytes, spec.manifest)


def snapshot_code(function: FunctionView) -> Code | None:
    """None: it has none."""
    stated = function.snapshot
    if stated is None or function.spec.init is None:
        return None
    return Code(stated.snapshot, stated.size_bytes, stated.manifest, stated, function.spec)
