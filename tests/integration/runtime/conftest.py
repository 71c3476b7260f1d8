"""One runtime for all tests here, and guests compiled once each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from ctypes import byref, c_void_p
from pathlib import Path

import pytest
import trio
from children import all_children

from edged.config import RuntimeSection
from edged.errors import ModuleRejected
from edged.interfaces import (
    CancelFlag,
    ExportCall,
    Invocation,
    InvocationResult,
    LoadedModule,
    Tier,
)
from edged.runtime.ffi import ByteVec
from edged.runtime.runtime import WasmtimeRuntime, open_runtime
from edged.telemetry import make_log
from protocol.function import Policy
from protocol.ids import digest_of

FIXTURES = Path(__file__).parents[2] / "fixtures" / "wat"


class Lab:
    """Loads guests by fixture name or WAT text; runs them in trio's default worker threads."""

    def __init__(self, directory: Path, config: RuntimeSection, tier: Tier) -> None:
        self.tier = tier
        self.directory = directory
        self.scratch = directory / "scratch"
        self.shared = directory / "shared"
        self.shared.mkdir()
        (self.shared / "inside.txt").write_text("inside")
        (directory / "secret.txt").write_text("secret")
        (self.shared / "escape").symlink_to("../secret.txt")
        (self.shared / "absolute").symlink_to(directory / "secret.txt")
        self.log_text = io.StringIO()
        self.runtime: WasmtimeRuntime = open_runtime(
            config,
            mounts={"shared": self.shared},
            scratch_dir=self.scratch,
            log=make_log("lab", stream=self.log_text),
        )
        self._loaded: dict[str, LoadedModule] = {}

    async def load(self, guest: str) -> LoadedModule:
        """Compiled in this process, by an engine configured alike: 2 ms instead of a worker's 60.
        What workers do is tested in test_runtime_compile.py."""
        if guest not in self._loaded:
            text = guest.encode() if "(" in guest else (FIXTURES / f"{guest}.wat").read_bytes()
            artifact = self.directory / f"{digest_of(text)}.cwasm"
            tier = self.tier
            try:
                image = self.compile_here(text, tier)
            except ModuleRejected:
                image = self.compile_here(text, tier := "optimised")
            artifact.write_bytes(image)
            self._loaded[guest] = await self.runtime.load(digest_of(text), artifact, tier)
        return self._loaded[guest]

    def compile_here(self, text: bytes, tier: Tier = "optimised") -> bytes:
        api, engine = self.runtime._api, self.runtime._tiers[tier].on_demand()
        wasm, image, module = ByteVec(), ByteVec(), c_void_p()
        error = api.wasmtime_wat2wasm(text, len(text), byref(wasm))
        assert not error, api.take_error(error)
        data = api.take_bytes(wasm)
        error = api.wasmtime_module_new(engine.pointer, data, len(data), byref(module))
        if error:
            raise ModuleRejected("invalid", api.take_error(error))
        assert not api.wasmtime_module_serialize(module, byref(image))
        api.wasmtime_module_delete(module)
        artifact: bytes = api.take_bytes(image)
        return artifact

    async def load_wasm(self, wasm: bytes) -> LoadedModule:
        """The whole way a node goes."""
        await self.runtime.validate(wasm)
        digest = digest_of(wasm)
        module, artifact = (self.directory / f"{digest}{end}" for end in (".wasm", ".cwasm"))
        module.write_bytes(wasm)
        report = await self.runtime.compile(module, artifact)
        return await self.runtime.load(digest, artifact, report.tier)

    async def invoke(
        self, guest: str, call: Invocation, cancel: CancelFlag | None = None
    ) -> InvocationResult:
        return await self.run(await self.load(guest), call, cancel)

    @staticmethod
    async def run(
        module: LoadedModule, call: Invocation, cancel: CancelFlag | None = None
    ) -> InvocationResult:
        return await trio.to_thread.run_sync(module.invoke, call, cancel or CancelFlag())

    async def start(self, guest: str, **policy: object) -> InvocationResult:
        return await self.invoke(guest, Invocation(policy=Policy(**policy)))  # type: ignore[arg-type]

    async def export(
        self, guest: str, name: str, *params: object, policy: Policy | None = None
    ) -> InvocationResult:
        texts = tuple(str(param) for param in params)
        call = Invocation(policy=policy or Policy(), export=ExportCall(name, texts))
        return await self.invoke(guest, call)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What runs guests runs them on both tiers."""
    if "lab" in metafunc.fixturenames and metafunc.module.__name__ != "test_runtime_compile":
        metafunc.parametrize("lab", ("optimised", "fast"), indirect=True, scope="session")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    tier = getattr(request, "param", "optimised")
    lab = Lab(tmp_path_factory.mktemp("lab"), RuntimeSection(), tier)
    yield lab
    lab.runtime.close()


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """This process's children since the test began: earlier tests may have left zombies."""
    before = all_children()
    return lambda: all_children() - before
