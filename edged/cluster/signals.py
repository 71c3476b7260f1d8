"""Handlers of signals for a while, and work that a second Ctrl-C must not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Only the main thread hears of signals: elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def undisturbed(tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """What would end this process does not meanwhile; the first time it calls `tell`."""
    told = False

    def heard(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            tell()

    with handled(ENDING, heard):
        yield
