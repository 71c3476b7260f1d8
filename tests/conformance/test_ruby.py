"""Ruby as npm has it, built for JavaScript hosts: started once, its imports of one stubbed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from npm_package import Unavailable, cached

from edged.config import RuntimeSection
from edged.errors import CannotSnapshot, ImportCalled
from edged.interfaces import CancelFlag, Invocation, InvocationResult
from edged.making import plan_of
from edged.runtime.runtime import WasmtimeRuntime, open_runtime
from edged.snapshot.api import Snapshotter
from edged.telemetry import make_log
from protocol.function import MEBIBYTE, InitCall, InitSpec, Policy
from protocol.ids import digest_of

PACKAGE = "@ruby/3.4-wasm-wasi@2.7.1"
INTEGRITY = (
    "uPRvWNL0eR3nYV1iiuJ/QBREUCqc3QKQIJw1iDmuLjiWsftqPfLxN6t0cEtF5mOGh90EZG/NptJoJ4SlJrfzHw=="
)
ARGUMENTS = ("ruby.wasm\0", "-EUTF-8\0", "--disable=gems\0", "-e_=0\0")
START = InitCall("ruby-init: func(args: list<string>) -> ()", (ARGUMENTS,))
EVAL = "rb-eval-string-protect: func(str: string) -> tuple<handle<rb-abi-value>, s32>"
INIT = InitSpec((START,), stubs=("canonical_abi", "rb-js-abi-host"))
POLICY = Policy(memory_bytes=256 * MEBIBYTE, timeout_ms=60_000)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def ruby() -> Path:
    try:
        return cached("ruby", PACKAGE, INTEGRITY) / "dist" / "ruby.wasm"
    except Unavailable as error:
        pytest.skip(f"no Ruby: {error}")


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[WasmtimeRuntime]:
    opened = open_runtime(
        RuntimeSection(), mounts={}, scratch_dir=tmp_path / "scratch", log=make_log("ruby")
    )
    yield opened
    opened.close()


async def test_it_starts_once_and_means_the_same_in_both_forms(
    ruby: Path, tmp_path: Path, runtime: WasmtimeRuntime
) -> None:
    snapshot = tmp_path / "snapshot.wasm"
    await Snapshotter().write(ruby, snapshot, *plan_of(INIT))
    for path, init in ((ruby, INIT), (snapshot, None)):
        data = path.read_bytes()
        modules = {module for module, _name in (await runtime.validate(data)).foreign_imports}
        assert modules == set(INIT.stubs)
        artifact = tmp_path / f"{path.stem}.cwasm"
        report = await runtime.compile(path, artifact)
        module = await runtime.load(digest_of(data), artifact, report.tier)

        async def run(export: str, init: InitSpec | None = init) -> InvocationResult:
            call = Invocation(POLICY, entrypoint=export, init=init, stubs=INIT.stubs)
            return await trio.to_thread.run_sync(module.invoke, call, CancelFlag())  # noqa: B023

        assert (await run("ruby-show-version: func() -> ()")).stdout.startswith(b"ruby 3.4.1 ")
        with pytest.raises(ImportCalled) as caught:
            await run("rb-errinfo: func() -> handle<rb-abi-value>")
        assert caught.value.extra["import"] == "canonical_abi.resource_new_rb-abi-value"


async def test_an_init_that_needs_its_host_is_refused_by_name(ruby: Path, tmp_path: Path) -> None:
    init = InitSpec((START, InitCall(EVAL, ("1 + 1",))), stubs=INIT.stubs)
    with pytest.raises(CannotSnapshot, match=r"canonical_abi\.resource_new") as caught:
        await Snapshotter().write(ruby, tmp_path / "out.wasm", *plan_of(init))
    assert caught.value.reason == "import-called"
