"""Functions by name, as requests name them; modules by the functions whose code they are. Reads the
catalog only."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Final

from protocol.catalog import Catalog
from protocol.function import FunctionSpec
from protocol.ids import Digest, FunctionName, VersionId
from protocol.snapshots import SnapshotStatement

from .errors import FunctionNotFound
from .interfaces import FunctionView

NAMES_MAX: Final = 32
"""Of an answer to an operator."""


def functions_of(modules: Container[Digest], catalog: Catalog) -> tuple[str, ...]:
    """Names of the functions with a live version of any of `modules`, or of a snapshot among them,
    in order; of very many, the first ones. Looks at all versions."""
    named = (*catalog.modules.named(), *catalog.snapshots.named())
    keys = (key for key, digest in named if digest in modules)
    return tuple(sorted({key.split("/")[1] for key in keys})[:NAMES_MAX])


def code_of(catalog: Catalog, name: FunctionName) -> Iterator[Digest]:
    """Modules and snapshots of all versions of a function."""
    for row in catalog.versions(name):
        yield row.spec.module
        if row.snapshot is not None:
            yield row.snapshot.snapshot


class Lookup:
    def __init__(
        self,
        catalog: Catalog,
        *,
        usable: Callable[[SnapshotStatement], bool] = lambda _stated: True,
    ) -> None:
        """`usable`: whether this node may run a snapshot, by what is stated of it."""
        self._catalog = catalog
        self._usable = usable

    def _view(
        self,
        name: FunctionName,
        version: VersionId,
        spec: FunctionSpec,
        stated: SnapshotStatement | None,
    ) -> FunctionView:
        if stated is not None and not self._usable(stated):
            stated = None
        return FunctionView(name, version, spec, stated)

    def current(self, name: str) -> FunctionView:
        """Raises FunctionNotFound."""
        found = self._catalog.lookup(name)
        if found is None:
            raise FunctionNotFound(f"there is no function {name[:80]!r}")
        return self._view(FunctionName(name), found.version, found.spec, found.snapshot)

    def version(self, name: str, version: VersionId) -> FunctionView:
        """Any live version of a function that is deployed. Raises FunctionNotFound."""
        found = self.current(name)
        if found.version == version:
            return found
        spec = self._catalog.spec(name, version)
        if spec is None:
            raise FunctionNotFound(f"{name!r} has no version {version[:12]} here")
        stated = self._catalog.snapshots.at(f"v/{name}/{version}")
        return self._view(found.name, version, spec, stated)

    def codes(self, function: FunctionView) -> dict[Digest, float]:
        """What a version can run in, its snapshot, if there is one, and its module; and how many
        seconds more each call takes in it: those of the init."""
        stated, module = function.snapshot, function.spec.module
        return (
            {module: 0.0} if stated is None else {stated.snapshot: 0.0, module: stated.facts.init_s}
        )

    def functions(self) -> Iterator[FunctionView]:
        """All, as they are now, by name."""
        for name, current in self._catalog.functions():
            yield self._view(name, current.version, current.spec, current.snapshot)

    def kin(self, digest: Digest) -> list[Digest]:
        """Blobs that it is probably like. Of a module: those of other versions of the functions
        that it is the code of now. Of a snapshot: its module, then other versions' snapshots."""
        catalog = self._catalog
        stated = catalog.snapshots.get(digest)
        found = dict.fromkeys(one.module for one in stated)
        for name in catalog.snapshots.functions(digest):
            rows = catalog.versions(name)
            found |= dict.fromkeys(row.snapshot.snapshot for row in rows if row.snapshot)
        for name in catalog.modules.functions(digest):
            current = catalog.lookup(name)
            if current is not None and current.spec.module == digest:
                found |= dict.fromkeys(row.spec.module for row in catalog.versions(name))
        return [one for one in found if one != digest]

    def manifests(self, digest: Digest) -> tuple[Digest, ...]:
        """Those that live versions name, of the wire form of a module or a snapshot."""
        wanted = self._catalog.modules.get(digest)
        stated = (one.manifest for one in self._catalog.snapshots.get(digest))
        return tuple(dict.fromkeys((*(wanted.manifests if wanted else ()), *stated)))
