"""The gateway over the real runtime: what real guests do, as a client sees it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from http_support import PATIENT, Listener

from edged.config import GatewaySection, RuntimeSection
from edged.errors import FunctionNotFound
from edged.functions import FunctionService
from edged.gateway import Gateway
from edged.http import HttpServer, bind_tcp, serve
from edged.interfaces import ArtifactRow, FunctionView, Phases
from edged.journal import Journal
from edged.mapped import Mapped
from edged.runtime.runtime import open_runtime
from edged.telemetry import Metrics, make_log
from protocol.function import FunctionSpec, Policy, encode_spec, version_of
from protocol.ids import FunctionName, NodeId, digest_of

ROOT = Path(__file__).resolve().parents[3]
IMPORT = '(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'
SPIN = '(module (memory (export "memory") 1) (func (export "_start") (loop br 0)))'
TRAP = '(module (memory (export "memory") 1) (func (export "_start") unreachable))'
SHOUT = f"""(module {IMPORT} (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 60000))
    (loop (drop (call 0 (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) br 0)))"""
FLOATS = """(module (func (export "div") (param f64 f64) (result f64)
  local.get 0 local.get 1 f64.div))"""


class _Loaded:
    """Codes of functions that are in memory already."""

    def __init__(self) -> None:
        self.modules: dict[str, Mapped] = {}

    def use(self, function: FunctionView) -> Mapped | None:
        return self.modules.get(function.spec.module)

    def is_near(self, function: FunctionView) -> bool:
        return function.spec.module in self.modules

    def has_code(self, function: FunctionView) -> bool:
        return self.is_near(function)


@asynccontextmanager
async def guests(tmp_path: Path) -> AsyncIterator[Listener]:
    wat = ROOT / "tests" / "fixtures" / "wat"
    listings = ROOT / "guests"
    modules = {
        "hello": ("raw", (wat / "hello.wat").read_text(), Policy()),
        "spin": ("raw", SPIN, Policy(timeout_ms=200, concurrency=1)),
        "forever": ("raw", SPIN, Policy(timeout_ms=60_000, concurrency=1)),
        "trap": ("raw", TRAP, Policy()),
        "shout": ("raw", SHOUT, Policy(stdout_bytes=100_000)),
        "add": ("export", (listings / "add_numbers" / "add_numbers.wat").read_text(), Policy()),
        "sub": ("export", (listings / "reverse_sub" / "reverse_sub.wat").read_text(), Policy()),
        "floats": ("export", FLOATS, Policy()),
    }
    stream = io.StringIO()
    log = make_log("n1", stream=stream)
    metrics = Metrics()
    runtime = open_runtime(RuntimeSection(), mounts={}, scratch_dir=tmp_path / "scratch", log=log)
    loaded = _Loaded()
    views: dict[str, FunctionView] = {}
    for name, (abi, text, policy) in modules.items():
        wasm = await runtime.parse(text.encode())
        digest = digest_of(wasm)
        if digest not in loaded.modules:
            module, artifact = tmp_path / f"{name}.wasm", tmp_path / f"{name}.cwasm"
            module.write_bytes(wasm)
            report = await runtime.compile(module, artifact)
            code = await runtime.load(digest, artifact, report.tier)
            size = artifact.stat().st_size
            row = ArtifactRow(digest, runtime.artifact_key, digest, size, 0.0, b"")
            loaded.modules[digest] = Mapped(code, "loaded", Phases(), row)
        spec = FunctionSpec(
            abi=abi,  # type: ignore[arg-type]
            module=digest,
            module_bytes=len(wasm),
            manifest=digest,
            policy=policy,
        )
        views[name] = FunctionView(FunctionName(name), version_of(encode_spec(spec)), spec)

    def lookup(name: str) -> FunctionView:
        if name not in views:
            raise FunctionNotFound(f"no function {name!r}")
        return views[name]

    functions = FunctionService(
        lookup=lookup,
        version=lambda name, _: lookup(name),
        codes=loaded,  # type: ignore[arg-type]
        journal=Journal(),
        limits=GatewaySection(),
    )
    app = Gateway(functions, node_name="n1", node_id=NodeId("1" * 32), metrics=metrics, log=log)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[HttpServer]) -> None:
            sockets = [bind_tcp("127.0.0.1", 0)]
            await serve(app, sockets, PATIENT, log=log, task_status=task_status)

        listener = Listener(await nursery.start(run), [], stream)
        yield listener
        await listener.drain(2.0)
        nursery.cancel_scope.cancel()
    assert functions.running == 0
    for module in loaded.modules.values():
        module.module.close()
    runtime.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


async def test_real_guests(tmp_path: Path) -> None:
    async with guests(tmp_path) as server:
        hello = await server.exchange(get("/hello"))
        assert (hello.status, hello.body) == (200, b"hello")
        assert hello.headers["x-edged-start"] == "warm"
        for phase in ("queue", "instantiate", "run", "total"):
            assert f"{phase};dur=" in hello.headers["server-timing"]

        add = await server.exchange(get("/add/add_numbers?num1=5&num2=10"))
        assert add.body == b"15\n"
        overflow = await server.exchange(get("/add/add_numbers?num1=2147483647&num2=1"))
        assert overflow.body == b"-2147483648\n"
        assert (await server.exchange(get("/sub/reverseSub?a=3&b=10"))).body == b"7\n"
        assert (await server.exchange(get("/sub/swap?a=3&b=10"))).body == b"[10,3]\n"
        assert (await server.exchange(get("/floats/div?a=1&b=0"))).body == b"Infinity\n"
        assert (await server.exchange(get("/floats/div?a=0&b=0"))).body == b"NaN\n"
        assert (await server.exchange(get("/add/absent?a=1"))).status == 404
        wrong = await server.exchange(get("/add/add_numbers?num1=5&num2=x"))
        assert (wrong.status, wrong.json()["parameter"]) == (400, "num2")

        trap = await server.exchange(get("/trap"))
        assert (trap.status, trap.json()["type"]) == (500, "urn:edged:error:trap")
        assert b"wasm backtrace" not in trap.body
        assert (await server.exchange(get("/spin"))).status == 504
        assert (await server.exchange(get("/shout"))).status == 502
        assert (await server.exchange(get("/hello"))).body == b"hello"


async def test_a_client_that_leaves_stops_a_real_endless_loop(tmp_path: Path) -> None:
    async with guests(tmp_path) as server:
        client = await server.connect()
        await client.send(get("/forever"))
        await server.until(lambda: server.server.statistics().in_flight == 1)
        assert (await server.exchange(get("/forever"))).status == 429
        await client.aclose()
        await server.empty()

        again = await server.connect()
        await again.send(get("/forever"))
        await server.until(lambda: server.server.statistics().in_flight == 1)
        assert await server.drain(0.2) == 1
        assert (await again.response()).status == 503
