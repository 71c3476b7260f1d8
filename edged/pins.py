"""Blobs that an operator wants to stay on this node, whatever collection or eviction would do.

A pin names a digest, or a function: then it covers the modules of all versions the function has,
now and later. A pinned module's artifacts are pinned with it. Durable in the store; owned by the
node's event loop. Pins protect what is here, they fetch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
import trio

from protocol.ids import Digest, FunctionName

from .errors import Conflict
from .interfaces import PinChange
from .saving import MetaStore
from .telemetry import Log

PINS: Final = "pins"
"""Key in the store's meta table."""
PINS_MAX: Final = 1024

Kind = Literal["function", "digest"]


class _Saved(msgspec.Struct, frozen=True):
    functions: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


class Pins:
    def __init__(
        self, store: MetaStore, *, modules: Callable[[FunctionName], Iterable[Digest]], log: Log
    ) -> None:
        """`modules`: of all versions of a function."""
        self._store = store
        self._modules = modules
        self._changing = trio.Lock()
        found = _Saved()
        if saved := store.get_meta(PINS):
            try:
                found = msgspec.msgpack.decode(saved, type=_Saved)
            except msgspec.MsgspecError:
                log.exception("pins on disk are damaged; there are none now")
        self._pinned: dict[Kind, dict[str, None]] = {
            "function": dict.fromkeys(found.functions),
            "digest": dict.fromkeys(found.digests),
        }

    def functions(self) -> tuple[str, ...]:
        return tuple(sorted(self._pinned["function"]))

    def digests(self) -> tuple[Digest, ...]:
        return tuple(sorted(map(Digest, self._pinned["digest"])))

    def is_pinned(self, digest: Digest) -> bool:
        """Of a module; of an artifact, ask for its module too."""
        return digest in self._pinned["digest"] or any(
            digest in self._modules(FunctionName(name)) for name in self._pinned["function"]
        )

    def covered(self) -> frozenset[Digest]:
        """All digests that are pinned, by themselves or by a function."""
        covered = set(self.digests())
        for name in self._pinned["function"]:
            covered.update(self._modules(FunctionName(name)))
        return frozenset(covered)

    async def pin(self, kind: Kind, target: str) -> PinChange:
        """Durable when it returns. Raises Conflict: too many; StoreError."""
        async with self._changing:
            if target in self._pinned[kind]:
                return PinChange(kind, target, changed=False)
            if sum(map(len, self._pinned.values())) >= PINS_MAX:
                raise Conflict(f"{PINS_MAX} pins are the most a node keeps; unpin some first")
            await self._save(kind, {**self._pinned[kind], target: None})
            return PinChange(kind, target, changed=True)

    async def unpin(self, kind: Kind, target: str) -> PinChange:
        """Absent is fine. Raises StoreError."""
        async with self._changing:
            if target not in self._pinned[kind]:
                return PinChange(kind, target, changed=False)
            rest = {other: None for other in self._pinned[kind] if other != target}
            await self._save(kind, rest)
            return PinChange(kind, target, changed=True)

    async def _save(self, kind: Kind, targets: dict[str, None]) -> None:
        """What is on disk is in force."""
        pinned = {**self._pinned, kind: targets}
        saved = _Saved(tuple(pinned["function"]), tuple(pinned["digest"]))
        with trio.CancelScope(shield=True):
            await self._store.set_meta(PINS, msgspec.msgpack.encode(saved))
            self._pinned = pinned
