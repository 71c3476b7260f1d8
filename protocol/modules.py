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
    """Small, as there is one for nearly each version."""

    module: Digest
    manifest: bytes
    replicas: int


class Modules:
    def __init__(self) -> None:
        self._named: dict[str, _Naming] = {}
        """By key of a live version record."""
        self._counts: dict[_Naming, int] = {}
        self._namings: dict[Digest, tuple[_Naming, ...]] = {}
        """Distinct ones: few, however many functions share a module."""
        self._changed: dict[Digest, None] = {}

    def __len__(self) -> int:
        return len(self._namings)

    def __iter__(self) -> Iterator[Digest]:
        yield from self._namings

    def get(self, module: Digest) -> Wanted | None:
        """None: no live version names it."""
        namings = self._namings.get(module)
        if namings is None:
            return None
        manifests = dict.fromkeys(Digest(one.manifest.hex()) for one in namings)
        return Wanted(tuple(manifests), max(one.replicas for one in namings))

    def named(self) -> Iterator[tuple[str, Digest]]:
        """Key of each live version record, with the module it names."""
        for key, one in self._named.items():
            yield key, one.module

    def named_by(self, module: Digest) -> str:
        """Key of a version record that names it, for people; "" if none does. Looks at all."""
        return next((key for key, one in self._named.items() if one.module == module), "")

    def functions(self, module: Digest) -> list[str]:
        """Names of the functions with a live version that names it, in order. Looks at all."""
        keys = (key for key, one in self._named.items() if one.module == module)
        return sorted({key.split("/")[1] for key in keys})

    def asking_most(self, module: Digest) -> str:
        """Key of a version record that asks for the greatest number; "" if none names it. Looks at
        all."""
        rows = (row for row in self._named.items() if row[1].module == module)
        return max(rows, key=lambda row: row[1].replicas, default=("", None))[0]

    def take_changed(self) -> list[Digest]:
        """Those for which `get` may tell something new since the last call."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    # ------------------------------------------------------------ the catalog's part
    def put(self, key: str, spec: FunctionSpec) -> None:
        """A key names a spec's digest, so what it named once it names for good."""
        if key in self._named:
            return
        naming = _Naming(spec.module, bytes.fromhex(spec.manifest), spec.replicas)
        known = self._namings.get(spec.module, ())
        naming = next((one for one in known if one == naming), naming)
        self._named[key] = naming
        count = self._counts.get(naming, 0)
        self._counts[naming] = count + 1
        if not count:
            self._namings[naming.module] = (*known, naming)
            self._changed[naming.module] = None

    def drop(self, key: str) -> None:
        naming = self._named.pop(key, None)
        if naming is None:
            return
        self._counts[naming] -= 1
        if self._counts[naming]:
            return
        del self._counts[naming]
        left = tuple(one for one in self._namings[naming.module] if one != naming)
        if left:
            self._namings[naming.module] = left
        else:
            del self._namings[naming.module]
        self._changed[naming.module] = None
