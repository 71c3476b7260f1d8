"""Runs compile_worker.py: one process per job, bounded in time and memory, never left behind.

The worker gets no descriptors but its pipes, an empty environment and Python's isolated mode. A
cancelled or late job is killed with SIGKILL and reaped before the caller goes on.
"""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from edged.errors import CompileFailed
from edged.interfaces import CompileReport

from .compile_worker import EXIT_MEMORY

if TYPE_CHECKING:
    from .settings import Target

_WORKER: Final = Path(__file__).with_name("compile_worker.py")
_ROOT: Final = Path(__file__).parents[2]
STDERR_CHARS_MAX: Final = 2000

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

        Raises CompileFailed: "timeout", "memory" or "crash"."""
        async with self._limiter:
            done: subprocess.CompletedProcess[bytes] | None = None
            with trio.move_on_after(self._timeout_s):
                done = await trio.run_process(
                    [*self._command, job, *files], stdin=stdin, capture_stdout=True,
                    capture_stderr=True, check=False, deliver_cancel=_kill, env={}, cwd="/",
                )  # fmt: skip
        if done is None:
            raise CompileFailed("timeout", f"{job} took longer than {self._timeout_s:g} s")
        if done.returncode != 0:
            raise self._failure(job, done)
        line, _newline, payload = done.stdout.partition(b"\n")
        return ast.literal_eval(line.decode()), payload

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
        """Raises CompileFailed; `output` is then absent."""
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


async def _kill(process: trio.Process) -> None:
    process.kill()


def _absolute(path: Path) -> str:
    """The worker's working directory is /."""
    return str(path if path.is_absolute() else Path.cwd() / path)


def _remove(output: Path) -> None:
    """The worker may have been stopped between any two steps."""
    output.unlink(missing_ok=True)
    output.with_name(f"{output.name}.part").unlink(missing_ok=True)
