"""Runs worker.py: one process per snapshot, bounded in time and memory, never left behind.

It gets no descriptors but its pipes, module and output, an empty environment and Python's isolated
mode. Each phase has its own time; a late or cancelled worker is killed and reaped before the caller
goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import trio

from edged.errors import CompileFailed, EdgedError, InitTimeout
from edged.interfaces import SnapshotReport
from edged.runtime.compile import STDERR_CHARS_MAX, drain, end, failure_to_run, feed
from edged.runtime.compile_worker import EXIT_MEMORY

from .errors import refuse
from .messages import (
    Done,
    Entered,
    Failed,
    Job,
    Messages,
    Phase,
    error_of,
    frame,
)

_ROOT: Final = Path(__file__).parents[2]
_BOOT: Final = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]);"
    " runpy.run_module('edged.snapshot.worker', run_name='__main__')"
)
STARTING_S: Final = 30.0
INIT_SLACK_S: Final = 2.0
"""Over the policy's timeout: the guest's deadline is held in the worker, but for bulk memory
instructions, which nothing interrupts."""


async def run(job: Job) -> SnapshotReport:
    """Raises what Snapshots.make does."""
    attempt = _Attempt(job)
    try:
        return await attempt.run()
    except CompileFailed as error:
        # What the fast compiler dies of need not be what the other one does.
        if not job.fast or attempt.phase != "compile" or error.reason not in ("crash", "memory"):
            raise
    return await _Attempt(msgspec.structs.replace(job, fast=False)).run()


class _Attempt:
    def __init__(self, job: Job) -> None:
        self.phase: Phase | None = None
        self._job = job
        self._scope = trio.CancelScope()

    async def run(self) -> SnapshotReport:
        told: Done | Failed | None = None
        status, stderr = 0, bytearray()
        try:
            with self._scope:
                self._scope.deadline = trio.current_time() + self._seconds(None)
                told, status = await self._converse(stderr)
        except (OSError, ExceptionGroup) as error:
            raise failure_to_run("snapshot", error) from error
        if self._scope.cancelled_caught:
            raise self._late()
        if isinstance(told, Failed):
            raise error_of(told)
        if told is None:
            raise self._crashed(status, stderr)
        return told.report

    async def _converse(self, stderr: bytearray) -> tuple[Done | Failed | None, int]:
        job = self._job
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-c", _BOOT, str(_ROOT)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/",
            pass_fds=(job.module_fd, job.output_fd),
        )  # fmt: skip
        last: Done | Failed | None = None
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            with suppress(OSError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, process.pid, job.limits.niceness)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed, process.stdin, frame(job))
                nursery.start_soon(drain, process.stderr, stderr)
                messages = Messages()
                async for chunk in process.stdout:
                    for message in messages.receive(chunk):
                        if isinstance(message, Entered):
                            self._enter(message.phase)
                        else:
                            last = message
            return last, await process.wait()
        finally:
            await end(process)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._scope.deadline = trio.current_time() + self._seconds(phase)

    def _seconds(self, phase: Phase | None) -> float:
        if phase == "compile":
            return self._job.limits.compile_timeout_s
        if phase == "init":
            return self._job.policy.timeout_ms / 1000 + INIT_SLACK_S
        return self._job.limits.step_timeout_s if phase else STARTING_S

    def _late(self) -> EdgedError:
        seconds = self._seconds(self.phase)
        if self.phase == "compile":
            return CompileFailed("timeout", f"compiling took longer than {seconds:g} s")
        if self.phase == "init":
            return InitTimeout("the initialiser ran out of its time, in one long instruction")
        return refuse("limits", "module", f"{self.phase or 'starting'} took over {seconds:g} s")

    def _crashed(self, status: int, stderr: bytearray) -> EdgedError:
        message = stderr[-STDERR_CHARS_MAX:].decode("utf-8", "replace")
        where = f"in phase {self.phase}" if self.phase else "at its start"
        # Rust aborts when an allocation fails under the process's limit, and says so.
        if status == EXIT_MEMORY or "memory allocation of" in message:
            limit = self._job.limits.memory_bytes
            return CompileFailed("memory", f"the snapshot needed more than {limit} bytes {where}")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return CompileFailed(
            "crash", f"the snapshot worker crashed {where}: {how}", private=message
        )
