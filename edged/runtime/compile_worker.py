"""What may blow up, in a process of its own: text to binary, validation, compilation.

Started as a script with the standard library only (fast), one job per process:
    compile_worker.py ROOT LIBRARY TARGET MEMORY_BYTES [standby]
stdin has the length of the job's fields in 8 hex digits, the fields with NUL between, and the
payload: wat or validate, with the module; fastest or optimise, with the files MODULE and OUTPUT, or
background, with those and the CPU seconds it may take. stdout gets one line, a Python literal,
then, for wat, the binary. Exit status 0 means that the line says what happened, good or bad;
anything else is a crash. A standby warms up and then waits for its job as long as stdin is open. At
work, a watchdog ends the process over its memory bound or when its parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # see ffi.py
    from typing import Any, Final

    from edged.interfaces import Tier
    from edged.runtime.ffi import Api

DETAIL_CHARS_MAX: Final = 2000
EXIT_MEMORY: Final = 86
"""The watchdog's exit status for a process over its memory bound."""
EXIT_ORPHAN: Final = 87
WATCH_S: Final = 0.05
BACKGROUND_NICE: Final = 10
"""A tenth of a normal process's share: behind everything, but never starved."""
FAST_CODE_BYTES_MIN: Final = 24 * 1024
"""Of a code section: below it the optimising compiler takes 50 ms or less (0.45 to 0.7 MB of code
per core-second), and compiling twice gains nothing."""
_CODE_SECTION: Final = 10
_EMPTY: Final = bytes.fromhex("0061736d01000000010401600000030201000a040102000b")
"""A module of one function that does nothing."""
MODULE_BYTES_MAX: Final = 256 * 1024 * 1024
MEMORY_BYTES_MIN_MAX: Final = 4 * 1024 * 1024 * 1024
"""The most a policy can grant."""
TABLE_ELEMENTS_MIN_MAX: Final = 10_000_000
MEMORIES_MAX: Final = 64
EXPORTS_MAX: Final = 20_000
IMPORTS_MAX: Final = 1000
"""WASI has 46 functions; a module may import one more than once."""
NAMES_CHARS_MAX: Final = 1024 * 1024
"""Of all imports and exports: they are held in memory and listed to operators."""


class Refused(Exception):
    """The module is refused: `reason` as in edged.errors.ModuleRejected."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def main(arguments: list[str]) -> None:
    root, library, target, memory_bytes, *standby = arguments
    limit_memory(int(memory_bytes))
    sys.path.insert(0, root)
    from edged.runtime.ffi import Api

    api = Api(library)
    if standby:
        _warm_up(api, target)
    fields = sys.stdin.buffer.read(int(sys.stdin.buffer.read(8) or b"0", 16))
    if not fields:
        os._exit(EXIT_ORPHAN)
    job, *rest = os.fsdecode(fields).split("\0")
    watch_memory(int(memory_bytes))
    payload = b""
    answer: dict[str, Any]
    try:
        if job == "wat":
            payload = _wat(api, sys.stdin.buffer.read())
            answer = {"bytes": len(payload)}
        elif job == "validate":
            answer = _validate(api, target, sys.stdin.buffer.read())
        else:
            answer = _compile(api, target, job, *rest)
    except Refused as error:
        answer = {"reason": error.reason, "detail": str(error)[:DETAIL_CHARS_MAX]}
    except MemoryError:
        os._exit(EXIT_MEMORY)
    sys.stdout.buffer.write(repr(answer).encode() + b"\n" + payload)
    sys.stdout.buffer.flush()
    os._exit(0)  # the engine's destructors would only cost time


def limit_memory(memory_bytes: int) -> None:
    """RLIMIT_DATA counts private writable pages, so it neither trips over reserved address space
    nor misses anything; the watchdog is for what is reported by name before that abort."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    slack = 128 * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes + slack, memory_bytes + slack))


def watch_memory(memory_bytes: int) -> None:
    parent = os.getppid()
    page_bytes = resource.getpagesize()

    def watch() -> None:
        while True:
            time.sleep(WATCH_S)
            with open("/proc/self/statm", "rb") as file:
                resident = int(file.read().split()[1]) * page_bytes
            if resident > memory_bytes:
                os._exit(EXIT_MEMORY)
            if os.getppid() != parent:
                os._exit(EXIT_ORPHAN)

    threading.Thread(target=watch, daemon=True).start()


def _engine(api: Api, target: str, tier: Tier = "optimised", *, parallel: bool = True) -> int:
    from edged.runtime.settings import new_config, parse_target

    config = new_config(api, parse_target(target), tier=tier, parallel=parallel)
    engine: int = api.wasm_engine_new_with_config(config)
    return engine


def _warm_up(api: Api, target: str) -> None:
    """What the first compile of a process does once: imports, the library's pages, its threads."""
    from edged.runtime import names  # noqa: F401 - kept in sys.modules
    from edged.runtime.settings import has_fast_tier, parse_target

    compiled = ctypes.c_void_p()
    for tier in ("fast", "optimised") if has_fast_tier(parse_target(target)) else ("optimised",):
        engine = _engine(api, target, tier)
        error = api.wasmtime_module_new(engine, _EMPTY, len(_EMPTY), ctypes.byref(compiled))
        if error:
            raise SystemExit(api.take_error(error))


def _wat(api: Api, text: bytes) -> bytes:
    from edged.runtime.ffi import ByteVec

    wasm = ByteVec()
    error = api.wasmtime_wat2wasm(text, len(text), ctypes.byref(wasm))
    if error:
        raise Refused("invalid", f"not WebAssembly text: {api.take_error(error)}")
    data: bytes = api.take_bytes(wasm)
    if len(data) > MODULE_BYTES_MAX:
        raise Refused("too-large", f"{len(data)} bytes; at most {MODULE_BYTES_MAX}")
    return data


def _validate(api: Api, target: str, wasm: bytes) -> dict[str, Any]:
    from edged.runtime.names import NamesRefused, check_names
    from edged.runtime.sections import Malformed, entry_points, summarize

    engine = _engine(api, target)
    error = api.wasmtime_module_validate(engine, wasm, len(wasm))
    if error:
        raise Refused("invalid", f"invalid module: {api.take_error(error)}")
    try:
        check_names(wasm)
        summary = summarize(wasm)
    except NamesRefused as refused:
        raise Refused("limits", str(refused)) from refused
    except Malformed as malformed:
        raise Refused("invalid", f"invalid module: {malformed}") from malformed
    foreign = []
    if len(summary.imports) <= IMPORTS_MAX:
        foreign = _check_imports(api, engine, summary)
    names = [f"{item.module}.{item.name}" for item in summary.imports]
    exports = [item.name for item in summary.exports]
    for name, value, most in (
        ("bytes of memory at start", summary.memory_bytes_min, MEMORY_BYTES_MIN_MAX),
        ("memories", summary.memories, MEMORIES_MAX),
        ("table elements at start", summary.table_elements_min, TABLE_ELEMENTS_MIN_MAX),
        ("tables", summary.tables, MEMORIES_MAX),
        ("exports", len(summary.exports), EXPORTS_MAX),
        ("imports", len(names), IMPORTS_MAX),
        ("characters of names", sum(map(len, [*names, *exports])), NAMES_CHARS_MAX),
    ):
        if value > most:
            raise Refused("limits", f"{value} {name}; at most {most}")
    return {
        "imports": names,
        "exports": exports,
        "entry_points": entry_points(summary),
        "memory_bytes_min": summary.memory_bytes_min,
        "table_elements_min": summary.table_elements_min,
        "foreign_imports": foreign,
    }


def _check_imports(api: Api, engine: int, summary: Any) -> list[tuple[str, str]]:
    """Those functions that are none of WASI's. Raises Refused."""
    from edged.runtime.ffi import EXTERN_FUNC, Extern

    linker = api.wasmtime_linker_new(engine)
    error = api.wasmtime_linker_define_wasi(linker)
    if error:
        raise SystemExit(api.take_error(error))
    store = api.wasmtime_store_new(engine, None, None)
    context = api.wasmtime_store_context(store)
    export = Extern()
    foreign = []
    for module, name, kind, type_index in summary.imports:
        title = f"{module}.{name}"
        if kind != "func":
            raise Refused("missing-import", f"{title}: a {kind} cannot be imported")
        texts = module.encode(), name.encode()
        found = api.wasmtime_linker_get(
            linker, context, texts[0], len(texts[0]), texts[1], len(texts[1]), ctypes.byref(export)
        )
        if not found or export.kind != EXTERN_FUNC:
            foreign.append((module, name))
            continue
        functype = api.wasmtime_func_type(context, ctypes.byref(export.of.func))
        expected = api.signature(functype)
        api.wasm_functype_delete(functype)
        if summary.types[type_index] != expected:
            raise Refused("missing-import", f"{title}: imported with another type than it has")
    return foreign


def _compile(
    api: Api, target: str, job: str, module: str, output: str, cpu_limit_s: str = ""
) -> dict[str, Any]:
    from edged.runtime.names import NamesRefused, check_names

    begin_s = cpu_s()
    if job == "background":
        _stand_back(int(cpu_limit_s))
    with open(module, "rb") as file:
        wasm = file.read()
    if wasm[:4] != b"\0asm":
        raise Refused("bad-magic", "not a WebAssembly binary")
    try:
        check_names(wasm)  # again: what another node accepted is no matter of trust here
    except NamesRefused as refused:
        raise Refused("error", str(refused)) from refused
    tier, compiled, why = _translate(api, target, job, wasm)
    size = _write(api, compiled, output)
    return {
        "artifact_bytes": size,
        "cpu_s": cpu_s() - begin_s,
        "peak_rss_bytes": peak_rss_bytes(),
        "tier": tier,
        "fast_refused": why,
    }


def _stand_back(limit_s: int) -> None:
    """Behind everything else on the machine; so its time is bounded in CPU seconds: SIGXCPU."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    os.nice(BACKGROUND_NICE)


def _translate(api: Api, target: str, job: str, wasm: bytes) -> tuple[Tier, int, str]:
    """The tier that was made, the wasmtime_module_t, and why the fast compiler refused, if it did:
    it does not know every feature that the optimising one does. Raises Refused."""
    why = ""
    compiled = ctypes.c_void_p()
    if job == "fastest" and code_bytes(wasm) >= FAST_CODE_BYTES_MIN:
        engine = _engine(api, target, "fast")
        error = api.wasmtime_module_new(engine, wasm, len(wasm), ctypes.byref(compiled))
        if not error:
            assert compiled.value is not None
            return "fast", compiled.value, ""
        why = api.take_error(error)[:DETAIL_CHARS_MAX]
    engine = _engine(api, target, parallel=job != "background")
    error = api.wasmtime_module_new(engine, wasm, len(wasm), ctypes.byref(compiled))
    if error:
        raise Refused("error", api.take_error(error))
    assert compiled.value is not None
    return "optimised", compiled.value, why


def code_bytes(wasm: bytes) -> int:
    """Size of the code section, as it claims; 0 without one."""
    from edged.runtime.sections import Malformed, Reader

    reader = Reader(wasm)
    try:
        reader.skip(8)
        while reader.at < len(wasm):
            section, size = reader.byte(), reader.number()
            if section == _CODE_SECTION:
                return size
            reader.skip(size)
    except Malformed:
        pass  # the compiler says it better
    return 0


def _write(api: Api, compiled: int, output: str) -> int:
    """Whole, or absent; the store makes it durable. The artifact's size. Raises Refused."""
    from edged.runtime.ffi import ByteVec

    image = ByteVec()
    error = api.wasmtime_module_serialize(compiled, ctypes.byref(image))
    if error:
        raise Refused("error", api.take_error(error))
    part = f"{output}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(part, flags, 0o600)
    view = memoryview((ctypes.c_char * image.size).from_address(image.data))
    while view:
        view = view[os.write(descriptor, view) :]
    os.close(descriptor)
    os.rename(part, output)
    return int(image.size)


def cpu_s() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_rss_bytes() -> int:
    """VmHWM, not ru_maxrss: the latter starts at what the parent had when it forked."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
