"""Work that a second Ctrl-C must not cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def undisturbed(tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """What would end this process does not meanwhile; the first time it calls `tell`. Only the main
    thread hears of signals: elsewhere there is nothing to keep away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def heard(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            tell()

    before = {number: signal.signal(number, heard) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
