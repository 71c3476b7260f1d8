"""Functions by name, as requests name them: out of the catalog. Reads only."""

from __future__ import annotations

from protocol.catalog import Catalog
from protocol.ids import FunctionName, VersionId

from .errors import FunctionNotFound
from .interfaces import FunctionView


class Lookup:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def current(self, name: str) -> FunctionView:
        """Raises FunctionNotFound."""
        found = self._catalog.lookup(name)
        if found is None:
            raise FunctionNotFound(f"there is no function {name[:80]!r}")
        return FunctionView(FunctionName(name), found.version, found.spec)

    def version(self, name: str, version: VersionId) -> FunctionView:
        """Any live version of a function that is deployed. Raises FunctionNotFound."""
        found = self.current(name)
        if found.version == version:
            return found
        spec = self._catalog.spec(name, version)
        if spec is None:
            raise FunctionNotFound(f"{name!r} has no version {version[:12]} here")
        return FunctionView(found.name, version, spec)
