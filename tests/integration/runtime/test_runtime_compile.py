"""Parsing, validation and compilation in worker processes, and loading what they make."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
from children import all_children
from slow_module import slow_module

from edged.config import RuntimeSection
from edged.errors import ArtifactRefused, CompileFailed, ConfigError, ModuleRejected
from edged.interfaces import CancelFlag, Invocation
from edged.runtime import runtime as runtime_module
from edged.runtime.compile import Workers
from edged.runtime.ffi import library_path
from edged.runtime.runtime import open_runtime
from edged.telemetry import make_log
from protocol.function import Policy
from protocol.ids import Digest, digest_of

ROOT = Path(__file__).parents[3]
HELLO = (ROOT / "tests/fixtures/wat/hello.wat").read_bytes()
MIB = 1024 * 1024


def alive(pid: int) -> bool:
    """False for a zombie too: its command line is empty."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


async def hello_wasm(lab) -> bytes:
    wasm = await lab.runtime.parse(HELLO)
    assert wasm[:4] == b"\0asm"
    return wasm


async def test_validate_hashes_beside_the_event_loop(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB take 150 ms, in which no request would be answered."""
    threads: list[int] = []

    def watched(data: bytes) -> Digest:
        threads.append(threading.get_ident())
        return digest_of(data)

    wasm = await hello_wasm(lab)
    monkeypatch.setattr(runtime_module, "digest_of", watched)
    assert (await lab.runtime.validate(wasm)).digest == digest_of(wasm)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_a_text_behind_too_many_comments_is_refused(lab) -> None:
    for fill in (b" ", b";;\n", b"(;;)"):
        near = fill * (30_000 // len(fill)) + b"(module)"
        assert (await lab.runtime.parse(near)).startswith(b"\0asm")
        with pytest.raises(ModuleRejected) as caught:
            await lab.runtime.parse(fill * (70_000 // len(fill)) + b"(module)")
        assert caught.value.reason == "bad-magic"


async def test_text_becomes_binary_and_binary_stays(lab):
    wasm = await hello_wasm(lab)
    assert await lab.runtime.parse(wasm) is wasm
    assert (await lab.runtime.parse(b" ;; a comment\n(; another ;)\n(module)"))[:4] == b"\0asm"


async def test_validation_reports(lab):
    info = await lab.runtime.validate(await hello_wasm(lab))
    assert info.imports == ("wasi_snapshot_preview1.fd_write",)
    assert info.exports == ("memory", "_start")
    assert info.digest == digest_of(await hello_wasm(lab))


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b"", "bad-magic", "neither"),
        (b"\x7fELF\x02\x01\x01", "bad-magic", "ELF"),
        (b"#!/bin/sh\n", "bad-magic", "#!/bin/sh"),
        (b"(modul", "bad-magic", "modul"),
        (b";; only a comment", "bad-magic", "neither"),
        (b"(; open comment", "bad-magic", "neither"),
        (b"\xff\xfe(\0m\0", "bad-magic", "neither"),
        (b"\0asm", "invalid", "header"),
        (b"\0asm\x02\0\0\0", "invalid", "version"),
        (b"\0asm\x0d\0\x01\0", "component", "components"),
        (b"(component)", "component", "components"),
        (b"(module (func (export", "invalid", "text"),
        (b"(module (unknown))", "invalid", "unknown"),
        (b"(module \xff)", "invalid", "text"),
        (b"(module (func " + b"(block " * 200_000, "invalid", ""),
    ],
)
async def test_what_parse_refuses(lab, data, reason, says):
    with pytest.raises(ModuleRejected) as caught:
        await lab.runtime.parse(data)
    assert (caught.value.reason, says in str(caught.value)) == (reason, True)


WASI = '(import "wasi_snapshot_preview1"'


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("(module (func (result i32)))", "invalid", "type mismatch"),
        ("(module (memory 1 1 shared))", "invalid", "threads"),
        (f'(module {WASI} "fd_write" (func (param i64))))', "missing-import", "another type"),
        (f'(module {WASI} "fd_close" (func (param v128) (result i32))))', "missing-import", "type"),
        ('(module (import "env" "memory" (memory 1)))', "missing-import", "memory cannot"),
        ('(module (import "e" "t" (table 1 funcref)))', "missing-import", "table cannot"),
        ('(module (import "e" "g" (global i32)))', "missing-import", "global cannot"),
        ('(module (import "e" "t" (tag)))', "missing-import", "tag cannot"),
        (f"(module {' (memory 40000)' * 2})", "limits", "memory at start"),
        ("(module (memory i64 0x10001))", "limits", "memory at start"),
        ("(module (table 10000001 funcref))", "limits", "table elements"),
        (f"(module {' (memory 1)' * 65})", "limits", "memories"),
        (f"(module {' (table 1 funcref)' * 65})", "limits", "tables"),
        (
            f"(module {''.join(f'(func (export {chr(34)}e{i}{chr(34)}))' for i in range(20_001))})",
            "limits",
            "exports",
        ),
        (
            "(module "
            + "".join(f'(func (export "{"x" * 99_999}{chr(97 + i)}"))' for i in range(11))
            + ")",
            "limits",
            "names",
        ),
        (
            "(module " + f'{WASI} "sched_yield" (func (result i32)))' * 1001 + ")",
            "limits",
            "imports",
        ),
    ],
)
async def test_what_validation_refuses(lab, text, reason, says):
    wasm = await lab.runtime.parse(text.encode())
    with pytest.raises(ModuleRejected) as caught:
        await lab.runtime.validate(wasm)
    assert (caught.value.reason, says in str(caught.value)) == (reason, True), str(caught.value)


async def test_foreign_functions_are_told(lab):
    text = f"""(module (import "env" "f" (func (param i64))) {WASI} "fd_wrote" (func))
      {WASI} "sched_yield" (func (result i32))) (import "wasi_unstable" "fd_write" (func)))"""
    info = await lab.runtime.validate(await lab.runtime.parse(text.encode()))
    assert info.foreign_imports == (
        ("env", "f"), (WASI.split('"')[1], "fd_wrote"), ("wasi_unstable", "fd_write"),
    )  # fmt: skip


async def test_garbage_behind_the_magic_is_invalid(lab):
    wasm = await hello_wasm(lab)
    for bad in (wasm[:-1], wasm[:40], wasm + b"\x01", wasm[:8] + b"\xff" * 100):
        with pytest.raises(ModuleRejected) as caught:
            await lab.runtime.validate(bad)
        assert caught.value.reason == "invalid"
    with pytest.raises(ModuleRejected) as caught:
        await lab.runtime.validate(b"(module)")
    assert caught.value.reason == "bad-magic"


async def test_compile_load_and_run(lab, tmp_path):
    wasm = await hello_wasm(lab)
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    module.write_bytes(wasm)
    report = await lab.runtime.compile(module, output)
    assert report.artifact_bytes == output.stat().st_size
    assert report.cpu_s > 0
    assert report.wall_s > 0
    assert 4 * MIB < report.peak_rss_bytes < 400 * MIB
    first = output.read_bytes()
    await lab.runtime.compile(module, output)
    assert output.read_bytes() == first  # deterministic
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.cwasm", "m.wasm"]
    loaded = await lab.runtime.load(digest_of(wasm), output, "optimised")
    output.unlink()
    result = await trio.to_thread.run_sync(
        loaded.invoke, Invocation(policy=Policy(memory_bytes=1024 * MIB)), CancelFlag()
    )
    assert result.stdout == b"hello"
    loaded.close()


async def test_compile_failures_are_typed_and_leave_nothing(lab, tmp_path, children):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    for bad in (b"", b"(module)", (await hello_wasm(lab))[:-3]):
        module.write_bytes(bad)
        with pytest.raises(CompileFailed) as caught:
            await lab.runtime.compile(module, output)
        assert caught.value.reason == "error"
    with pytest.raises(CompileFailed) as caught:
        await lab.runtime.compile(tmp_path / "absent", output)
    assert caught.value.reason == "crash"
    assert list(tmp_path.iterdir()) == [module]
    assert children() == set()


def workers(**bounds) -> Workers:
    settings = {"timeout_s": 60.0, "memory_bytes": 2048 * MIB, "jobs_max": 1} | bounds
    return Workers(library_path(), "native", **settings)


async def test_time_bound(tmp_path, children):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    module.write_bytes(slow_module())
    with trio.fail_after(30), pytest.raises(CompileFailed) as caught:
        await workers(timeout_s=0.4).compile(module, output, "optimise")
    assert caught.value.reason == "timeout"
    assert list(tmp_path.iterdir()) == [module]
    assert children() == set()


async def test_memory_bound(tmp_path):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    module.write_bytes(slow_module())
    with trio.fail_after(60), pytest.raises(CompileFailed) as caught:
        await workers(memory_bytes=64 * MIB).compile(module, output, "optimise")
    assert caught.value.reason == "memory"
    assert list(tmp_path.iterdir()) == [module]


async def test_cancellation_kills_the_worker(tmp_path, children):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    module.write_bytes(slow_module())
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers().compile, module, output, "optimise")
            while not children():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert children() == set()
    assert list(tmp_path.iterdir()) == [module]


async def test_a_killed_worker_is_a_crash(tmp_path, children):
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    module.write_bytes(slow_module())

    async def kill() -> None:
        while not children():
            await trio.sleep(0.01)
        os.kill(children().pop(), signal.SIGABRT)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(CompileFailed) as caught:
                await workers().compile(module, output, "optimise")
    assert caught.value.reason == "crash"
    assert "SIGABRT" in str(caught.value)


async def test_a_workers_descriptors_and_environment(tmp_path, monkeypatch):
    """Nothing of the node's leaks into it: a stand-in for the interpreter reports what it got."""
    probe = tmp_path / "probe"
    probe.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "fds = [fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2]\n"
        "names = sorted(name for name in os.environ if name != 'LC_CTYPE')\n"
        "fds = [fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(repr({'fds': fds, 'env': names}))\n"
    )
    probe.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(probe))
    inherited = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        answer, _ = await workers().run("validate", stdin=b"x")
    finally:
        os.close(inherited)
    assert answer == {"fds": [], "env": []}


@pytest.mark.parametrize("said", ["", "[" * 300, "-" * 10_000 + "1", "{[]: 1}", "1 if 1 else 2"])
async def test_an_answer_that_is_none_is_a_crash(tmp_path, monkeypatch, said):
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(f"#!{sys.executable}\nprint({said!r})\n")
    stand_in.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(CompileFailed) as caught:
        await workers().run("validate", stdin=b"x")
    assert caught.value.reason == "crash"


async def test_a_worker_ends_with_its_parent(tmp_path):
    """Kill -9 of the node must not leave a compile running."""
    module = tmp_path / "m.wasm"
    module.write_bytes(slow_module())
    code = (
        "import trio, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from edged.runtime.compile import Workers\n"
        "from edged.runtime.ffi import library_path\n"
        "w = Workers(library_path(), 'native', timeout_s=60, memory_bytes=2 << 30, jobs_max=1)\n"
        f"trio.run(w.compile, Path({str(module)!r}), Path({str(tmp_path / 'out')!r}), 'optimise')\n"
    )
    parent = await trio.lowlevel.open_process([sys.executable, "-c", code])
    with trio.fail_after(30):
        while not all_children(parent.pid):
            await trio.sleep(0.02)
        worker = all_children(parent.pid).pop()
        await trio.sleep(0.3)  # into its compile
        parent.kill()
        await parent.wait()
        while alive(worker):
            await trio.sleep(0.02)


async def test_load_refuses_what_is_no_artifact_of_this_engine(lab, tmp_path):
    path = tmp_path / "artifact"
    digest = digest_of(b"")
    for bad in (b"", b"\x7fELF", b"not an artifact" * 100):
        path.write_bytes(bad)
        with pytest.raises(ArtifactRefused):
            await lab.runtime.load(digest, path, "optimised")
    with pytest.raises(ArtifactRefused):
        await lab.runtime.load(digest, tmp_path / "absent", "optimised")


async def test_pulley_and_native_never_mix(lab, tmp_path):
    pulley = open_runtime(
        RuntimeSection(target="pulley64", pool_instances=4),
        mounts={}, scratch_dir=tmp_path / "scratch", log=make_log("p"),
    )  # fmt: skip
    assert pulley.target == "pulley64"
    assert pulley.artifact_key != lab.runtime.artifact_key
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    wasm = await hello_wasm(lab)
    module.write_bytes(wasm)
    await pulley.compile(module, output)
    with pytest.raises(ArtifactRefused):
        await lab.runtime.load(digest_of(wasm), output, "optimised")
    loaded = await pulley.load(digest_of(wasm), output, "optimised")
    call = Invocation(policy=Policy())
    assert (await trio.to_thread.run_sync(loaded.invoke, call, CancelFlag())).stdout == b"hello"
    loaded.close()
    pulley.close()


async def test_one_key_with_and_without_a_pool(lab, tmp_path):
    """The same artifact runs in both."""
    plain = open_runtime(
        RuntimeSection(pool_instances=0), mounts={}, scratch_dir=tmp_path / "scratch",
        log=make_log("p"),
    )  # fmt: skip
    assert plain.artifact_key == lab.runtime.artifact_key
    module, output = tmp_path / "m.wasm", tmp_path / "m.cwasm"
    wasm = await hello_wasm(lab)
    module.write_bytes(wasm)
    await lab.runtime.compile(module, output)
    call = Invocation(policy=Policy())
    for runtime in (plain, lab.runtime):
        loaded = await runtime.load(digest_of(wasm), output, "optimised")
        result = await trio.to_thread.run_sync(loaded.invoke, call, CancelFlag())
        assert result.stdout == b"hello"
        loaded.close()
    plain.close()


def test_without_address_space_for_a_pool_it_runs_on_demand(tmp_path):
    code = (
        "import resource, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))\n"
        "from pathlib import Path\n"
        "from edged.config import RuntimeSection\n"
        "from edged.runtime.runtime import open_runtime\n"
        "from edged.telemetry import make_log\n"
        f"r = open_runtime(RuntimeSection(), mounts={{}}, scratch_dir=Path({str(tmp_path)!r}),\n"
        "                 log=make_log('x'))\n"
        "print(r._tiers['optimised'].first.pool, r.artifact_key)\n"
        "r.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[0] == "None"
    assert "allocating on demand" in done.stderr


def test_too_little_stack_is_a_configuration_error(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (256 * 1024, 256 * 1024))
    with pytest.raises(ConfigError, match="stack"):
        open_runtime(RuntimeSection(), mounts={}, scratch_dir=tmp_path, log=make_log("x"))


def test_left_over_tmp_directories_are_swept(tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "tmp-dead" / "a" / "b").mkdir(parents=True)
    (scratch / "tmp-dead" / "a" / "file").write_text("x")
    runtime = open_runtime(
        RuntimeSection(pool_instances=0), mounts={}, scratch_dir=scratch, log=make_log("x")
    )
    assert list(scratch.iterdir()) == []
    runtime.close()
