"""Runs compile_worker.py: one process per job, bounded in time and memory, never left behind.

The worker gets no descriptors but its pipes, an empty environment and Python's isolated mode. A
cancelled or late job is killed with SIGKILL and reaped before the caller goes on.
"""

from __future__ import annotations

import ast
import errno
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

Job = Literal["wat", "validate", "compile"]


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

    async def run(self, job: Job, *files: str, stdin: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """The worker's answer and payload.

        Raises CompileFailed ("timeout", "memory" or "crash"), Overloaded when the node has no
        descriptor, process or memory left to start one: that says nothing of the module."""
        done: subprocess.CompletedProcess[bytes] | None = None
        async with self._limiter:
            try:
                with trio.move_on_after(self._timeout_s):
                    done = await self._process(job, files, stdin)
            except (OSError, ExceptionGroup) as error:
                raise _failure_to_run(job, error) from error
        if done is None:
            raise CompileFailed("timeout", f"{job} took longer than {self._timeout_s:g} s")
        if done.returncode != 0:
            raise self._failure(job, done)
        line, _newline, payload = done.stdout.partition(b"\n")
        try:
            return ast.literal_eval(line.decode()), payload
        except (SyntaxError, ValueError) as error:
            raise CompileFailed("crash", f"the {job} worker gave no answer") from error

    async def _process(
        self, job: Job, files: tuple[str, ...], stdin: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        return await trio.run_process(
            [*self._command, job, *files], stdin=stdin, capture_stdout=True,
            capture_stderr=True, check=False, deliver_cancel=_kill, env={}, cwd="/",
        )  # fmt: skip

    def _failure(self, job: Job, done: subprocess.CompletedProcess[bytes]) -> CompileFailed:
        message = done.stderr[-STDERR_CHARS_MAX:].decode("utf-8", "replace")
        # Rust aborts when an allocation fails under the process's limit, and says so.
        if done.returncode == EXIT_MEMORY or "memory allocation of" in message:
            return CompileFailed("memory", f"{job} needed more than {self._memory_bytes} bytes")
        how = (
            signal.Signals(-done.returncode).name
            if done.returncode < 0
            else f"exit status {done.returncode}"
        )
        return CompileFailed("crash", f"the {job} worker crashed: {how}", private=message)

    async def compile(self, module: Path, output: Path) -> CompileReport:
        """Raises CompileFailed, Overloaded; `output` is then absent."""
        begin = perf_counter()
        answer: dict[str, Any] | None = None
        try:
            answer, _ = await self.run("compile", _absolute(module), _absolute(output))
        finally:
            if answer is None or "reason" in answer:
                _remove(output)
        if "reason" in answer:
            raise CompileFailed("error", answer["detail"])
        return CompileReport(
            artifact_bytes=answer["artifact_bytes"],
            cpu_s=answer["cpu_s"],
            wall_s=perf_counter() - begin,
            peak_rss_bytes=answer["peak_rss_bytes"],
        )


def _failure_to_run(job: Job, error: OSError | ExceptionGroup[Exception]) -> EdgedError:
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


async def _kill(process: trio.Process) -> None:
    process.kill()


def _absolute(path: Path) -> str:
    """The worker's working directory is /."""
    return str(path if path.is_absolute() else Path.cwd() / path)


def _remove(output: Path) -> None:
    """The worker may have been stopped between any two steps."""
    output.unlink(missing_ok=True)
    output.with_name(f"{output.name}.part").unlink(missing_ok=True)
