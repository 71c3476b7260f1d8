"""What a function can run in: a name for a blob of WebAssembly, and how its bytes are had."""

from __future__ import annotations

import msgspec

from protocol.function import FunctionSpec
from protocol.ids import Digest


class Code(msgspec.Struct, frozen=True):
    """A blob that is compiled, mapped and called; to whoever makes it ready a digest like any."""

    digest: Digest
    size_bytes: int
    manifest: Digest
    """Digest of its encoded manifest: what a fetch verifies against."""


def module_code(spec: FunctionSpec) -> Code:
    """A version's module."""
    return Code(spec.module, spec.module_bytes, spec.manifest)
