"""The modules that live versions name: what has to be held, how often, and by which manifests.

Kept by Catalog as records come and go; everyone else reads, or takes the news of what changed.
A blob that nothing names here is nobody's duty to keep. SPEC §11.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .function import FunctionSpec
from .ids import Digest


class Wanted(NamedTuple):
    """Of one module, by all versions that name it."""

    manifests: tuple[Digest, ...]
    """Distinct; one, but for a module that nodes of different zstd levels were given."""
    replicas: int
    """The most that any of them asks for."""


class _Naming(NamedTuple):
    module: Digest
    manifest: Digest
    replicas: int


class Modules:
    def __init__(self) -> None:
        self._named: dict[str, _Naming] = {}
        self._keys: dict[Digest, dict[str, None]] = {}
        self._changed: dict[Digest, None] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Digest]:
        yield from self._keys

    def get(self, module: Digest) -> Wanted | None:
        """None: no live version names it."""
        keys = self._keys.get(module)
        if not keys:
            return None
        names = [self._named[key] for key in keys]
        manifests = tuple(dict.fromkeys(name.manifest for name in names))
        return Wanted(manifests, max(name.replicas for name in names))

    def keys(self, module: Digest) -> tuple[str, ...]:
        """Of the version records that name it."""
        return tuple(self._keys.get(module, ()))

    def take_changed(self) -> list[Digest]:
        """Those for which `get` may tell something new since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    # ------------------------------------------------------------ the catalog's part
    def put(self, key: str, spec: FunctionSpec) -> None:
        naming = _Naming(spec.module, spec.manifest, spec.replicas)
        if self._named.get(key) == naming:
            return
        self._named[key] = naming
        self._keys.setdefault(spec.module, {})[key] = None
        self._changed[spec.module] = None

    def drop(self, key: str) -> None:
        naming = self._named.pop(key, None)
        if naming is None:
            return
        keys = self._keys[naming.module]
        del keys[key]
        if not keys:
            del self._keys[naming.module]
        self._changed[naming.module] = None
