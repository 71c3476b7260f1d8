"""`edged snapshot`: without a daemon, from file to file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from snapshot_support import look, wat

from tests.unit.cli.conftest import Edged

MODULE = """(module
  (import "env" "log" (func $log (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1) (global $n (export "n") (mut i32) (i32.const 0))
  (func (export "wizer.initialize")
    (drop (call $random (i32.const 64) (i32.const 8))) (global.set $n (i32.const 5)))
  (func (export "add: func(a) -> ()") (param i32) (global.set $n (local.get 0)))
  (func (export "logs") (global.set $n (i32.add (i32.const 1) (call $log (i32.const 1)))))
  (func (export "trap") unreachable)
  (func (export "go")))"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "a.wasm"
    path.write_bytes(wat(MODULE))
    return path


def global_of(path: Path) -> bytes:
    """The module's first global's first value: `i32.const` and one byte."""
    data = path.read_bytes()
    at = data.index(b"\x06\x06\x01\x7f\x01\x41")
    return data[at + 6 : at + 7]


def test_a_snapshot_and_its_report(run: Edged, module: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wasm"
    result = run("snapshot", module, "-o", out)
    assert result.exit_code == 0, result.output
    assert global_of(out) == b"\x05"
    assert "wizer.initialize" in result.stdout
    assert "8 random bytes" in result.stdout
    assert b"wizer.initialize" not in out.read_bytes()


def test_text_is_taken_as_a_deploy_takes_it(run: Edged, tmp_path: Path) -> None:
    text, out = tmp_path / "a.wat", tmp_path / "out.wasm"
    text.write_text(f";; a module\n{MODULE}")
    assert run("snapshot", text, "-o", out).exit_code == 0
    assert global_of(out) == b"\x05"
    text.write_text("(module (func")
    result = run("snapshot", text, "-o", out)
    assert result.exit_code == 1
    assert "not WebAssembly text" in result.output


def test_long_names_are_cut_for_people(run: Edged, module: Path) -> None:
    module.write_bytes(wat(f'(module (import "env" "{"n" * 50_000}" (func)))'))
    shown = run("snapshot", module, "--examine").stdout
    assert "env.nnn" in shown
    assert len(shown) < 5000


def test_a_file_is_replaced_whole_or_not_at_all(
    run: Edged, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    out, link = place / "out.wasm", tmp_path / "link.wasm"
    out.write_bytes(b"the one before")
    link.symlink_to(out)
    out.chmod(0o444)

    def fails(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        result = run("snapshot", module, "-o", link)
    assert (result.exit_code, "No space" in result.stderr) == (2, True)
    assert out.read_bytes() == b"the one before"
    assert run("snapshot", module, "-o", link).exit_code == 0
    assert global_of(out) == b"\x05"
    assert link.is_symlink()
    assert list(place.iterdir()) == [out]


def test_a_device_is_written_to_and_stays_one(run: Edged, module: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("snapshot", module, "-o", pipe).exit_code == 0
        assert os.read(reader, 4) == b"\0asm"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_calls_renamings_and_zeros(run: Edged, module: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.wasm"
    calls = ("--call", "logs", "--call", "add: func(a) -> ()(7)", "--zero", "env.*")
    result = run(
        "snapshot", module, "-o", out, *calls, "--rename", "_start=go", "--json", "--strip"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["called"] == ["logs", "add: func(a) -> ()"]
    assert report["zeros_called"] == ["env.log"]
    assert report["snapshot_bytes"] == out.stat().st_size
    assert global_of(out) == b"\x07"
    assert b"_start" in out.read_bytes()


def test_an_examination_runs_nothing(run: Edged, module: Path, tmp_path: Path) -> None:
    found = json.loads(run("snapshot", module, "--examine", "--json").stdout)
    assert found["initializer"] == "wizer.initialize"
    assert found["foreign_imports"] == ["env.log"]
    assert found["refusal"] is None
    assert "possible" in run("snapshot", module, "--examine").stdout
    module.write_bytes(b"\0asm")
    assert "malformed" in run("snapshot", module, "--examine").stdout
    assert list(tmp_path.iterdir()) == [module]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 2, "-o OUT.wasm"),
        (("-o", "{out}/none/x"), 2, "no such directory"),
        (("-o", "{out}", "--init", "logs"), 1, "import env.log"),
        (("-o", "{out}", "--init", "trap"), 1, "trapped: unreachable"),
        (("-o", "{out}", "--call", "add(1", "--json"), 1, "add(1"),
        (("-o", "{out}", "--call", "add({})", "--json"), 2, "got `object`"),
        (("-o", "{out}", "--rename", "go"), 2, "no '='"),
        (("-o", "{out}", "--timeout-ms", "0"), 2, "timeout_ms"),
        (("-o", "{out}", "--dir", "/none"), 1, "cannot be opened"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing(
    run: Edged, module: Path, tmp_path: Path, args: tuple[str, ...], code: int, told: str
) -> None:
    out = tmp_path / "out.wasm"
    result = run("snapshot", module, *(arg.replace("{out}", str(out)) for arg in args))
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert not out.exists()
    assert "--json" not in args or told in json.loads(result.stderr)["detail"]


def test_a_directory_is_there(run: Edged, tmp_path: Path) -> None:
    module, out = tmp_path / "b.wasm", tmp_path / "out.wasm"
    module.write_bytes(
        wat("""(module
        (import "wasi_snapshot_preview1" "fd_prestat_dir_name"
          (func $name (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "wizer.initialize")
          (drop (call $name (i32.const 3) (i32.const 0) (i32.const 6)))))""")
    )
    assert run("snapshot", module, "-o", out, "--dir", f"{tmp_path}:/rules").exit_code == 0
    assert look(out.read_bytes()).state()["memory"][:6] == b"/rules"
