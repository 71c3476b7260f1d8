"""Whole nodes in this process: real sockets, real files, real guests; nothing is faked."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from edged.config import Config, parse_config
from edged.listening import Addresses
from edged.node import Node
from edged.telemetry import make_log
from edged.trust import create_ca, issue_node

HELLO_RAW = """
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "{text}")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const {length}))
    (drop (call $fd_write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8)))
    {then}))
"""
LOOP = '(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'
ADD = (
    '(module (func (export "add_numbers") (param i32 i32) (result i32)'
    " local.get 0 local.get 1 i32.add))"
)


def artifacts(node: Running) -> list[Path]:
    """Files of native code on its disk."""
    return sorted((node.config.data_dir / "blobs").rglob("*.artifact"))


def damage(path: Path, *, at: int | None = None, byte: int | None = None) -> None:
    """What a failing disk does: another byte (default: one bit in the middle), same size, same
    times; the index suspects nothing."""
    stat, data = path.stat(), path.read_bytes()
    at = len(data) // 2 if at is None else at
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1 if byte is None else byte]))
    path.chmod(0o444)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def says(text: str, *, fd: int = 1, then: str = "") -> bytes:
    """A guest that writes `text` to `fd`, then does `then`."""
    return HELLO_RAW.format(text=text, length=len(text), fd=fd, then=then).encode()


class Running:
    """One node of a Lab, with clients for both its sides."""

    def __init__(self, name: str, config: Config, log: io.StringIO) -> None:
        self.name = name
        self.config = config
        self.log = log
        self.node = Node(config, log=make_log(name, level="debug", stream=log))
        self.addresses: Addresses
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    @property
    def token(self) -> str:
        return self.config.path(self.config.control.token_file).read_text().strip()

    async def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.request("GET", path, **kwargs)

    async def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async with httpx.AsyncClient(
            base_url=self.addresses.gateway_url, timeout=60, verify=False
        ) as client:
            return await client.request(method, path, **kwargs)

    async def control(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(
            base_url=self.addresses.control_url, timeout=60, headers=headers, verify=False
        ) as client:
            return await client.request(method, path, **kwargs)

    async def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = await self.control(method, path, **kwargs)
        assert answer.is_success, answer.text
        return answer.json()

    async def deploy(self, name: str, module: bytes, **request: Any) -> dict[str, Any]:
        stored = await self.ask("PUT", "/v1/modules", content=module)
        body = {"module": stored["module"], **request}
        deployed = await self.ask("PUT", f"/v1/functions/{name}", content=msgspec.json.encode(body))
        return {"module": stored["module"], **deployed}

    async def metric(self, name: str) -> float:
        text = (await self.control("GET", "/v1/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Lab:
    """Makes and runs nodes of one CA under a directory."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self.root = root
        self._nursery = nursery
        create_ca(root / "ca")
        self.nodes: dict[str, Running] = {}

    def prepare(self, name: str, **sections: dict[str, Any]) -> Config:
        """Configuration and identity of a node, without starting it."""
        base = self.root / name
        if not (base / "trust").exists():
            base.mkdir(exist_ok=True)
            issue_node(
                self.root / "ca", base / "trust", name=name, roles=("serve", "build", "control")
            )
        data: dict[str, Any] = {
            "node": {"name": name},
            "gateway": {
                "bind": "127.0.0.1:0",
                "drain_timeout_s": 10.0,
                "invocations_max": 8,
            },
            "control": {"bind": "127.0.0.1:0"},
            "gossip": {"bind": "127.0.0.1:0", "preset": "local", "seeds": self.seeds()},
            "runtime": {"pool_instances": 8},
            "store": {"min_free_bytes": 0},
            # Who lacks a module fetches it when it is asked to, and not beside the test.
            "replication": {"repair_after_s": 600.0},
        }
        for section, values in sections.items():
            data[section] = data.get(section, {}) | values
        return parse_config(data, base=base)

    def seeds(self) -> list[str]:
        return [node.addresses.gossip_address for node in self.nodes.values()]

    async def start(self, name: str, **sections: dict[str, Any]) -> Running:
        running = Running(name, self.prepare(name, **sections), io.StringIO())

        async def run(*, task_status: trio.TaskStatus[Addresses]) -> None:
            try:
                with running.scope:
                    await running.node.run(task_status=task_status)
            finally:
                running.ended.set()

        running.addresses = await self._nursery.start(run)
        self.nodes[name] = running
        return running

    async def stop(self, name: str) -> None:
        running = self.nodes.pop(name)
        running.node.stop()
        await running.ended.wait()

    async def kill(self, name: str) -> None:
        """Without goodbyes: the others find its port closed."""
        running = self.nodes.pop(name)
        running.scope.cancel()
        await running.ended.wait()

    async def stop_all(self) -> None:
        for running in self.nodes.values():
            running.node.stop()
        for name in list(self.nodes):
            await self.stop(name)

    async def agree(self, *names: str) -> None:
        """Until the named nodes (default: all) see each other alive and know the same catalog."""
        nodes = [self.nodes[name] for name in names or self.nodes]
        while True:
            states = [await node.ask("GET", "/v1/status") for node in nodes]
            whole = all(state["members"]["alive"] == len(nodes) for state in states)
            if whole and len({state["catalog"] for state in states}) == 1:
                return
            await trio.sleep(0.05)

    async def knows(self, node: Running, path: str, status: int = 200) -> httpx.Response:
        """Until the node's gateway answers `path` with `status`."""
        while True:
            answer = await node.get(path)
            if answer.status_code == status:
                return answer
            await trio.sleep(0.05)


@asynccontextmanager
async def lab(root: Path, *, timeout_s: float = 60) -> AsyncIterator[Lab]:
    with trio.fail_after(timeout_s):
        async with trio.open_nursery() as nursery:
            made = Lab(root, nursery)
            try:
                yield made
                await made.stop_all()
            finally:
                nursery.cancel_scope.cancel()
