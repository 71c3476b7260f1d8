"""The code that is in memory: which, how it came here, and what goes when there is too much of it.

Bounded by bytes and number; least recently used go first, never what somebody runs in. Owned by
the node's event loop.
"""

from __future__ import annotations

from collections import OrderedDict

from protocol.ids import Digest

from .interfaces import ArtifactRow, LoadedModule, Phases, StartType


class Mapped:
    """A mapped module and how it came here. `users` keeps it from being unmapped."""

    def __init__(
        self, module: LoadedModule, start: StartType, phases: Phases, row: ArtifactRow
    ) -> None:
        """`row`: as it was when its code was opened."""
        self.module = module
        self.start: StartType = start
        self.phases = phases
        self.row = row
        self.size_bytes = row.size_bytes
        self.users = 0
        self.last: tuple[float, float, float] | None = None
        """Of the newest invocation: seconds of instantiating, of init, of running."""


class MappedTable:
    def __init__(self, *, bytes_max: int, number_max: int) -> None:
        self._bytes_max = bytes_max
        self._number_max = number_max
        self._mapped: OrderedDict[Digest, Mapped] = OrderedDict()
        self._bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._mapped

    def use(self, digest: Digest) -> Mapped | None:
        """It if it is in memory now, for an invocation; the hot path."""
        found = self._mapped.get(digest)
        if found is not None:
            self._mapped.move_to_end(digest)
        return found

    def get(self, digest: Digest) -> Mapped | None:
        """Just to look."""
        return self._mapped.get(digest)

    def all(self) -> list[Mapped]:
        """Least recently used first."""
        return list(self._mapped.values())

    def admit(self, digest: Digest, mapped: Mapped) -> None:
        self._mapped[digest] = mapped
        self._bytes += mapped.size_bytes
        self._make_room(digest)

    def replace(self, digest: Digest, old: Mapped, new: Mapped) -> None:
        """Whoever still runs in the old code holds it: it goes with the last of them."""
        self._mapped[digest] = new
        self._bytes += new.size_bytes - old.size_bytes
        self._make_room(digest)
        if old.users == 0:
            old.module.close()

    def unmap(self, digest: Digest) -> None:
        """Drops it from memory; invocations that run in it finish."""
        mapped = self._mapped.pop(digest, None)
        if mapped is not None:
            self._bytes -= mapped.size_bytes
            mapped.module.close()

    def close(self) -> None:
        for mapped in self._mapped.values():
            mapped.module.close()
        self._mapped.clear()
        self._bytes = 0

    def _make_room(self, newest: Digest) -> None:
        """Unmaps others than `newest`, oldest use first, while there is too much."""
        for other, candidate in list(self._mapped.items()):
            if self._bytes <= self._bytes_max and len(self._mapped) <= self._number_max:
                return
            if candidate.users == 0 and other != newest:
                self.unmap(other)
