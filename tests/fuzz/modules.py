"""Modules to make snapshots of: refused with a reason, or read and written down right.

What is mutated are the modules of the conformance tests with Wizer, and some that are hostile."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import wasmtime

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from snapshot_support import take, wat  # noqa: E402

from edged.errors import EdgedError  # noqa: E402
from edged.interfaces import InitPlan, SnapshotLimits  # noqa: E402
from edged.snapshot.api import examine  # noqa: E402
from edged.snapshot.binary import Budget, Reader, leb  # noqa: E402
from edged.snapshot.errors import REASONS  # noqa: E402
from edged.snapshot.instrument import Names, instrument  # noqa: E402
from edged.snapshot.parse import parse  # noqa: E402
from protocol.errors import RemoteProtocolError  # noqa: E402
from protocol.function import Policy  # noqa: E402

WIZER: Final = ROOT / "tests" / "conformance" / "wizer"
POLICY: Final = Policy(
    timeout_ms=100, memory_bytes=32 * 1024 * 1024, table_elements=10_000, stdout_bytes=1000
)
TOLD_CHARS_MAX: Final = 2000
HEADER: Final = b"\0asm\1\0\0\0"
EDGES: Final = (0x00, 0x01, 0x02, 0x0B, 0x3F, 0x40, 0x41, 0x60, 0x63, 0x70, 0x7B, 0x7F, 0x80, 0xFF)
"""Limits, an expression's begin and end, types, and what a LEB128 begins or goes on with."""
NUMBERS: Final = (b"\xff\xff\xff\xff\x0f", b"\x80\x80\x01", b"\x80\x00")
LIMITS: Final = SnapshotLimits(snapshot_bytes=4 * 1024 * 1024)
HOSTILE: Final = (
    # exports named like those that are added, and the adding's own prefix taken in several ways
    """(module (memory 1) (global (mut i32) (i32.const 0)) (start $go)
      (func $go (global.set 0 (i32.const 1)))
      (func (export "edged-snapshot-0:start")) (func (export "edged-snapshot-1:memory:0"))
      (func (export "edged-snapshot-")) (func (export "edged-snapshot-2"))
      (func (export "wizer.initialize") (i32.store8 (i32.const 9) (i32.const 9))))""",
    """(module (memory (export "memory") 1) (func (export "wizer.initialize")
      (loop (br_if 0 (i32.ne (memory.grow (i32.const 7)) (i32.const -1))))
      (memory.fill (i32.const 0) (i32.const 1) (i32.mul (memory.size) (i32.const 65536)))))""",
    """(module (memory (export "memory") 20 400) (table 10 9000 funcref) (elem (i32.const 1) $i)
      (func $i (export "wizer.initialize") (local $a i32)
      (loop (i32.store8 (local.get $a) (i32.const 1))
        (local.set $a (i32.add (local.get $a) (i32.const 129)))
        (br_if 0 (i32.lt_u (local.get $a) (i32.const 1310000))))))""",
    """(module (memory 1) (func $f (export "wizer.initialize") (call $f)))""",
    """(module (func (export "wizer.initialize") (loop (br 0))))""",
    """(module (memory 1) (func (export "_initialize") (i32.store (i32.const 0) (i32.const 1))
      unreachable))""",
    """(module (memory 1) (memory i64 1 9) (table i64 2 funcref)
      (data (memory 1) (i64.const 5) "abc") (data $q "passive")
      (elem $e funcref (ref.func $i)) (global (mut v128) (v128.const i64x2 1 2))
      (global i32 (i32.add (i32.const 3) (i32.mul (i32.const 2) (i32.const 4))))
      (data (offset (i32.add (i32.const 1) (i32.const 2))) "x")
      (func $i (export "wizer.initialize")
        (memory.init $q (i32.const 0) (i32.const 1) (i32.const 2)) (data.drop $q) (elem.drop $e)
        (i64.store 1 (i64.const 8) (i64.const -1)) (global.set 0 (v128.const i64x2 3 4))))""",
    """(module (tag $t (param i32)) (memory 1) (func (export "wizer.initialize")
      (i32.store (i32.const 8) (block $h (result i32) (try_table (catch $t $h)
        (throw $t (i32.const 5))) (i32.const 1))))
      (func (export "_initialize") (throw $t (i32.const 1))))""",
    """(module (table 3 externref) (table $x 2 exnref) (global (mut externref) (ref.null extern))
      (global (mut funcref) (ref.func $i))
      (func $i (export "wizer.initialize") (global.set 1 (ref.null func))))""",
    """(module (type $f (func)) (table 2 (ref null $f)) (elem declare func $i)
      (global (mut (ref null $f)) (ref.null $f))
      (func $i (export "wizer.initialize") (return_call $j)) (func $j))""",
    """(module (memory 1) (@custom "a" (before first) "x") (@custom "name" (after code) "\\00\\ff")
      (@custom "name" (after last) "\\01\\05\\01\\ff\\ff\\ff\\0f") (@custom "a" (after data) "")
      (func (export "wizer.initialize") (i32.store (i32.const 0) (i32.const 7))))""",
)


def corpus() -> list[bytes]:
    texts = [path.read_text() for path in sorted(WIZER.glob("*/*.wat"))]
    found = []
    for text in (*texts, *HOSTILE):
        try:
            found.append(wat(text))
        except wasmtime.WasmtimeError:
            continue  # of a proposal that this wasmtime's text format lacks
    return found


@cache
def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_memory64 = True
    config.wasm_exceptions = True
    config.wasm_threads = False
    return wasmtime.Engine(config)


def is_valid(module: bytes) -> bool:
    try:
        wasmtime.Module.validate(_engine(), module)
    except wasmtime.WasmtimeError:
        return False
    return True


def sections(module: bytes) -> list[tuple[int, bytes]]:
    """By id. Of a module of the corpus."""
    found, reader = [], Reader(memoryview(module), len(HEADER), len(module), Budget())
    while reader.at < reader.end:
        number, span = reader.byte(), reader.skip(reader.u32())
        found.append((number, module[span.start : span.end]))
    return found


def joined(parts: list[tuple[int, bytes]]) -> bytes:
    return HEADER + b"".join(bytes([each]) + leb(len(body)) + body for each, body in parts)


def stirred(seed: bytes, modules: Sequence[bytes]) -> bytes:
    """A module whose sections have sound sizes, and something wrong, or of another module, inside:
    of bytes that are changed anywhere few get past the first length."""
    rng = random.Random(seed)
    parts = sections(rng.choice(modules))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(parts)) if parts else 0
        deed = rng.random()
        if deed < 0.5 and parts:
            number, body = parts[at]
            parts[at] = (number, _changed(body, rng))
        elif deed < 0.7:
            others = sections(rng.choice(modules))
            if others:
                number, body = rng.choice(others)
                known = next((i for i, one in enumerate(parts) if one[0] == number), None)
                if known is None or not number:
                    parts.insert(rng.randrange(len(parts) + 1), (number, body))
                else:
                    parts[known] = (number, body)
        elif deed < 0.8 and parts:
            del parts[at]
        elif deed < 0.9 and parts:
            parts.insert(at, parts[rng.randrange(len(parts))])
        else:
            name = rng.choice((b"\x04name", b"\x00", b"\x7f", b"\x01\xff", b"\x08dylink.0"))
            parts.insert(at, (0, name + rng.randbytes(rng.randrange(9))))
    return joined(parts)


def _changed(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    match rng.randrange(4):
        case 0:
            return body[:at] + bytes([rng.choice(EDGES)]) + body[at + 1 :]
        case 1:
            return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
        case 2:
            return body[:at] + rng.choice(NUMBERS) + body[at + 1 :]
        case _:
            return body[:at] + body[at + rng.randrange(1, 4) :]


def refusing(act: Callable[[bytes], None], modules: Sequence[bytes]) -> Callable[[bytes], None]:
    """As the fuzzing wants it: what is a refusal with a known reason, and what is an error. What is
    no good input is made of it three times of four."""
    known = frozenset(modules)

    def run(data: bytes) -> None:
        if data not in known and data[-1:] > b"\x40":
            data = stirred(data, modules)
        try:
            act(data)
        except EdgedError as error:
            if error.extra.get("reason", "gc") not in REASONS or len(str(error)) > TOLD_CHARS_MAX:
                raise
            raise RemoteProtocolError("snapshot", str(error)) from error

    return run


def read(data: bytes) -> None:
    """Examining never fails; what is valid stays so with what is added to it."""
    found = examine(data)
    module = parse(memoryview(data))
    assert found.refusal is None or found.refusal.reason not in ("malformed", "component")
    instrumented = b"".join(instrument(module, Names(module)))
    again = parse(memoryview(instrumented))
    assert again.start is None
    assert set(module.exports) <= set(again.exports)
    assert again.function_types[: len(module.function_types)] == module.function_types
    assert is_valid(instrumented) or not is_valid(data)


def make(data: bytes) -> None:
    """A snapshot is a valid module, the same each time, and can be read again."""
    made, report = take(data, InitPlan(), POLICY, limits=LIMITS)
    assert is_valid(made)
    assert len(made) == report.snapshot_bytes <= LIMITS.snapshot_bytes
    again, _ = take(data, InitPlan(), POLICY, limits=LIMITS)
    assert again == made
    parse(memoryview(made))
