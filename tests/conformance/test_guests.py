"""The functions of guests/, built from source, through calling convention and runtime.

Each is deployed by its own function.toml, compiled in the killable subprocess and loaded from the
artifact, on the machine's own code of both tiers and on Pulley's. Small modules have one tier.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
from blake3 import blake3

from edged.cli.function_file import load_function_file, make_plan
from edged.config import RuntimeSection
from edged.errors import BadRequest, GuestExit, GuestTrap, OutputLimitExceeded
from edged.gateway.abi import REGISTRY
from edged.gateway.abi.base import HttpRequest, HttpResponse
from edged.interfaces import CancelFlag, FunctionView, InvocationResult, LoadedModule
from edged.runtime.runtime import WasmtimeRuntime, open_runtime
from edged.telemetry import make_log
from protocol.function import FunctionSpec, Mount
from protocol.ids import Digest, VersionId, digest_of

GUESTS = Path(__file__).resolve().parents[2] / "guests"
COMPILE_TIMEOUT_S = 60.0


class Deployed:
    """A function ready to run; an interfaces.Slot for `params`."""

    def __init__(self, view: FunctionView, loaded: LoadedModule) -> None:
        self.view = view
        self.loaded = loaded
        self.result: InvocationResult | None = None

    async def params(self, export: str) -> tuple[str, ...] | None:
        return self.loaded.export_params(export)

    async def request(
        self,
        target: str = "",
        *,
        method: str = "GET",
        body: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> HttpResponse:
        """`target`: what follows the function's name, with its query."""
        path, _, query = target.encode().partition(b"?")
        abi = REGISTRY[self.view.spec.abi]
        request = HttpRequest(
            method=method,
            scheme="http",
            raw_path=b"/" + self.view.name.encode() + path,
            path_info=path,
            query=query,
            version="1.1",
            headers=[(b"host", b"localhost:8080"), *headers],
            client=("127.0.0.1", 50000),
            server=("127.0.0.1", 8080),
            body=body,
        )
        call = await abi.invocation(request, self.view, self)  # type: ignore[arg-type]
        self.result = await trio.to_thread.run_sync(self.loaded.invoke, call, CancelFlag())
        return abi.response(request, self.view, self.result)


class Node:
    """A runtime, and what is needed to make a folder of guests/ ready on it."""

    def __init__(self, runtime: WasmtimeRuntime, directory: Path) -> None:
        self.runtime = runtime
        self.directory = directory

    async def deploy(self, folder: str, *, mounts: tuple[Mount, ...] = ()) -> Deployed:
        source, base = load_function_file(GUESTS / folder / "function.toml")
        plan = make_plan(source, base, file=None, changes={}, policy={}, env=(), mounts=())
        wasm = await self.runtime.parse(plan.file.read_bytes())
        info = await self.runtime.validate(wasm)
        module = self.directory / f"{folder}.wasm"
        module.write_bytes(wasm)
        artifact = self.directory / f"{folder}.cwasm"
        with trio.fail_after(COMPILE_TIMEOUT_S):
            report = await self.runtime.compile(module, artifact)
        loaded = await self.runtime.load(info.digest, artifact, report.tier)
        spec = FunctionSpec(
            abi=plan.abi,
            module=info.digest,
            module_bytes=len(wasm),
            manifest=Digest("0" * 64),
            args=plan.args,
            entrypoint=plan.entrypoint,
            methods=plan.methods,
            policy=msgspec.structs.replace(plan.policy, mounts=mounts or plan.policy.mounts),
        )
        return Deployed(FunctionView(plan.name, VersionId(digest_of(wasm)), spec), loaded)


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    directory = tmp_path / "assets"
    directory.mkdir()
    (directory / "note.txt").write_text("from the operator\n", encoding="utf-8")
    return directory


KINDS: Final[dict[str, dict[str, str]]] = {
    "fast": {"tiers": "auto"},
    "optimised": {"tiers": "optimised"},
    "pulley64": {"target": "pulley64"},
}


async def open_node(kind: str, tmp_path: Path, assets: Path) -> AsyncIterator[Node]:
    config = msgspec.convert(KINDS[kind] | {"pool_instances": 4}, RuntimeSection)
    runtime = open_runtime(
        config, mounts={"assets": assets}, scratch_dir=tmp_path / "scratch", log=make_log("test")
    )
    yield Node(runtime, tmp_path)
    runtime.close()


@pytest.fixture
async def native(tmp_path: Path, assets: Path) -> AsyncIterator[Node]:
    async for node in open_node("optimised", tmp_path, assets):
        yield node


@pytest.fixture(params=list(KINDS))
async def node(request: pytest.FixtureRequest, tmp_path: Path, assets: Path) -> AsyncIterator[Node]:
    async for found in open_node(request.param, tmp_path, assets):
        yield found


Guest = Callable[[str], Path]


async def test_c(node: Node, guest: Guest) -> None:
    guest("hello")
    hello = await node.deploy("hello")
    assert (await hello.request()).body == b"Hello from C, world!\n"
    response = await hello.request("?name=J%C3%BCrgen+%26+co&GREETING=Bye")
    assert response.status == 200
    assert response.headers == [(b"content-type", b"text/plain; charset=utf-8")]
    assert response.body.decode() == "Hello from C, Jürgen & co!\n", "the operator's env wins"


async def test_zig(node: Node, guest: Guest) -> None:
    guest("b3sum")
    b3sum = await node.deploy("b3sum")
    for body in (b"", b"abc", bytes(range(256)) * 1000):
        response = await b3sum.request("?name=x", method="POST", body=body)
        assert response.body.decode() == f"{blake3(body).hexdigest()}  x\n"


async def test_wat_listing_add_numbers(node: Node) -> None:
    add = await node.deploy("add_numbers")
    assert (await add.request("/add_numbers?num1=5&num2=10")).body == b"15\n"
    assert (await add.request("/add_numbers?num1=2147483647&num2=1")).body == b"-2147483648\n"
    with pytest.raises(BadRequest, match="takes 2 parameters"):
        await add.request("/add_numbers?num1=5")


async def test_wat_listing_reverse_sub(node: Node) -> None:
    reverse = await node.deploy("reverse_sub")
    assert (await reverse.request("/reverseSub?a=3&b=10")).body == b"7\n"
    swapped = await reverse.request("/swap?a=3&b=10")
    assert json.loads(swapped.body) == [10, 3]
    assert swapped.headers == [(b"content-type", b"application/json")]


async def test_cgi_request_and_body(native: Node, guest: Guest) -> None:
    guest("echo")
    echo = await native.deploy("echo")
    response = await echo.request(
        "/some/path?a=1&b=two",
        method="POST",
        body=b"\x00\xffbody",
        headers=((b"x-thing", b"one"), (b"content-type", b"application/octet-stream")),
    )
    assert response.status == 200
    assert (b"x-guest", b"echo") in [(name.lower(), value) for name, value in response.headers]
    head, _, body = response.body.partition(b"\n\n")
    assert body == b"\x00\xffbody"
    lines = head.decode().splitlines()
    assert lines[0] == "POST /some/path?a=1&b=two"
    assert "argv[1] = a=1" in lines
    assert "argv[2] = b=two" in lines
    assert "HTTP_X_THING=one" in lines
    assert "CONTENT_LENGTH=6" in lines
    assert echo.result is not None
    assert echo.result.stderr == b"echo answered POST /some/path\n"


async def test_cgi_status_and_location(native: Node, guest: Guest) -> None:
    guest("echo")
    echo = await native.deploy("echo")
    assert (await echo.request("/status/418")).status == 418
    redirect = await echo.request("/redirect/elsewhere")
    assert redirect.status == 302
    assert [(name.lower(), value) for name, value in redirect.headers] == [
        (b"location", b"/elsewhere")
    ]


async def test_processor_work_and_its_limits(native: Node, guest: Guest) -> None:
    guest("count")
    count = await native.deploy("count")
    assert (await count.request("?n=100000")).body == b"9592 primes below 100000\n"
    assert (await count.request("?n=1000000")).body == b"78498 primes below 1000000\n"
    with pytest.raises(GuestExit) as refused:
        await count.request("?n=-1")
    assert refused.value.stderr == b"n = -1: 0 to 50000000\n"
    count.view = msgspec.structs.replace(
        count.view,
        spec=msgspec.structs.replace(
            count.view.spec,
            policy=msgspec.structs.replace(count.view.spec.policy, memory_bytes=2 * 1024 * 1024),
        ),
    )
    with pytest.raises(GuestExit) as starved:
        await count.request("?n=5000000")
    assert b"out of memory" in starved.value.stderr


def outcomes(response: HttpResponse) -> dict[str, list[str]]:
    """What was tried, with each result in order."""
    found: dict[str, list[str]] = {}
    for line in response.body.decode().splitlines():
        what, _, result = line.partition(": ")
        found.setdefault(what, []).append(result)
    return found


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


async def test_files(native: Node, guest: Guest, tmp_path: Path) -> None:
    guest("scratch")
    scratch = await native.deploy("scratch", mounts=(Mount("assets", "/assets"),))
    for _ in range(2):  # the second finds nothing of the first
        seen = outcomes(await scratch.request())
        assert seen["files in /tmp"] == ["0", "1"]
        assert seen["write to /tmp"] == ["ok"]
        assert seen["read /assets/note.txt"] == ["from the operator"]
        for path in ("/assets", "/etc", "/tmp/../escape", "/tmp/../../escape"):
            assert seen[f"write to {path}"] != ["ok"], path
    left = files_below(tmp_path)
    assert "assets/note.txt" in left
    assert not {path for path in left if path.endswith(("/new", "/note", "escape", "passwd"))}


async def test_files_nothing_granted_nothing_there(native: Node, guest: Guest) -> None:
    guest("scratch")
    scratch = await native.deploy("scratch")
    policy = msgspec.structs.replace(scratch.view.spec.policy, tmp_bytes=0)
    spec = msgspec.structs.replace(scratch.view.spec, policy=policy)
    scratch.view = msgspec.structs.replace(scratch.view, spec=spec)
    seen = outcomes(await scratch.request())
    assert seen.pop("files in /tmp") == ["-1", "-1"]
    assert "ok" not in {result for results in seen.values() for result in results}


async def test_quickjs_file_as_a_function(node: Node, guest: Guest) -> None:
    guest("words")
    words = await node.deploy("words")
    text = "The quick brown fox jumps over the lazy dog; the end."
    response = await words.request(method="POST", body=text.encode())
    assert json.loads(response.body) == {
        "words": 11,
        "distinct": 9,
        "longest": "quick",
        "top": {"the": 3, "brown": 1, "dog": 1},
    }
    again = await words.request("?text=%C3%84pfel+%C3%A4pfel+x&top=1")
    assert json.loads(again.body)["top"] == {"äpfel": 2}


PROGRAMS = {
    "print('a', 1, [2, 3], undefined)": "a 1 2,3 undefined\n",
    "print(JSON.stringify({a: [1, null, 'é']}), 'x'.padStart(3, '-'))": '{"a":[1,null,"é"]} --x\n',
    r"print('2026-11-22'.replace(/(\d+)-(\d+)-(\d+)/, '$3.$2.$1'))": "22.11.2026\n",
    "Promise.resolve(6).then((n) => print(n * 7)); print('first')": "first\n42\n",
    "function* g() { yield* [1, 2] } print([...g()], new Date(0).toISOString())": (
        "1,2 1970-01-01T00:00:00.000Z\n"
    ),
    "print(2n ** 64n)": None,  # this release is built without big integers
    "let f = () => f(); try { f() } catch (e) { print(e) }": "InternalError: stack overflow\n",
    "try { JSON.parse('['.repeat(1e5)) } catch (e) { print(e) }": "SyntaxError: stack overflow\n",
    "print(env.q, args.length, body === '')": "1 0 true\n",
}


async def test_quickjs_runs_what_is_posted(native: Node, guest: Guest) -> None:
    guest("quickjs")
    javascript = await native.deploy("quickjs")
    for program, expected in PROGRAMS.items():
        if expected is None:
            with pytest.raises(GuestExit) as refused:
                await javascript.request("?q=1", method="POST", body=program.encode())
            assert b"SyntaxError" in refused.value.stderr
        else:
            response = await javascript.request("?q=1", method="POST", body=program.encode())
            assert response.body.decode() == expected, program


async def test_quickjs_failures_are_the_guests(native: Node, guest: Guest) -> None:
    guest("quickjs")
    javascript = await native.deploy("quickjs")
    with pytest.raises(GuestExit) as thrown:
        await javascript.request(method="POST", body=b"print('so far'); null.x")
    assert b"TypeError: cannot read property 'x' of null" in thrown.value.stderr
    assert b"(function.js)" in thrown.value.stderr
    with pytest.raises((OutputLimitExceeded, GuestExit, GuestTrap)):
        await javascript.request(method="POST", body=b"for (;;) print('x'.repeat(1e6))")
    policy = msgspec.structs.replace(javascript.view.spec.policy, memory_bytes=8 * 1024 * 1024)
    spec = msgspec.structs.replace(javascript.view.spec, policy=policy)
    javascript.view = msgspec.structs.replace(javascript.view, spec=spec)
    with pytest.raises((GuestExit, GuestTrap)):
        await javascript.request(method="POST", body=b"let a = []; for (;;) a.push(new Array(1e4))")
    assert (await javascript.request(method="POST", body=b"print(1)")).body == b"1\n"
