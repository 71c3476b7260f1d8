"""The load a node tells of: what it measures, and that an idle node measures nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from edged.load import SAMPLE_S, LoadMeter


class Node:
    """One second of CPU time per `cpu` and second passes, on two cores."""

    def __init__(self) -> None:
        self.running = 0
        self.cpu = 0.0
        self.told: list[float] = []
        self.samples = 0
        self.meter = LoadMeter(
            running=lambda: self.running,
            running_max=8,
            tell=self.told.append,
            cpu_s=self._cpu_s,
            cores=2,
        )

    def _cpu_s(self) -> float:
        self.samples += 1
        return trio.current_time() * self.cpu


@asynccontextmanager
async def metering(node: Node) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(node.meter.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("running", "cpu", "share"), [(8, 0.0, 1.0), (2, 0.0, 0.25), (0, 1.0, 0.5), (80, 5.0, 1.0)]
)
async def test_shares(
    autojump_clock: trio.abc.Clock, running: int, cpu: float, share: float
) -> None:
    node = Node()
    async with metering(node):
        node.running, node.cpu = running, cpu
        node.meter.wake()
        await trio.sleep(20 * SAMPLE_S)
        assert node.told[-1] == pytest.approx(share, abs=0.01)
        assert node.told[0] == pytest.approx(0.4 * share)


async def test_an_idle_node_samples_nothing(autojump_clock: trio.abc.Clock) -> None:
    node = Node()
    async with metering(node):
        await trio.sleep(3600)
        assert node.samples == 0
        node.running = 8
        node.meter.wake()
        await trio.sleep(5)
        node.running = 0
        await trio.sleep(30)
        assert node.told[-1] == node.meter.share == 0.0
        samples = node.samples
        await trio.sleep(3600)
        assert node.samples == samples


async def test_work_that_began_during_the_last_sample_is_not_missed(
    autojump_clock: trio.abc.Clock,
) -> None:
    node = Node()
    async with metering(node):
        node.meter.wake()
        for _ in range(50):
            await trio.sleep(SAMPLE_S * 0.9)
            node.meter.wake()
        assert node.samples > 40
