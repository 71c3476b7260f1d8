"""Threads that run guests, with a hand-over cheaper than `trio.to_thread`'s.

trio's own costs 90–150 µs a call under load, several times the guest; a queue and one wake-up of
the event loop for all that finished meanwhile costs about 10. Jobs start in order of arrival; one
that has not started is given up when its waiter is cancelled, one that has is asked to end soon.

Owned by one trio run. Only `_work` runs in other threads; it touches nothing but the two queues.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar, cast

import outcome
import trio

T = TypeVar("T")


class _Job:
    __slots__ = ("call", "result", "task", "ticket")

    def __init__(self, call: Callable[[], Any], task: trio.lowlevel.Task) -> None:
        self.call = call
        self.task = task
        self.ticket = [True]
        """Whoever pops it decides: the thread that runs the call, or the waiter that gives up."""
        self.result: outcome.Outcome[Any] | None = None


class Workers:
    def __init__(self, threads_max: int, *, name: str) -> None:
        self._threads_max: Final = threads_max
        self._name = name
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[_Job] = deque()
        self._waking = False
        self._threads = 0
        self._unfinished = 0
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Jobs that run or wait."""
        return self._unfinished

    async def run(self, call: Callable[[], T], *, on_cancel: Callable[[], None]) -> T:
        """`call()` in a thread. Raises what it raises.

        A cancelled waiter whose call has started waits for its end; `on_cancel` is to hasten it."""
        if self._closed:
            raise RuntimeError("the workers are closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(call, trio.lowlevel.current_task())
        self._unfinished += 1
        if self._unfinished > self._threads and self._threads < self._threads_max:
            self._threads += 1
            name = f"{self._name}-{self._threads}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put(job)

        def give_up(_: Callable[[], None]) -> trio.lowlevel.Abort:
            try:
                job.ticket.pop()
            except IndexError:
                on_cancel()
                return trio.lowlevel.Abort.FAILED
            return trio.lowlevel.Abort.SUCCEEDED

        return cast(T, await trio.lowlevel.wait_task_rescheduled(give_up))

    def close(self) -> None:
        """Threads end when what they run has ended. Nobody may wait in `run` any more."""
        self._closed = True
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.ticket.pop()
            except IndexError:
                pass  # its waiter is gone
            else:
                job.result = outcome.capture(job.call)
            # Appended before the flag is read: the delivery that clears the flag sees the job.
            self._done.append(job)
            del job
            if not self._waking:
                self._waking = True
                try:
                    self._token.run_sync_soon(self._deliver)
                except trio.RunFinishedError:
                    return

    def _deliver(self) -> None:
        """In the event loop: wakes every waiter whose job has ended."""
        self._waking = False
        while self._done:
            job = self._done.popleft()
            self._unfinished -= 1
            if job.result is not None:
                trio.lowlevel.reschedule(job.task, job.result)
