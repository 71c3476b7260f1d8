"""How many of the process's descriptors guests may hold: each file a guest opens is one of them.

Rules: one invocation holds at most OPENS_MAX opened files and directories (EMFILE over it), all of
a runtime together at most a quarter of the process's limit (ENFILE): the rest is for connections,
modules and compilers. What ends with an invocation is given back with it. Directories that its
policy grants are not counted here: a policy names at most 16.

path_open is the only WASI function that makes descriptors; fd_close and fd_renumber end them. An
opening that fails while it tells the guest (a bad result pointer) ends the guest.
"""

from __future__ import annotations

import resource
import threading
from ctypes import c_uint32
from typing import Final

from .call import SUCCESS, Call, HostFunction

EMFILE: Final = 33
ENFILE: Final = 41
OPENS_MAX: Final = 64
"""Of one invocation. POSIX guarantees a program 20; SQLite and CPython guests held under 12."""
_SHARE: Final = 4
_UNLIMITED: Final = 1 << 20
_FD_OUT: Final = 8 * 16
"""Offset of path_open's ninth argument, where the guest wants the new descriptor."""


class Descriptors:
    """What is left for the guests of one runtime. Called from their threads."""

    def __init__(self, total: int | None = None) -> None:
        """By default a share of the process's present limit."""
        if total is None:
            soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            total = (soft if 0 < soft < _UNLIMITED else _UNLIMITED) // _SHARE
        self._left = total
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        return self._left

    def take(self) -> bool:
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give(self, count: int) -> None:
        with self._lock:
            self._left += count

    def limited(self, opening: HostFunction) -> HostFunction:
        """path_open that calls `opening` while there is a descriptor for it."""

        def path_open(call: Call, caller: int, args: int) -> int:
            opened = call.opened
            if opened is None:
                opened = call.opened = set()
            if len(opened) >= OPENS_MAX:
                return EMFILE
            if not self.take():
                return ENFILE
            errno = -1
            fd_at = c_uint32.from_address(args + _FD_OUT).value
            try:
                errno = opening(call, caller, args)
            finally:
                if errno != SUCCESS:
                    self.give(1)
            if errno == SUCCESS:
                base, _size = call.memory(caller)
                opened.add(c_uint32.from_address(base + fd_at).value)
            return errno

        return path_open

    def closed(self, call: Call, fd: int) -> None:
        if call.opened and fd in call.opened:
            call.opened.discard(fd)
            self.give(1)

    def renumbered(self, call: Call, source: int, target: int) -> None:
        """`target` was closed if it was open; `source` is now called `target`."""
        self.closed(call, target)
        if call.opened and source in call.opened:
            call.opened.discard(source)
            call.opened.add(target)

    def ended(self, call: Call) -> None:
        """After the call's store is gone."""
        if call.opened:
            self.give(len(call.opened))
            call.opened.clear()


def relay_open(call: Call, caller: int, args: int) -> int:
    return call.relay("path_open", caller, args, 9)
