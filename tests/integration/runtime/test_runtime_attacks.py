"""Guests that take what belongs to the node: its descriptors, its GIL, its words."""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from test_runtime_compile import MIB, hello_wasm, workers
from test_runtime_files import BOTH, FD, FD2, MOUNT, OK, TMP
from wasi_script import (
    CREATE,
    DIRECTORY,
    READ,
    RIGHTS,
    SLOTS,
    call,
    errnos,
    open_file,
    script,
    write,
)

from edged.errors import (
    CompileFailed,
    DeadlineExceeded,
    GuestTrap,
    ModuleRejected,
    Overloaded,
    PolicyDenied,
)
from edged.interfaces import CancelFlag, Invocation
from edged.runtime.descriptors import EMFILE, ENFILE, OPENS_MAX
from edged.runtime.names import NAME_BYTES_MAX
from protocol.function import Policy

INSIDE = open_file(SLOTS, "inside.txt", rights=READ)
DIRECTORY_ITSELF = call("path_open", 3, 0, ".", DIRECTORY, READ, RIGHTS, 0, SLOTS)
CREATED = open_file(SLOTS, "f", oflags=CREATE)


# ------------------------------------------------------------ descriptors
def descriptors_held(lab, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process's, each time an invocation is about to end."""
    held: list[int] = []
    api = lab.runtime._api
    delete = api.wasmtime_store_delete

    def counting(store: int) -> None:
        held.append(len(os.listdir("/proc/self/fd")))
        delete(store)

    monkeypatch.setattr(api, "wasmtime_store_delete", counting)
    return held


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        (MOUNT, INSIDE),
        (MOUNT, DIRECTORY_ITSELF),
        (TMP, CREATED),
        (TMP, DIRECTORY_ITSELF),
        (BOTH, INSIDE),
    ],
)
async def test_a_guest_gets_so_many_descriptors(lab, monkeypatch, policy, step):
    guest = script(step, repeat=500)
    await lab.load(guest)
    held, left = descriptors_held(lab, monkeypatch), lab.runtime._host.descriptors.left
    before = len(os.listdir("/proc/self/fd"))
    result = await lab.invoke(guest, Invocation(policy=policy))
    assert errnos(result.stderr) == (EMFILE,)
    # And the granted directories, and what wasmtime keeps from the first file of a process on.
    assert held[0] <= before + OPENS_MAX + 16
    assert lab.runtime._host.descriptors.left == left
    enough = script(step, repeat=OPENS_MAX)
    result = await lab.invoke(enough, Invocation(policy=policy))
    assert errnos(result.stderr) == (OK,)


@pytest.mark.parametrize("policy", [MOUNT, TMP])
async def test_closing_gives_back(lab, policy):
    made = CREATED if policy is TMP else INSIDE
    for steps in (
        (made, call("fd_close", FD)),
        # The second descriptor takes the first one's number, which closes the first.
        (
            made,
            open_file(SLOTS + 4, "." if policy is MOUNT else "f", rights=READ),
            call("fd_renumber", FD2, FD),
            call("fd_close", FD),
        ),
    ):
        result = await lab.invoke(script(*steps, repeat=500), Invocation(policy=policy))
        assert errnos(result.stderr) == (OK,) * len(steps)


async def test_closing_what_was_granted_gives_nothing(lab):
    """Standard streams and the mount are not the guest's openings."""
    steps = (*[INSIDE] * OPENS_MAX, *[call("fd_close", fd) for fd in (0, 1, 3)], INSIDE)
    result = await lab.invoke(script(*steps), Invocation(policy=MOUNT))
    assert errnos(result.stderr)[-4:] == (OK, OK, OK, EMFILE)


async def test_all_guests_together_get_a_share(lab, monkeypatch):
    monkeypatch.setattr(lab.runtime._host.descriptors, "_left", 2)
    result = await lab.invoke(script(INSIDE, INSIDE, INSIDE), Invocation(policy=MOUNT))
    assert errnos(result.stderr) == (OK, OK, ENFILE)
    assert lab.runtime._host.descriptors.left == 2


@pytest.mark.parametrize("slot", [SLOTS + 1, -1])
async def test_an_opening_that_cannot_be_told_ends_the_guest(lab, slot):
    left = lab.runtime._host.descriptors.left
    for policy in (MOUNT, TMP):
        step = open_file(slot, "inside.txt" if policy is MOUNT else "f", oflags=0, rights=READ)
        if policy is TMP:
            step = open_file(slot, "f", oflags=CREATE)
        with pytest.raises(GuestTrap) as caught:
            await lab.invoke(script(step), Invocation(policy=policy))
        assert "Pointer" in caught.value.private
    assert lab.runtime._host.descriptors.left == left


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The next one this process asks for is refused."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_descriptors_nothing_escapes_as_oserror(lab, tmp_path):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    wasm = await hello_wasm(lab)
    module.write_bytes(wasm)
    hello = script(write(1, "x"))
    await lab.load(hello)
    with no_descriptors():
        with pytest.raises(Overloaded):
            await lab.runtime.compile(module, output)
        with pytest.raises(Overloaded):
            await lab.runtime.validate(wasm)
        with pytest.raises(Overloaded):
            await lab.runtime.parse(b"(module)")
        with pytest.raises(Overloaded):
            await lab.invoke(hello, Invocation(policy=MOUNT))
    assert list(tmp_path.iterdir()) == [module]
    await lab.runtime.compile(module, output)


async def test_a_worker_that_cannot_be_started_is_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(CompileFailed) as caught:
        await workers().run("validate", stdin=b"x")
    assert caught.value.reason == "crash"


async def test_a_worker_that_says_nothing_is_a_crash(monkeypatch, tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    with pytest.raises(CompileFailed) as caught:
        await workers().run("validate", stdin=b"x")
    assert caught.value.reason == "crash"


# ------------------------------------------------------------ words
RANDOM = '(import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32)))'
NO_MEMORY = "(drop (call $r (i32.const 0) (i32.const 8)))"
"""Fails in the host: the guest exports no memory."""


def named(name: str, body: str, imports: str = "") -> str:
    """A guest that exports `run`, called `name` in its name section."""
    return (
        f'(module {imports} (func (export "_start") (call $f)) (func $f (@name "{name}") {body}))'
    )


@pytest.mark.parametrize(
    "name",
    [
        "memory count too high at 33",
        "table count too high at 33",
        "maximum concurrent core instance limit of 1 reached",
        "os error 12",
        "memory minimum size of 9 pages exceeds memory limits",
        "exceeds table limits",
        "\\n\\nCaused by:\\n    maximum concurrent",
    ],
)
async def test_a_functions_name_is_not_the_hosts_word(lab, name):
    for body in ("unreachable", NO_MEMORY):
        guest = named(name, body, RANDOM)
        with trio.fail_after(30), pytest.raises(GuestTrap):
            await lab.start(guest)
        start = guest.replace('(func (export "_start") (call $f))', "(start $f)")
        with trio.fail_after(30), pytest.raises(GuestTrap):
            await lab.start(start.replace("(start $f)", '(start $f) (func (export "_start"))'))


async def test_too_many_memories_are_refused_once(lab):
    with trio.fail_after(30), pytest.raises(PolicyDenied, match="64"):
        await lab.start(f'(module {"(memory 0)" * 65} (func (export "_start")))')


async def test_names_are_told_as_they_are_and_cut(lab):
    with pytest.raises(GuestTrap) as caught:
        await lab.start(named("x", "unreachable"))
    assert "function 1 x" in caught.value.private  # not the C++ for "long long"
    with pytest.raises(GuestTrap) as caught:
        await lab.start(named("a" * 50_000, NO_MEMORY, RANDOM))
    assert len(caught.value.private) < 1000
    with pytest.raises(GuestTrap) as caught:
        await lab.start(named("short", NO_MEMORY, RANDOM))
    assert "missing required memory export" in caught.value.private
    assert "function 2 short" in caught.value.private


async def test_a_name_that_doubles_when_demangled(lab):
    """A<a>, A<A<a>, A<a>> …: 40 doublings in 400 characters."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    numbers = [*digits, *(f"1{digit}" for digit in digits)]
    levels = "".join(f"S_IS{numbers[i]}_S{numbers[i]}_E" for i in range(1, 41))
    bomb = "_Z1f1AI1aE" + levels
    for body in ("unreachable", NO_MEMORY):
        with trio.fail_after(30), pytest.raises(GuestTrap) as caught:
            await lab.start(named(bomb, body, RANDOM))
        assert bomb[:100] in caught.value.private
        assert len(caught.value.private) < 1000


async def test_long_names_are_refused(lab, tmp_path):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    wasm = await lab.runtime.parse(named("n" * (NAME_BYTES_MAX + 1), "unreachable").encode())
    with pytest.raises(ModuleRejected, match="name") as caught:
        await lab.runtime.validate(wasm)
    assert caught.value.reason == "limits"
    module.write_bytes(wasm)
    with pytest.raises(CompileFailed, match="name"):
        await lab.runtime.compile(module, output)
    assert list(tmp_path.iterdir()) == [module]
    fits = await lab.runtime.parse(named("n" * NAME_BYTES_MAX, "unreachable").encode())
    await lab.runtime.validate(fits)


# ------------------------------------------------------------ the GIL
TALKER = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $c (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $p (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "_start")
    (loop $l (drop (call $w (i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 100000)))
      (br $l)))
  (func (export "close") (loop $l (drop (call $c (i32.const 77))) (br $l)))
  (func (export "poll") (local $i i32)
    (loop $l (drop (call $p (i32.const 0) (i32.const 64) (i32.const 256) (i32.const 100000)))
      (br $l)))
  (func (export "once") (result i32)
    (i32.store offset=4 (i32.const 0) (i32.const 3))
    (i32.store offset=12 (i32.const 0) (i32.const 3))
    (i32.store offset=132 (i32.const 0) (i32.const 3))
    (drop (call $w (i32.const 1) (i32.const 0) (i32.const 40) (i32.const 100000)))
    (i32.load (i32.const 100000))))"""


async def test_a_write_takes_sixteen_pieces(lab):
    result = await lab.export(TALKER, "once")
    assert (result.values, len(result.stdout)) == ((6,), 6)


@pytest.mark.parametrize("entry", ["_start", "close", "poll"])
async def test_the_event_loop_has_its_turns(lab, entry):
    """Counts turns, not seconds: without a gate fd_write and poll_oneoff left it fewer."""
    module, turns, ended = await lab.load(TALKER), 0, list[str]()

    def run() -> None:
        call = Invocation(policy=Policy(timeout_ms=500), entrypoint=entry)
        try:
            module.invoke(call, CancelFlag())
        except DeadlineExceeded:
            ended.append("deadline")

    # Not trio's: those would stay for ten seconds, and other tests count threads.
    threads = [threading.Thread(target=run) for _ in range(24)]
    for thread in threads:
        thread.start()
    with trio.fail_after(60):
        while not ended:
            await trio.sleep(0.001)
            for _ in range(20):  # each gives up the GIL and takes it again, as a socket does
                os.stat("/")
            turns += 1
    for thread in threads:
        thread.join(30)
    assert ended == ["deadline"] * 24
    assert turns >= 10


async def test_host_calls_notice_cancellation_and_deadline(lab, monkeypatch):
    """Even if no epoch ever passes."""
    monkeypatch.setattr(lab.runtime._tiers[lab.tier].first.ticker, "_tick", lambda: None)
    call = Invocation(policy=Policy(timeout_ms=100))
    with trio.fail_after(30), pytest.raises(DeadlineExceeded):
        await lab.invoke(TALKER, call)


async def test_many_lines_arrive_whole(lab):
    result = await lab.export("streams", "write", 1, 40, 5000, policy=Policy(stdout_bytes=MIB))
    assert (len(result.stdout), result.values) == (200_000, (0,))
