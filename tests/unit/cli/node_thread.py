"""A node's two HTTP sides in a thread: the real control API, and a gateway that echoes."""

from __future__ import annotations

import io
import json
import queue
import threading
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import trio

from edged.control import make_control_app
from edged.eventlog import EventLog
from edged.http import HttpLimits, bind_tcp, serve
from edged.interfaces import ModuleStored
from edged.telemetry import Metrics, make_log
from protocol.ids import Digest
from tests.unit.control.memory_builders import MemoryBuilders
from tests.unit.control.memory_keys import MemoryKeys
from tests.unit.control.memory_links import memory_shaper
from tests.unit.control.memory_operator import MemoryOperator
from tests.unit.control.memory_upkeep import MemoryUpkeep

TOKEN = "a-token-of-the-test"


async def echo_gateway(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with what it was asked; `?status=` chooses the status, `?problem=` a problem's code,
    /bytes is not UTF-8."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    query = scope["query_string"].decode()
    asked = {
        "method": scope["method"],
        "path": scope["raw_path"].decode(),
        "query": query,
        "body": body.decode("latin-1"),
        "headers": sorted([k.decode(), v.decode("latin-1")] for k, v in scope["headers"]),
    }
    wish = dict(parse_qsl(query))
    status = int(wish.get("status", "200"))
    data = b"\xff\x00\xfe" if scope["path"].endswith("/bytes") else json.dumps(asked).encode()
    kind = b"application/json"
    if code := wish.get("problem"):
        kind = b"application/problem+json"
        kinds = {"type": f"urn:edged:error:{code}", "status": status}
        data = json.dumps(kinds | {"detail": "so it is\x1b[31m"}).encode()
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(data)).encode()),
        (b"x-edged-start", b"warm"),
        (b"x-edged-node", b"n1"),
        (b"server-timing", b"queue;dur=0.02, run;dur=1.5, bad;dur=x"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


class ExportingOperator(MemoryOperator):
    """Every module exports `exports`."""

    exports: tuple[str, ...] = ("_start",)

    async def put_module(self, data: bytes, *, expected: Digest | None) -> ModuleStored:
        stored = await super().put_module(data, expected=expected)
        return msgspec.structs.replace(stored, exports=self.exports)


class NodeThread:
    """Use as a context manager; `operator` may be changed through `do`."""

    def __init__(self) -> None:
        self.operator = ExportingOperator()
        self.keys = MemoryKeys()
        self.upkeep = MemoryUpkeep()
        self.builders = MemoryBuilders()
        self.events = EventLog(node="n1", generation=1)
        self.shaper = memory_shaper(self.events)
        self.log = io.StringIO()
        self._started: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def __enter__(self) -> NodeThread:
        self._thread.start()
        self.token, self._stop, self.port, gateway_port = self._started.get(timeout=10)
        self.url = f"http://127.0.0.1:{self.port}"
        self.gateway_url = f"http://127.0.0.1:{gateway_port}"
        self.operator.gateway_url = self.gateway_url
        return self

    def __exit__(self, *_: object) -> None:
        self.token.run_sync_soon(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def do(self, function: Any, *args: Any) -> Any:
        """Calls `function` in the node's event loop and waits for its result."""
        return trio.from_thread.run_sync(function, *args, trio_token=self.token)

    def wait(self, function: Any, *args: Any) -> Any:
        """As `do`, of an async function."""
        return trio.from_thread.run(function, *args, trio_token=self.token)

    async def _main(self) -> None:
        log = make_log("n1", stream=self.log)
        app = make_control_app(
            self.operator,
            explainer=self.operator,
            events=self.events,
            keys=self.keys.service,
            upkeep=self.upkeep,
            builders=self.builders.service,
            lab=None,
            links=self.shaper,
            token=TOKEN,
            log=log,
            metrics=Metrics(),
        )
        limits = HttpLimits(linger_s=1.0)
        async with trio.open_nursery() as nursery:
            listen = partial(serve, log=log)
            servers = [
                await nursery.start(listen, served, [bind_tcp("127.0.0.1", 0)], limits)
                for served in (app, echo_gateway)
            ]
            stop = trio.Event()
            token = trio.lowlevel.current_trio_token()
            self._started.put((token, stop, servers[0].port, servers[1].port))
            await stop.wait()
            for server in servers:
                await server.drain(trio.current_time() + 0.5)
            nursery.cancel_scope.cancel()
