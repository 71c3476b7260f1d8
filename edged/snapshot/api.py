"""The way in: `Snapshotter` for a node, `make_snapshot` for everyone without an event loop.

Types are in edged.interfaces.snapshots; what a snapshot is and is not, in edged/docs/SNAPSHOTS.md.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from edged.errors import ConfigError, DiskFull, Overloaded
from edged.interfaces import Examination, InitPlan, SnapshotLimits, SnapshotReport
from edged.runtime import tmpdir
from edged.runtime.compile import SCARCITY
from edged.runtime.ffi import Api, ByteVec, library_path
from protocol.function import MODULE_BYTES_MAX, Policy

from . import process
from .errors import refuse
from .examine import examine, exported_functions
from .messages import Job

if TYPE_CHECKING:
    from edged.runtime.settings import Target

__all__ = ["Snapshotter", "binary_of", "examine", "exported_functions", "make_snapshot"]


class Snapshotter:
    """Implements interfaces.Snapshots. Makes at most `jobs_max` at once; others wait."""

    def __init__(
        self, *, mounts: Mapping[str, Path] | None = None, target: Target = "native",
        limits: SnapshotLimits | None = None, jobs_max: int = 1,
    ) -> None:  # fmt: skip
        """`mounts` is the operator's allow-list. Raises ConfigError: nothing can run here."""
        try:
            self._library = str(library_path())
        except OSError as error:
            raise ConfigError(f"snapshots: {error}") from error
        self._mounts = {name: str(source) for name, source in (mounts or {}).items()}
        self._target = target
        self._limits = limits or SnapshotLimits()
        self._limiter = trio.CapacityLimiter(jobs_max)
        self._copies = trio.CapacityLimiter(jobs_max)

    def examine(self, module: bytes) -> Examination:
        return examine(module)

    async def make(
        self, module: bytes, plan: InitPlan, policy: Policy
    ) -> tuple[bytes, SnapshotReport]:
        if len(module) > MODULE_BYTES_MAX:
            most = MODULE_BYTES_MAX
            raise refuse("too-large", "module", f"has {len(module)} bytes; at most {most}")
        async with self._limiter:
            with _memory_file("module") as source, _memory_file("snapshot") as output:
                await trio.to_thread.run_sync(_write_all, source, module, limiter=self._copies)
                report = await self._run(source, output, plan, policy)
                made = await trio.to_thread.run_sync(_read_all, output, limiter=self._copies)
                return made, report

    async def write(
        self, module: Path, output: Path, plan: InitPlan, policy: Policy
    ) -> SnapshotReport:
        part = output.with_name(f"{output.name}.part")
        async with self._limiter:
            try:
                with _opened(module, os.O_RDONLY) as source, _opened(part, _NEW) as target:
                    report = await self._run(source, target, plan, policy)
                part.rename(output)
            finally:
                part.unlink(missing_ok=True)
        return report

    async def _run(
        self, source: int, output: int, plan: InitPlan, policy: Policy
    ) -> SnapshotReport:
        async with self._scratch(needed=bool(plan.files and policy.tmp_bytes)) as scratch:
            return await process.run(
                Job(
                    library=self._library,
                    target=self._target,
                    module_fd=source,
                    output_fd=output,
                    plan=plan,
                    policy=policy,
                    mounts=self._mounts,
                    scratch=scratch,
                    limits=self._limits,
                    fast=True,
                )
            )

    @asynccontextmanager
    async def _scratch(self, *, needed: bool) -> AsyncIterator[str]:
        """A directory for the initialiser's private /tmp: removed here, as the worker may be
        killed, and in a thread, as nothing but its quota bounds what is in it."""
        if not needed:
            yield ""
            return
        try:
            path = Path(tempfile.mkdtemp(prefix="edged-init-"))
        except OSError as error:
            raise DiskFull("no room for a private /tmp", private=str(error)) from error
        try:
            yield str(path)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(tmpdir.remove, path, limiter=self._copies)


def binary_of(module: bytes) -> bytes:
    """Of one's own WebAssembly text, as this process parses it; anything else stays as it is.
    Raises CannotSnapshot, ConfigError."""
    if not module.lstrip().startswith((b"(", b";;")):
        return module
    try:
        api = Api(library_path())
    except OSError as error:
        raise ConfigError(f"snapshots: {error}") from error
    binary = ByteVec()
    wrong = api.wasmtime_wat2wasm(module, len(module), ctypes.byref(binary))
    if wrong:
        raise refuse("malformed", "module", f"not WebAssembly text: {api.take_error(wrong)}")
    return api.take_bytes(binary)


def make_snapshot(
    module: bytes,
    plan: InitPlan | None = None,
    policy: Policy | None = None,
    *,
    mounts: Mapping[str, Path] | None = None,
    limits: SnapshotLimits | None = None,
    target: Target = "native",
) -> tuple[bytes, SnapshotReport]:
    """Blocking; not from within an event loop of trio's. Raises what Snapshots.make does, and
    ConfigError."""

    async def run() -> tuple[bytes, SnapshotReport]:
        snapshotter = Snapshotter(mounts=mounts, target=target, limits=limits)
        return await snapshotter.make(module, plan or InitPlan(), policy or Policy())

    return trio.run(run)


_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in SCARCITY:
            raise Overloaded("no descriptor is left for a snapshot", private=str(error)) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _memory_file(name: str) -> Iterator[int]:
    try:
        descriptor = os.memfd_create(f"edged-{name}", os.MFD_CLOEXEC)
    except OSError as error:
        raise Overloaded("no descriptor is left for a snapshot", private=str(error)) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_all(descriptor: int) -> bytes:
    size, parts, at = os.fstat(descriptor).st_size, [], 0
    while at < size:
        parts.append(os.pread(descriptor, size - at, at))
        at += len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)
