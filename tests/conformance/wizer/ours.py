"""edged's snapshots, hundreds of them: each in a process of its own, forked from one that is warm.

It is edged.snapshot's worker with all it does; only its start, most of a small module's 0.2 s of
CPU, happens once. What starts and watches the worker is tested by tests/unit/snapshot.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edged.errors import EdgedError
from edged.interfaces import InitPlan, SnapshotLimits, SnapshotReport
from edged.runtime.ffi import library_path
from edged.snapshot.messages import Done, Failed, Job, Messages, error_of, frame
from protocol.function import Policy

ROOT = Path(__file__).resolve().parents[3]
MODULE_FD, OUTPUT_FD = 10, 11
ANSWER_TIMEOUT_S = 100.0
POLICY = Policy(memory_bytes=4 << 30, timeout_ms=20_000)
FORGE = """
import fcntl, os, signal, socket, sys
sys.path.insert(0, sys.argv[1])
from edged.snapshot import worker
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
asked = socket.socket(fileno=int(sys.argv[2]))
while True:
    _data, descriptors, _flags, _address = socket.recv_fds(asked, 1, 4)
    if not descriptors:
        break
    if not os.fork():
        # First out of the way of the numbers they get.
        moved = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in descriptors]
        for old, new in zip(moved, (0, 1, 10, 11)):
            os.dup2(old, new)
        os.closerange(12, 200)
        worker.main()
    for each in descriptors:
        os.close(each)
"""


class Forge:
    """One warm process; `make` may be called as often as wanted, from one thread."""

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking
        self.made = 0

    def make(
        self, wasm: bytes, plan: InitPlan, policy: Policy = POLICY, *, target: str = "native",
        limits: SnapshotLimits | None = None, fast: bool = True,
    ) -> tuple[bytes, SnapshotReport]:  # fmt: skip
        """Raises what the worker tells: CannotSnapshot, InitTrapped, InitExited, InitTimeout."""
        module, output = os.memfd_create("module"), os.memfd_create("output")
        job_out, job_in = os.pipe()
        told_out, told_in = os.pipe()
        try:
            os.write(module, wasm)
            socket.send_fds(self._asking, [b"!"], [job_out, told_in, module, output])
            os.close(told_in)
            told_in = -1
            job = Job(
                library=str(library_path()), target=target, module_fd=MODULE_FD,
                output_fd=OUTPUT_FD, plan=plan, policy=policy, mounts={}, scratch="",
                limits=limits or SnapshotLimits(), fast=fast,
            )  # fmt: skip
            os.write(job_in, frame(job))
            told = last_of(told_out)
            self.made += 1
            if isinstance(told, Failed):
                raise error_of(told)
            return os.pread(output, os.fstat(output).st_size, 0), told.report
        finally:
            for each in (module, output, job_out, job_in, told_out, told_in):
                if each >= 0:
                    os.close(each)

    def outcome(self, wasm: bytes, plan: InitPlan, **options: object) -> bytes | EdgedError:
        try:
            return self.make(wasm, plan, **options)[0]  # type: ignore[arg-type]
        except EdgedError as error:
            return error


def last_of(descriptor: int) -> Done | Failed:
    """What the worker said at its end."""
    messages = Messages()
    told: object = "nothing said"
    while True:
        ready, _, _ = select.select([descriptor], [], [], ANSWER_TIMEOUT_S)
        assert ready, "the worker did not answer"
        data = os.read(descriptor, 1 << 20)
        if not data:
            break
        told = [told, *messages.receive(data)][-1]
    assert isinstance(told, Done | Failed), f"the worker crashed: {told}"
    return told


@contextmanager
def forge() -> Iterator[Forge]:
    ours, theirs = socket.socketpair()
    with closing(ours):
        with closing(theirs):
            process = subprocess.Popen(
                [sys.executable, "-c", FORGE, str(ROOT), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        try:
            yield Forge(ours)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
