"""Made modules are modules, and answer what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from edged.lab.chaos.modules import module_that_says


def said(module: bytes, directory: Path) -> str:
    engine = wasmtime.Engine()
    linker, store = wasmtime.Linker(engine), wasmtime.Store(engine)
    linker.define_wasi()
    wasi = wasmtime.WasiConfig()
    out = directory / "stdout"
    wasi.stdout_file = str(out)
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module(engine, module))
    start = instance.exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    return out.read_text("utf-8")


@pytest.mark.parametrize("text", ["x", "hello 1\n", "é" * 100, "a" * 4096, "z" * 140_000])
def test_it_says_so(tmp_path: Path, text: str) -> None:
    assert said(module_that_says(text), tmp_path) == text


def test_code_beside_is_of_about_the_size_asked_for(tmp_path: Path) -> None:
    small, large = module_that_says("x"), module_that_says("x", code_kib=64)
    assert said(large, tmp_path) == "x"
    assert 0.8 < (len(large) - len(small)) / 65_536 < 1.6


def test_other_words_make_another_module() -> None:
    assert module_that_says("x") == module_that_says("x")
    assert module_that_says("x") != module_that_says("y")
