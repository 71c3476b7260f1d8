"""Runs compile_worker.py: one process per job, bounded in time and memory, never left behind.

The worker gets no descriptors but its pipes, an empty environment and Python's isolated mode. A
cancelled or late job is killed with SIGKILL and reaped before the caller goes on. One worker may
stand by, started and warm, for the next job: 30 to 60 ms that no request waits for.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from edged.errors import CompileFailed, EdgedError, Overloaded
from edged.interfaces import CompileReport

from .compile_worker import EXIT_MEMORY

if TYPE_CHECKING:
    from .settings import Target

_WORKER: Final = Path(__file__).with_name("compile_worker.py")
_ROOT: Final = Path(__file__).parents[2]
STDERR_CHARS_MAX: Final = 2000
SCARCITY: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM))
"""What starting a process fails with for want of descriptors, processes or memory."""

STANDBY_DELAY_S: Final = 1.0
"""After a start, whose own work goes first, and after a start that failed."""
BACKGROUND_WALL_FACTOR: Final = 20
"""Wall seconds a background compile may take for each CPU second it may: it gets what is left."""

_NO_LITERAL: Final = (
    SyntaxError, ValueError, TypeError, MemoryError, RecursionError, SystemError
)  # fmt: skip
"""Of ast.literal_eval. SystemError: in CPython before 3.11.8 one thread's parsing could confuse
another's (gh-106905)."""

Job = Literal["wat", "validate", "fastest", "optimise", "background"]


class Workers:
    """Starts workers; at most `jobs_max` at once."""

    def __init__(
        self, library: Path, target: Target, *, timeout_s: float, memory_bytes: int, jobs_max: int
    ) -> None:
        self._command = [sys.executable, "-I", "-S", str(_WORKER), str(_ROOT), str(library),
                         target, str(memory_bytes)]  # fmt: skip
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._limiter = trio.CapacityLimiter(jobs_max)
        self._standby: trio.Process | None = None
        self._wanted = trio.Event()

    # ------------------------------------------------------------ processes
    async def _start(self, *mode: str) -> trio.Process:
        return await trio.lowlevel.open_process(
            [*self._command, *mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={}, cwd="/",
        )  # fmt: skip

    async def stand_by(self) -> None:
        """Keeps one worker warm until cancelled; a new one is started once the last has done its
        job, not beside it."""
        try:
            while True:
                await trio.sleep(STANDBY_DELAY_S)
                if self._limiter.borrowed_tokens:
                    continue
                try:
                    self._standby = await self._start("standby")
                except OSError:
                    continue  # the node lacks something now; jobs start their own, or tell
                self._wanted = trio.Event()
                await self._wanted.wait()
        finally:
            standby, self._standby = self._standby, None
            if standby is not None:
                await end(standby)

    async def _take(self) -> trio.Process:
        process, self._standby = self._standby, None
        self._wanted.set()
        if process is not None:
            if process.poll() is None:
                return process
            await end(process)  # something else killed it
        return await self._start()

    async def _process(
        self, job: Job, fields: tuple[str, ...], payload: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        head = b"\0".join(map(os.fsencode, (job, *fields)))
        process = await self._take()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        stdout, stderr = bytearray(), bytearray()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed, process.stdin, b"%08x" % len(head) + head, payload)
                nursery.start_soon(drain, process.stdout, stdout)
                nursery.start_soon(drain, process.stderr, stderr)
            status = await process.wait()
        finally:
            await end(process)
        return subprocess.CompletedProcess([], status, bytes(stdout), bytes(stderr))

    # ------------------------------------------------------------ jobs
    async def run(
        self, job: Job, *fields: str, stdin: bytes = b"", timeout_s: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """The worker's answer and payload.

        Raises CompileFailed ("timeout", "memory" or "crash"), Overloaded when the node has no
        descriptor, process or memory left to start one: that says nothing of the module."""
        done: subprocess.CompletedProcess[bytes] | None = None
        timeout_s = timeout_s or self._timeout_s
        async with self._limiter:
            try:
                with trio.move_on_after(timeout_s):
                    done = await self._process(job, fields, stdin)
            except (OSError, ExceptionGroup) as error:
                raise failure_to_run(job, error) from error
        if done is None:
            raise CompileFailed("timeout", f"{job} took longer than {timeout_s:g} s")
        if done.returncode != 0:
            raise self._failure(job, done)
        line, _newline, payload = done.stdout.partition(b"\n")
        try:
            return ast.literal_eval(line.decode()), payload
        except _NO_LITERAL as error:
            raise CompileFailed("crash", f"the {job} worker gave no answer") from error

    def _failure(self, job: Job, done: subprocess.CompletedProcess[bytes]) -> CompileFailed:
        message = done.stderr[-STDERR_CHARS_MAX:].decode("utf-8", "replace")
        # Rust aborts when an allocation fails under the process's limit, and says so.
        if done.returncode == EXIT_MEMORY or "memory allocation of" in message:
            return CompileFailed("memory", f"{job} needed more than {self._memory_bytes} bytes")
        if done.returncode == -signal.SIGXCPU:
            return CompileFailed("timeout", f"{job} took longer than {self._timeout_s:g} CPU s")
        how = (
            signal.Signals(-done.returncode).name
            if done.returncode < 0
            else f"exit status {done.returncode}"
        )
        return CompileFailed("crash", f"the {job} worker crashed: {how}", private=message)

    async def compile(
        self, module: Path, output: Path, job: Literal["fastest", "optimise", "background"]
    ) -> tuple[CompileReport, str]:
        """The second is why the fast compiler refused the module, if it did.

        Raises CompileFailed, Overloaded; `output` is then absent."""
        begin = perf_counter()
        fields, timeout_s = [_absolute(module), _absolute(output)], self._timeout_s
        if job == "background":
            fields.append(str(math.ceil(timeout_s)))
            timeout_s *= BACKGROUND_WALL_FACTOR
        answer: dict[str, Any] | None = None
        try:
            answer, _ = await self.run(job, *fields, timeout_s=timeout_s)
        finally:
            if answer is None or "reason" in answer:
                _remove(output)
        if "reason" in answer:
            raise CompileFailed("error", answer["detail"])
        report = CompileReport(
            artifact_bytes=answer["artifact_bytes"],
            cpu_s=answer["cpu_s"],
            wall_s=perf_counter() - begin,
            peak_rss_bytes=answer["peak_rss_bytes"],
            tier=answer["tier"],
        )
        return report, answer["fast_refused"]


async def feed(stream: trio.abc.SendStream, *parts: bytes) -> None:
    """A worker that died, or has heard enough, does not read to the end."""
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            for part in parts:
                await stream.send_all(part)


async def drain(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async with stream:
        async for chunk in stream:
            into += chunk


async def end(process: trio.Process) -> None:
    """Kills it, if it runs, and reaps it."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.kill()
        await process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                await pipe.aclose()


def failure_to_run(job: str, error: OSError | ExceptionGroup[Exception]) -> EdgedError:
    """trio wraps what a worker's start and its pipes raise in groups. Raises `error` again if
    anything but OSError is in it."""
    if isinstance(error, ExceptionGroup):
        ours, other = error.split(OSError)
        if other is not None or ours is None:
            raise error
    causes = _os_errors(error)
    told = "; ".join(map(str, causes))
    if all(cause.errno in SCARCITY for cause in causes):
        return Overloaded(f"no resources to {job} a module; try again", private=told)
    return CompileFailed("crash", f"the {job} worker could not be run", private=told)


def _os_errors(error: BaseException) -> list[OSError]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _os_errors(part)]
    assert isinstance(error, OSError)
    return [error]


def _absolute(path: Path) -> str:
    """The worker's working directory is /."""
    return str(path if path.is_absolute() else Path.cwd() / path)


def _remove(output: Path) -> None:
    """The worker may have been stopped between any two steps."""
    output.unlink(missing_ok=True)
    output.with_name(f"{output.name}.part").unlink(missing_ok=True)
