"""Makes one snapshot, in a process of its own (process.py starts it), and leaves.

stdin has a Job; stdout gets what is told of it; module and output are inherited descriptors. Exit
status 0 means that the last message says what happened, good or bad. A watchdog ends the process
over its memory bound or when its parent is gone.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final

from edged.errors import BadRequest, EdgedError
from edged.runtime.compile_worker import EXIT_MEMORY, limit_memory, watch_memory

from .errors import Malformed, refuse
from .instrument import Parts
from .messages import HEAD_BYTES, Done, Entered, Failed, Told, decode_job, failed, frame
from .pipeline import Progress, make

_BUFFER_BYTES: Final = 1024 * 1024


def main() -> None:
    size = int.from_bytes(sys.stdin.buffer.read(HEAD_BYTES), "little")
    job = decode_job(sys.stdin.buffer.read(size))
    memory_bytes = job.limits.memory_bytes + job.policy.memory_bytes
    limit_memory(memory_bytes)
    watch_memory(memory_bytes)
    progress = Progress(lambda phase: tell(Entered(phase)))
    answer: Done | Failed
    try:
        data = _map(job.module_fd)
        answer = Done(make(job, data, lambda parts: _write(parts, job.output_fd), progress))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except BadRequest as error:
        answer = failed(refuse("bad-arguments", "plan", str(error)))
    except EdgedError as error:
        answer = failed(error)
    tell(answer)
    os._exit(0)  # the engine's destructors would only cost time


def tell(message: Told) -> None:
    sys.stdout.buffer.write(frame(message))
    sys.stdout.buffer.flush()


def _map(descriptor: int) -> memoryview:
    if not os.fstat(descriptor).st_size:
        raise Malformed(0, "no bytes")
    return memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))


def _write(out: Parts, descriptor: int) -> None:
    with os.fdopen(descriptor, "wb", buffering=_BUFFER_BYTES, closefd=False) as file:
        for part in out.buffers():
            file.write(part)


if __name__ == "__main__":
    main()
