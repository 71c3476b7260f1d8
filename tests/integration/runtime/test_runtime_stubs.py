"""Imports that no node has: linked where the function's init names them, and fatal when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import wasmtime

from edged.errors import ArtifactRefused, CannotSnapshot, ImportCalled, ModuleRejected
from edged.interfaces import InitPlan, Invocation
from edged.runtime.relay import WASI
from edged.runtime.stubs import OFFERED, TITLE_CHARS_MAX
from edged.snapshot.api import Snapshotter
from protocol.function import InitCall, InitSpec, Policy

if TYPE_CHECKING:
    from conftest import Lab

LONG = "n" * 1000
GUEST = f"""(module
  (import "host" "eval: func(code: string)" (func $eval (param i32 v128 f64) (result i64 funcref)))
  (import "host" "{LONG}" (func $long))
  (import "{WASI}" "fork" (func $fork (result i32)))
  (import "{WASI}" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  (global $ready (mut i32) (i32.const 0))
  (func (export "wizer.initialize") (global.set $ready (i32.const 1)))
  (func (export "asks") (drop (drop
    (call $eval (i32.const 1) (v128.const i64x2 1 2) (f64.const 3)))))
  (func (export "long") (call $long))
  (func (export "forks") (drop (call $fork)))
  (func (export "_start") (drop (call $yield))
    (if (i32.eqz (global.get $ready)) (then unreachable))))
"""
STUBS = ("host", WASI)
INIT = InitSpec(stubs=STUBS)


def test_what_is_offered_is_had() -> None:
    linker = wasmtime.Linker(wasmtime.Engine())
    linker.define_wasi()
    store = wasmtime.Store(linker.engine)
    assert all(linker.get(store, WASI, name) is not None for name in OFFERED)


@pytest.mark.parametrize("policy", [Policy(), Policy(tmp_bytes=65_536)], ids=["plain", "with /tmp"])
async def test_a_stub_is_there_and_traps_by_name(lab: Lab, policy: Policy) -> None:
    written, _ = await Snapshotter().make(
        await lab.runtime.parse(GUEST.encode()), InitPlan(files=False), Policy()
    )
    called = {"asks": "host.eval: func(code: string)", "forks": f"{WASI}.fork"}
    for module, init in (
        (await lab.load(GUEST), INIT),
        (await lab.load_wasm(written), None),
    ):
        await lab.run(module, Invocation(policy, init=init, stubs=STUBS))
        for export, title in called.items():
            with pytest.raises(ImportCalled) as caught:
                await lab.run(module, Invocation(policy, init=init, stubs=STUBS, entrypoint=export))
            assert title in str(caught.value)
            assert caught.value.extra["import"] == title
            assert "wasm backtrace" in caught.value.private
        with pytest.raises(ImportCalled) as caught:
            await lab.run(module, Invocation(policy, init=init, stubs=STUBS, entrypoint="long"))
        assert len(caught.value.extra["import"]) == TITLE_CHARS_MAX
        await lab.run(module, Invocation(policy, init=init, stubs=STUBS))


@pytest.mark.parametrize("stubs", [(), ("host",), ("wasi",), ("hos", WASI)])
async def test_without_being_named_none_is_there(lab: Lab, stubs: tuple[str, ...]) -> None:
    module = await lab.load(GUEST)
    with pytest.raises(ModuleRejected) as caught:
        await lab.run(module, Invocation(Policy(), init=INIT, stubs=stubs))
    assert caught.value.reason == "missing-import"


async def test_an_init_that_calls_one_fails_wherever_it_runs(lab: Lab) -> None:
    init = InitSpec((InitCall("asks"),), stubs=STUBS)
    with pytest.raises(ImportCalled, match="eval"):
        await lab.run(await lab.load(GUEST), Invocation(Policy(), init=init, stubs=STUBS))
    wasm = await lab.runtime.parse(GUEST.encode())
    with pytest.raises(CannotSnapshot, match="eval") as caught:
        await Snapshotter().make(wasm, InitPlan(init="asks", files=False), Policy())
    assert caught.value.reason == "import-called"


async def test_only_functions_of_other_names_can_be_stubbed(lab: Lab) -> None:
    for text in (
        '(module (import "host" "memory" (memory 1)))',
        '(module (import "host" "number" (global i32)))',
        f'(module (import "{WASI}" "fd_write" (func)))',
    ):
        with pytest.raises(ArtifactRefused):
            await lab.load(text)
