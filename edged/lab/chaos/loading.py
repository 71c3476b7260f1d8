"""The run's load: clients by the scenario's [load], routed around nodes that are not ready.

Clients of a region ask the nearest node that a health check finds ready, as behind a DNS or anycast
that follows one: it looks every `health_check_s`, not through the shaped links, so a node that is
only cut off stays a target. Without a health check, dead nodes are asked on, and refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import trio

from edged.lab.history import Request
from edged.lab.load.around import Around, Target
from edged.lab.load.runner import run_load

from .clock import RunClock
from .engine import Load
from .field import Field, on_each
from .scenario import Scenario

HEALTH_TIMEOUT_S: Final = 1.0


def load_of(scenario: Scenario, seed: int, on_result: Callable[[Request], None]) -> Load:
    async def load(field: Field, clock: RunClock) -> None:
        if scenario.load is None:
            return
        targets = [target_of(field, name) for name in field.names]
        around = Around(targets, field.links, Random(f"{seed}/links"))  # noqa: S311 - replayable
        field.on_links(around.set_document)
        async with trio.open_nursery() as nursery:
            if scenario.health_check_s > 0:
                nursery.start_soon(follow_health, field, around, scenario.health_check_s)
            await run_load(
                scenario.load,
                around,
                on_result=on_result,
                rng=Random(f"{seed}/load"),  # noqa: S311 - replayable
                started_at=clock.at(0.0),
            )
            nursery.cancel_scope.cancel()

    return load


async def follow_health(field: Field, around: Around, every_s: float) -> None:
    """Until cancelled."""
    while True:
        await trio.sleep(every_s)
        ready = await on_each(field.names, lambda name: is_ready(field, name))
        now = [target_of(field, name) for name, yes in zip(field.names, ready, strict=True) if yes]
        if tuple(now) != around.targets:
            around.set_targets(now)


async def is_ready(field: Field, name: str) -> bool:
    answer = await field.call(name, "GET", "/v1/health", timeout_s=HEALTH_TIMEOUT_S)
    return answer is not None and answer.status == 200


def target_of(field: Field, name: str) -> Target:
    node = field.node(name)
    host, _, port = node.gateway.rpartition(":")
    return Target(name=name, region=node.region, host=host, port=int(port))
