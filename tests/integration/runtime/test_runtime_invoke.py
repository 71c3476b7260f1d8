"""What a well-behaved guest gets: its output, its arguments, its exports."""

from __future__ import annotations

import math

import pytest
import trio

from edged.errors import BadRequest, GuestExit, ModuleRejected, PolicyDenied
from edged.interfaces import CancelFlag, ExportCall, Invocation
from protocol.function import Mount, Policy

ECHO = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $as (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $ag (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $es (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $eg (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $r (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func $put (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $length))
    (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "_start")
    (drop (call $as (i32.const 16) (i32.const 20)))
    (drop (call $ag (i32.const 1024) (i32.const 65536)))
    (call $put (i32.const 65536) (i32.load (i32.const 20)))
    (drop (call $es (i32.const 16) (i32.const 20)))
    (drop (call $eg (i32.const 1024) (i32.const 65536)))
    (call $put (i32.const 65536) (i32.load (i32.const 20)))
    (loop $more
      (i32.store (i32.const 0) (i32.const 131072)) (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $r (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8))
        (then (call $put (i32.const 131072) (i32.load (i32.const 8))) (br $more))))))
"""


async def test_hello(lab):
    result = await lab.start("hello")
    assert (result.stdout, result.stderr, result.stderr_truncated) == (b"hello", b"", False)
    assert result.values == ()
    assert result.instantiate_s > 0
    assert result.run_s > 0


async def test_arguments_environment_and_stdin_arrive_as_bytes(lab):
    body = bytes(range(256)) * 1000
    call = Invocation(
        policy=Policy(),
        args=(b"f", "snö".encode(), b"", b"a b\r\n"),
        env=((b"QUERY_STRING", b"a=1&b=\r\n"), (b"EMPTY", b"")),
        stdin=body,
    )
    result = await lab.invoke(ECHO, call)
    expected = "f\0snö\0\0a b\r\n\0".encode() + b"QUERY_STRING=a=1&b=\r\n\0EMPTY=\0" + body
    assert result.stdout == expected


async def test_nothing_given_is_nothing_seen(lab):
    assert (await lab.start(ECHO)).stdout == b""


async def test_policy_environment_wins_over_the_request(lab):
    call = Invocation(
        policy=Policy(env={"SECRET": "operator"}),
        env=((b"SECRET", b"client"), (b"OTHER", b"1")),
    )
    assert (await lab.invoke(ECHO, call)).stdout == b"SECRET=operator\0OTHER=1\0"


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        ((b"a\0b",), (), "NUL"),
        ((b"\xff",), (), "UTF-8"),
        ((b"x",) * 5000, (), "arguments"),
        ((), ((b"A=B", b"1"),), "'='"),
        ((), ((b"", b"1"),), "empty"),
        ((), ((b"A\0", b"1"),), "NUL"),
        ((), ((b"A", b"1\0"),), "NUL"),
        ((), ((b"A", b"\xff"),), "UTF-8"),
        ((), ((b"A", b"1"),) * 5000, "variables"),
    ],
)
async def test_what_no_guest_may_be_given(lab, args, env, says):
    with pytest.raises(BadRequest, match=says):
        await lab.invoke(ECHO, Invocation(policy=Policy(), args=args, env=env))
    assert (await lab.invoke(ECHO, Invocation(policy=Policy(), args=(b"ok",)))).stdout == b"ok\0"


@pytest.mark.parametrize(
    ("name", "params", "values"),
    [
        ("add_numbers", ("5", "10"), (15,)),
        ("add_numbers", ("-1", "4294967295"), (-2,)),
        ("reverseSub", ("10", "3"), (3, 10, 7)),
        ("i64", ("18446744073709551615",), (-1,)),
        ("i64", ("-9223372036854775808",), (-(2**63),)),
        ("f32", ("0.5",), (0.5,)),
        ("f32", ("-inf",), (-math.inf,)),
        ("f64", ("1e308",), (1e308,)),
        ("all", ("1", "2", "3.5", "4.25"), (4.25, 3.5, 2, 1)),
        ("nothing", (), ()),
    ],
)
async def test_export_calls(lab, name, params, values):
    assert (await lab.export("numbers", name, *params)).values == values


async def test_nan_comes_back_as_nan(lab):
    (value,) = (await lab.export("numbers", "f64", "nan")).values
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("add_numbers", ("5",), "takes 2 parameters"),
        ("add_numbers", ("5", "ten"), "parameter 2"),
        ("add_numbers", ("4294967296", "1"), "does not fit i32"),
        ("f32", ("1e39",), "does not fit f32"),
        ("vector", ("1",), "only numbers"),
        ("reference", (), "not a number"),
    ],
)
async def test_export_calls_refused(lab, name, params, says):
    with pytest.raises(BadRequest, match=says):
        await lab.export("numbers", name, *params)


async def test_export_params(lab):
    module = await lab.load("numbers")
    assert module.export_params("all") == ("i32", "i64", "f32", "f64")
    assert module.export_params("vector") == ("other",)
    assert module.export_params("nothing") == ()
    assert module.export_params("absent") is None
    assert (await lab.load("hello")).export_params("memory") is None
    assert (await lab.load("hello")).imports == ("wasi_snapshot_preview1.fd_write",)


async def test_a_missing_export_is_named(lab):
    with pytest.raises(ModuleRejected, match="'absent'") as caught:
        await lab.export("numbers", "absent")
    assert caught.value.reason == "missing-export"
    with pytest.raises(ModuleRejected, match="_start"):
        await lab.start("numbers")
    with pytest.raises(ModuleRejected, match="takes parameters"):
        await lab.invoke("numbers", Invocation(policy=Policy(), entrypoint="add_numbers"))


async def test_a_reactor_is_initialised_first_and_afresh(lab):
    for _ in range(3):
        assert (await lab.export("reactor", "answer")).values == (42,)


async def test_a_guest_reseeds_itself_in_each_instance(lab):
    for _ in range(2):
        assert (await lab.export("reseed", "answer")).values == (42,)
    assert (await lab.invoke("reseed", Invocation(policy=Policy()))).stdout == b""  # _start: alone
    assert (await lab.export("reseed", "edged.reseed")).values == ()


async def test_another_entry_point(lab):
    call = Invocation(policy=Policy(), entrypoint="nothing")
    assert (await lab.invoke("numbers", call)).values == ()
    # Results of an entry point have room and are dropped.
    result = await lab.invoke("reactor", Invocation(policy=Policy(), entrypoint="answer"))
    assert result.values == ()


@pytest.mark.parametrize("status", [1, 125, 126, 134, 255, 2**31, 2**32 - 1])
async def test_exit_status(lab, status):
    with pytest.raises(GuestExit) as caught:
        await lab.export("exit", "exit", status)
    assert caught.value.extra["exit_status"] == status
    assert caught.value.stderr == b"about to fail\n"


async def test_exit_with_zero_is_success(lab):
    assert (await lab.start("exit")).stdout == b""
    assert (await lab.export("exit", "exit", 0)).stderr == b"about to fail\n"


async def test_an_unknown_mount_is_denied(lab):
    policy = Policy(mounts=(Mount(source="nowhere", guest_path="/data"),))
    with pytest.raises(PolicyDenied, match="nowhere"):
        await lab.invoke("hello", Invocation(policy=policy))


async def test_memory_above_the_pools_runs_on_demand(lab):
    result = await lab.start("hello", memory_bytes=1024 * 1024 * 1024)
    assert result.stdout == b"hello"
    result = await lab.start("hello", table_elements=5_000_000)
    assert result.stdout == b"hello"


async def test_many_threads_at_once(lab):
    """Each thread has its own call; outputs never mix."""
    module = await lab.load(ECHO)
    wrong = []

    def many(index: int) -> None:
        body = b"%d" % index * 50
        call = Invocation(policy=Policy(), stdin=body)
        for _ in range(100):
            if module.invoke(call, CancelFlag()).stdout != body:
                wrong.append(index)
                return

    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(trio.to_thread.run_sync, many, index)
    assert wrong == []


async def test_export_with_trap_is_not_confused_with_a_plain_call(lab):
    call = Invocation(policy=Policy(), export=ExportCall("add_numbers", ("1", "2")))
    assert (await lab.invoke("numbers", call)).values == (3,)
