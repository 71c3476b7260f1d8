"""One module parsed, instrumented and rewritten by edged.snapshot, without compiling or running it.

    python _snapshot_rewrite.py MODULE OUTPUT
prints one line of JSON: CPU seconds by phase, and by how much this process grew at most. The memory
captured has the module's minimum, and in it what its data segments hold, one after the other: what
an initialiser adds to that is little beside a module of this size.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TIMEOUT_S = 120.0
STACK_BYTES = 1024 * 1024


def measure(module: Path, output: Path) -> dict[str, Any]:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(module), str(output)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    return {"module_bytes": module.stat().st_size} | json.loads(done.stdout)


def main(source: str, output: str) -> None:
    from edged.interfaces import InitCall, InitPlan
    from edged.runtime.compile_worker import peak_rss_bytes
    from edged.snapshot.examine import resolve
    from edged.snapshot.instrument import Names, instrument
    from edged.snapshot.parse import parse
    from edged.snapshot.rewrite import rewrite
    from edged.snapshot.segments import find_spans, lay_out
    from edged.snapshot.snapshot import Snapshot

    before, began_s = peak_rss_bytes(), time.process_time()
    at_s: dict[str, float] = {}

    def done(phase: str) -> None:
        nonlocal began_s
        now_s = time.process_time()
        at_s[phase] = round(now_s - began_s, 4)
        began_s = now_s

    with open(source, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    module = parse(data)
    done("parse")
    binary = b"".join(instrument(module, Names(module)))
    instrumented_bytes = len(binary)
    del binary
    done("instrument")
    memory = bytearray(module.memories[0].minimum << module.memories[0].page_bits)
    at = STACK_BYTES
    for segment in module.segments:
        payload = data[segment.payload.start : segment.payload.end]
        memory[at : at + len(payload)] = payload
        at += len(payload)
    began_s = time.process_time()  # what only this benchmark does
    view = memoryview(memory)
    page_bits = [module.memories[0].page_bits]
    layouts = lay_out(
        [find_spans(view)], page_bits, segments_max=50_000, padding_bytes_max=64 << 20
    )
    done("capture")
    taken = Snapshot([view], layouts, {}, frozenset(), frozenset())
    resolved = resolve(module, InitPlan(calls=(InitCall("_start"),)))
    out = rewrite(module, taken, resolved, keep_custom_sections=True)
    with open(output, "wb") as file:
        for part in out.buffers():
            file.write(part)
    done("rewrite")
    told = {
        "phases_cpu_s": at_s,
        "rewriting_cpu_s": round(sum(at_s.values()), 4),
        "grown_bytes": peak_rss_bytes() - before,
        "instrumented_bytes": instrumented_bytes,
        "written_bytes": os.stat(output).st_size,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
