"""Functions by name, as requests name them; modules by the functions whose code they are. Reads the
catalog only."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Final

from protocol.catalog import Catalog
from protocol.ids import Digest, FunctionName, VersionId

from .errors import FunctionNotFound
from .interfaces import FunctionView

NAMES_MAX: Final = 32
"""Of an answer to an operator."""


def functions_of(modules: Container[Digest], catalog: Catalog) -> tuple[str, ...]:
    """Names of the functions with a live version of any of `modules`, in order; of very many, the
    first ones. Looks at all versions."""
    keys = (key for key, module in catalog.modules.named() if module in modules)
    return tuple(sorted({key.split("/")[1] for key in keys})[:NAMES_MAX])


class Lookup:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def current(self, name: str) -> FunctionView:
        """Raises FunctionNotFound."""
        found = self._catalog.lookup(name)
        if found is None:
            raise FunctionNotFound(f"there is no function {name[:80]!r}")
        return FunctionView(FunctionName(name), found.version, found.spec, found.snapshot)

    def version(self, name: str, version: VersionId) -> FunctionView:
        """Any live version of a function that is deployed. Raises FunctionNotFound."""
        found = self.current(name)
        if found.version == version:
            return found
        spec = self._catalog.spec(name, version)
        if spec is None:
            raise FunctionNotFound(f"{name!r} has no version {version[:12]} here")
        stated = self._catalog.snapshots.at(f"v/{name}/{version}")
        return FunctionView(found.name, version, spec, stated)

    def codes(self, function: FunctionView) -> tuple[Digest, ...]:
        """What a version can run in: its snapshot, if there is one, and its module."""
        stated, module = function.snapshot, function.spec.module
        return (module,) if stated is None else (stated.snapshot, module)

    def functions(self) -> Iterator[FunctionView]:
        """All, as they are now, by name."""
        for name, current in self._catalog.functions():
            yield FunctionView(name, current.version, current.spec, current.snapshot)

    def kin(self, module: Digest) -> list[Digest]:
        """Modules of other versions of the functions that `module` is the code of now."""
        catalog = self._catalog
        found = dict.fromkeys(
            row.spec.module
            for name in catalog.modules.functions(module)
            if (current := catalog.lookup(name)) is not None and current.spec.module == module
            for row in catalog.versions(name)
        )
        return [one for one in found if one != module]

    def manifests(self, module: Digest) -> tuple[Digest, ...]:
        """Those that live versions name, of its wire form."""
        wanted = self._catalog.modules.get(module)
        return () if wanted is None else wanted.manifests
