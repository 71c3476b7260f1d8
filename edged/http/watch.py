"""Tells running handlers that their client is gone, with one task for all connections.

A task per request that waits in recv() would cost more than the request (FACTS: a trio task is
some 20 µs). Here a request in flight costs two epoll_ctl calls, and only if its handler asked. The
kernel's EPOLLRDHUP is the signal: the peer closed, or shut its sending side. As Go's net/http and
nginx do, edged takes both for a client that left, since a client that half-closes right after its
request cannot be told from it.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

import trio

_EVENTS: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT


class HangupWatcher:
    """Owned by one listener; callbacks run in its event loop and must not raise."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, hung_up: Callable[[], None]) -> None:
        """`hung_up` is called at most once. Take it off with `remove` before closing `fd`."""
        if self._epoll.closed:
            return  # the listener is ending: everything is being cancelled
        self._watched[fd] = hung_up
        self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, _ in self._epoll.poll(0):
                    hung_up = self._watched.get(fd)
                    if hung_up is not None:
                        hung_up()
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
