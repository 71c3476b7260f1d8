"""How long to leave a module alone that could not be compiled: a broken one must not occupy the
compiler. One table per kind of attempt; bounded, the oldest are forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import trio

from protocol.ids import Digest

from .errors import EdgedError

RETRY_AFTER_FAILURE_S: Final = (5.0, 30.0, 120.0, 600.0)
"""Pause after the 1st, 2nd, … failure of a module; the last repeats."""
FAILURES_MAX: Final = 1024


class _Failure:
    __slots__ = ("count", "error", "until_s")

    def __init__(self, error: EdgedError) -> None:
        self.error = error
        self.count = 0
        self.until_s = 0.0


class Backoff:
    def __init__(self) -> None:
        self._failures: OrderedDict[Digest, _Failure] = OrderedDict()

    def failing(self, module: Digest) -> EdgedError | None:
        """Why the last attempt failed, while there shall be no other."""
        failure = self._failures.get(module)
        if failure is not None and trio.current_time() < failure.until_s:
            return failure.error
        return None

    def failed(self, module: Digest, error: EdgedError) -> float:
        """When, by trio's clock, it may be tried again."""
        failure = self._failures.setdefault(module, _Failure(error))
        pause_s = RETRY_AFTER_FAILURE_S[min(failure.count, len(RETRY_AFTER_FAILURE_S) - 1)]
        failure.count += 1
        failure.error = error
        failure.until_s = trio.current_time() + pause_s
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)
        return failure.until_s

    def succeeded(self, module: Digest) -> None:
        self._failures.pop(module, None)
