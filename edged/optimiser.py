"""Which modules lack optimised code, and getting it in the background: fetched, or compiled.

One module at a time, oldest wish first; a module whose compile failed waits (backoff.py) while its
fast code goes on serving. The queue is bounded: the oldest wish is forgotten first, and comes
again when its module is next loaded.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protocol.ids import Digest

from .backoff import RETRY_AFTER_FAILURE_S, Backoff
from .errors import CompileFailed, EdgedError, Overloaded, info_of
from .telemetry import Log, Metrics

QUEUE_MAX: Final = 1024


class Optimiser:
    """All state belongs to the node's event loop."""

    def __init__(
        self,
        replace: Callable[[Digest], Awaitable[float | None]],
        *,
        is_wanted: Callable[[Digest], bool],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """`replace` gets optimised code of a module and puts it in the place of fast code, or says
        in how many seconds it shall be tried again, as another node is about to have it;
        `is_wanted` says whether the module still lacks it."""
        self._replace = replace
        self._is_wanted = is_wanted
        self._metrics = metrics
        self._log = log
        self._queue: OrderedDict[Digest, float] = OrderedDict()
        """When, by trio's clock, each may be tried."""
        self._changed = trio.Event()
        self._backoff = Backoff()
        self._scope = trio.CancelScope()

    def want(self, module: Digest) -> None:
        self._queue.setdefault(module, -math.inf)
        if len(self._queue) > QUEUE_MAX:
            self._queue.popitem(last=False)
        self._changed.set()

    def failing(self, module: Digest) -> EdgedError | None:
        """Why `module` still runs on fast code, while optimising it is not tried again."""
        return self._backoff.failing(module)

    def stop(self) -> None:
        """A compile under way is killed."""
        self._scope.cancel()

    async def run(self) -> None:
        """Once, until `stop`."""
        with self._scope:
            while True:
                module = await self._next()
                if self._is_wanted(module):
                    await self._try(module)
                else:
                    self._queue.pop(module, None)

    async def _next(self) -> Digest:
        while True:
            now = trio.current_time()
            for module, due_s in self._queue.items():
                if due_s <= now:
                    return module
            self._changed = trio.Event()
            with trio.move_on_at(min(self._queue.values(), default=math.inf)):
                await self._changed.wait()

    async def _try(self, module: Digest) -> None:
        try:
            again_s = await self._replace(module)
        except (EdgedError, OSError) as error:
            self._failed(module, error)
        else:
            self._queue.pop(module, None)
            if again_s is None:
                self._backoff.succeeded(module)
            else:
                self._queue[module] = trio.current_time() + again_s

    def _failed(self, module: Digest, error: EdgedError | OSError) -> None:
        private = error.private if isinstance(error, EdgedError) else ""
        self._log.warning("optimising failed", module=module, error=str(error), private=private)
        if isinstance(error, Overloaded | OSError):
            # What the node lacked is not held against the module.
            reason, due_s = "overloaded", trio.current_time() + RETRY_AFTER_FAILURE_S[0]
        else:
            reason = error.reason if isinstance(error, CompileFailed) else info_of(error).code
            due_s = self._backoff.failed(module, error)
        self._metrics.optimisations.labels(reason).inc()
        self._queue.pop(module, None)
        self._queue[module] = due_s
