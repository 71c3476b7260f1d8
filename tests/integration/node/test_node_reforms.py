"""A cluster whose seeds are all gone: those who remember each other become one again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from .cluster import Lab, lab

SEED = "a"


async def stop_together(cluster: Lab, *names: str) -> dict[str, dict[str, Any]]:
    """Stops them at once; the sections with which each starts again where it was."""
    where = {name: {"bind": cluster.nodes[name].addresses.gossip_address} for name in names}
    async with trio.open_nursery() as nursery:
        for name in (SEED, *names):
            nursery.start_soon(cluster.stop, name)
    return where


async def test_a_cluster_reforms_without_its_seeds(tmp_path: Path) -> None:
    async with lab(tmp_path, timeout_s=90) as cluster:
        seed = await cluster.start(SEED)
        seeds = [seed.addresses.gossip_address]
        for name in ("b", "c", "d"):
            await cluster.start(name, gossip={"seeds": seeds})
        await cluster.agree()
        where = await stop_together(cluster, "b", "c", "d")
        for name, gossip in where.items():
            await cluster.start(name, gossip=gossip | {"seeds": seeds})
        await cluster.agree("b", "c", "d")
