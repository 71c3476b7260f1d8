"""Faults of whole processes: killed, stopped, starved, restarted."""

from __future__ import annotations

import signal
import socket
import tomllib
from typing import ClassVar, Final

import msgspec
import trio

from edged.cluster import process
from edged.cluster.layout import dump_toml
from edged.cluster.process import Process
from edged.config import parse_config
from edged.files import write_file
from edged.lab.history import Planned

from ..control import Status
from ..field import Field, cpu_s, is_stopped, on_each
from .base import Fault, Unproven, until

CONNECT_TIMEOUT_S: Final = 1.0
SLOW_PERIOD_S: Final = 0.1
"""Of running and standing still together: short beside gossip's timeouts, long beside the
scheduler's slice."""


class Kill(Fault):
    lasting: ClassVar[bool] = False

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._killed: dict[str, Process] = {}

    async def begin(self) -> None:
        async def one(name: str) -> None:
            self._killed[name] = await self.field.kill(name)

        await on_each(self.targets, one)

    async def prove(self) -> str:
        async def one(name: str) -> str:
            known, address = self._killed[name], self.field.node(name).gateway
            if process.is_running(known):
                raise Unproven(f"{name}: process {known.pid} runs")

            async def refused() -> str | None:  # the kernel may still be closing what it had
                if await self.field.thread(refuses, address):
                    return f"{name}: process {known.pid} is gone, {address} refuses"
                return None

            return await until(refused, lambda: f"{name}: somebody answers at {address}")

        return "; ".join(await on_each(self.targets, one))

    async def end(self) -> str:
        """Starts them again, if they were killed for a time."""
        if self.planned.duration_s is None:
            return "stays dead"
        back = await on_each(self.targets, self.field.restart)
        return "started again" if all(back) else "started again, and killed by the next fault"


def refuses(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


class Pause(Fault):
    async def begin(self) -> None:
        await on_each(self.targets, self.field.pause)

    async def prove(self) -> str:
        async def one(name: str) -> str:
            async def stopped() -> str | None:
                known = self.field.process(name)
                if known is None or not is_stopped(known):
                    return None
                return f"{name}: process {known.pid} is in state T"

            return await until(stopped, lambda: f"{name} is not stopped")

        return "; ".join(await on_each(self.targets, one))

    async def end(self) -> str:
        await on_each(self.targets, self.field.resume)
        return "goes on"


class SlowCpu(Fault):
    """Stops and continues its process, so that it runs for a share of each period."""

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._slowed: dict[str, Process] = {}
        self._stops = 0

    async def begin(self) -> None:
        for name in self.targets:
            known = self.field.process(name)
            if known is None:
                raise Unproven(f"{name} does not run")
            self._slowed[name] = known

    async def sustain(self) -> None:
        share = self.number("share")
        while True:
            self._signal(signal.SIGSTOP)
            await trio.sleep(SLOW_PERIOD_S * (1 - share))
            self._stops += 1
            self._signal(signal.SIGCONT)
            await trio.sleep(SLOW_PERIOD_S * share)

    def _signal(self, number: signal.Signals) -> None:
        for known in self._slowed.values():
            process.send_signal(known, number)

    async def prove(self) -> str:
        """Seen stopped and seen running, several times over."""
        seen: dict[str, set[bool]] = {name: set() for name in self.targets}
        before = {name: cpu_s(known) for name, known in self._slowed.items()}
        begun_s = trio.current_time()

        async def both() -> str | None:
            for name, known in self._slowed.items():
                seen[name].add(is_stopped(known))
            if self._stops < 5 or not all(len(states) == 2 for states in seen.values()):
                return None
            return "; ".join(told(name, known) for name, known in self._slowed.items())

        def told(name: str, known: Process) -> str:
            used_s = (cpu_s(known) or 0.0) - (before[name] or 0.0)
            share = used_s / (trio.current_time() - begun_s)
            return f"{name}: stopped {self._stops} times, ran for {share:.0%} of a core"

        return await until(both, lambda: f"seen stopped and running: {seen}")

    async def end(self) -> str:
        self._signal(signal.SIGCONT)
        return "goes on"


class Restart(Fault):
    lasting: ClassVar[bool] = False

    def __init__(self, field: Field, planned: Planned) -> None:
        super().__init__(field, planned)
        self._before: dict[str, Process | None] = {}

    async def begin(self) -> None:
        self._before = self.field.processes()
        await on_each(self.targets, self.field.restart)

    async def prove(self) -> str:
        return "; ".join(await on_each(self.targets, self._another))

    async def _another(self, name: str) -> str:
        before, now = self._before[name], self.field.process(name)
        status = await self.field.ask(name, "/v1/status", Status)
        if now is None or now == before or status is None or status.state != "ready":
            raise Unproven(f"{name}: process {now and now.pid} instead of {before and before.pid}")
        return f"{name}: process {now.pid} instead of {before and before.pid}, ready"

    async def end(self) -> str:
        return "restarted"


class RollingRestart(Restart):
    async def begin(self) -> None:
        config = msgspec.json.decode(self.text("config"), type=dict[str, dict[str, object]])
        self._before = self.field.processes()
        for nth, name in enumerate(self.targets):
            if nth:
                await trio.sleep(self.number("gap_s"))
            if config:
                await self.field.thread(self._configure, name, config)
            self.step_s = trio.current_time()
            await self.field.restart(name)

    def _configure(self, name: str, config: dict[str, dict[str, object]]) -> None:
        """Raises ConfigError."""
        directory = self.field.directory(name)
        path = directory / "node.toml"
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        for section, values in config.items():
            data[section] = {**data.get(section, {}), **values}
        parse_config(data, base=directory)
        write_file(path, dump_toml(data).encode(), secret=True)
