"""Making snapshots in this process, and looking at instances from outside: by wasmtime's own
Python bindings, with which nothing in edged.snapshot is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import wasmtime

from edged.interfaces import InitPlan, SnapshotLimits, SnapshotReport
from edged.runtime.ffi import library_path
from edged.snapshot.messages import Job
from edged.snapshot.pipeline import Progress, make
from protocol.function import Policy


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def take(
    module: bytes | str,
    plan: InitPlan | None = None,
    policy: Policy | None = None,
    *,
    limits: SnapshotLimits | None = None,
    fast: bool = False,
    mounts: dict[str, str] | None = None,
    scratch: str = "",
    target: str = "native",
) -> tuple[bytes, SnapshotReport]:
    """As the worker does it."""
    job = Job(
        library=str(library_path()), target=target, module_fd=-1, output_fd=-1,
        plan=plan or InitPlan(), policy=policy or Policy(), mounts=mounts or {}, scratch=scratch,
        limits=limits or SnapshotLimits(), fast=fast,
    )  # fmt: skip
    data = wat(module) if isinstance(module, str) else module
    out = bytearray()
    report = make(
        job, memoryview(data), lambda parts: out.extend(b"".join(parts.buffers())),
        Progress(lambda _phase: None),
    )  # fmt: skip
    assert report.snapshot_bytes == len(out)
    return bytes(out), report


def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_memory64 = True
    config.wasm_multi_memory = True
    return wasmtime.Engine(config)


@dataclass
class Seen:
    """An instance of a module whose imports are WASI's, as its exports show it."""

    instance: wasmtime.Instance
    store: wasmtime.Store
    values: dict[str, Any] = field(default_factory=dict)

    def call(self, name: str, *args: Any) -> Any:
        """The result, or "trap"."""
        function = self.instance.exports(self.store)[name]
        assert isinstance(function, wasmtime.Func)
        try:
            return function(self.store, *args)
        except wasmtime.Trap:
            return "trap"

    def state(self) -> dict[str, Any]:
        """Of all exported memories and number globals, by name."""
        found: dict[str, Any] = {}
        for name, each in self.instance.exports(self.store).items():
            if isinstance(each, wasmtime.Memory):
                found[name] = bytes(each.read(self.store))
            elif isinstance(each, wasmtime.Global):
                found[name] = repr(each.value(self.store))
        return found


def look(module: bytes, on: wasmtime.Engine | None = None) -> Seen:
    on = on or engine()
    store = wasmtime.Store(on)
    store.set_wasi(wasmtime.WasiConfig())
    linker = wasmtime.Linker(on)
    linker.define_wasi()
    return Seen(linker.instantiate(store, wasmtime.Module(on, module)), store)
