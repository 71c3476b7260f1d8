"""Which code each function's invocations run in on this node, and getting it ready.

What a function can run in is a set of digests (`Lookup.codes`): any of them will do for its
requests, here and at peers. Owned by the node's event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.ids import Digest

from .activation import Activation
from .interfaces import Code, FunctionView, module_code
from .mapped import Mapped


class Choices:
    """Implements functions.Codes."""

    def __init__(
        self, activation: Activation, *, codes: Callable[[FunctionView], tuple[Digest, ...]]
    ) -> None:
        """`codes`: all that a version can run in."""
        self._activation = activation
        self._codes = codes
        self._use = activation.table.use

    def serving(self, function: FunctionView) -> Code:
        """What its next invocation here runs in."""
        return module_code(function.spec)

    def use(self, function: FunctionView) -> Mapped | None:
        """Its code, if that is in memory now; the hot path."""
        return self._use(function.spec.module)

    def is_near(self, function: FunctionView) -> bool:
        """Whether its code is in memory, or will be as soon as an artifact on disk is mapped."""
        return any(map(self._activation.is_near, self._codes(function)))

    def start(self, function: FunctionView) -> None:
        """Begins making it ready in the background."""
        self._activation.start(self.serving(function))

    async def ready(self, function: FunctionView, *, timeout_s: float) -> Mapped:
        """Raises as Activation.ready."""
        return await self._activation.ready(self.serving(function), timeout_s=timeout_s)
