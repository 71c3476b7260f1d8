"""Looking at every node once per second: what it says, and what the kernel says of its process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from edged.cluster.process import is_running
from edged.lab.history import Artifact, LinkCount, Sample

from .clock import RunClock
from .control import Artifacts, LinkPeer, Links, Members, Status
from .field import Field, cpu_s

PERIOD_S: Final = 1.0
LOOK_TIMEOUT_S: Final = 5.0


class Sampler:
    def __init__(
        self,
        field: Field,
        clock: RunClock,
        write: Callable[[Sample], None],
        flush: Callable[[], None],
    ) -> None:
        self._field = field
        self._clock = clock
        self._write = write
        self._flush = flush

    async def run(self) -> None:
        """Until cancelled. A node that is slow to answer delays its own next sample only."""
        async with trio.open_nursery() as nursery:
            for name in self._field.names:
                nursery.start_soon(self._watch, name)
            while True:
                await trio.sleep(PERIOD_S)
                self._flush()

    async def _watch(self, name: str) -> None:
        while True:
            next_s = trio.current_time() + PERIOD_S
            await self._one(name)
            await trio.sleep_until(next_s)

    async def once(self) -> None:
        """All of them, now."""
        async with trio.open_nursery() as nursery:
            for name in self._field.names:
                nursery.start_soon(self._one, name)
        self._flush()

    async def _one(self, name: str) -> None:
        known = self._field.processes()[name]
        if known is None or not is_running(known):
            state = "stopped" if known is None else "dead"
            self._write(Sample(t_s=self._clock.now(), node=name, state=state))
            return
        if name in self._field.paused:
            sample = Sample(t_s=self._clock.now(), node=name, state="paused", pid=known.pid)
            self._write(sample)
            return
        status = members = links = None
        code: tuple[Artifact, ...] = ()
        with trio.move_on_after(LOOK_TIMEOUT_S):
            status = await self._field.ask(name, "/v1/status", Status)
            if status is not None:
                members = await self._field.ask(name, "/v1/members", Members)
                links = await self._field.ask(name, "/v1/links", Links)
                code = await self._code(name)
        self._write(
            Sample(
                t_s=self._clock.now(),
                node=name,
                state="unreachable" if status is None else status.state,
                pid=known.pid,
                generation=None if status is None else status.gossip.generation,
                cpu_s=cpu_s(known),
                rss_bytes=rss_bytes(known.pid),
                fds=entries(f"/proc/{known.pid}/fd"),
                threads=entries(f"/proc/{known.pid}/task"),
                alive=None if members is None else members.alive,
                catalog=None if status is None else status.catalog,
                under_replicated=None if status is None else status.replication.under_replicated,
                artifacts=code,
                links={} if links is None else {peer.name: counted(peer) for peer in links.peers},
            )
        )

    async def _code(self, name: str) -> tuple[Artifact, ...]:
        found = await self._field.ask(name, "/v1/artifacts", Artifacts)
        rows = () if found is None else found.artifacts
        return tuple(
            Artifact(
                module=row.module,
                key=row.artifact_key,
                digest=row.digest,
                builders=row.builders,
                own=row.own,
            )
            for row in rows
        )


def counted(peer: LinkPeer) -> LinkCount:
    return LinkCount(
        datagrams=peer.datagrams,
        dropped=sum(peer.datagrams_dropped.values()),
        duplicated=peer.datagrams_duplicated,
        delayed=peer.datagrams_delayed,
        stream_bytes=peer.stream_bytes,
        resets=peer.streams_reset + peer.connects_refused,
        queued_bytes=peer.queue_bytes,
    )


def rss_bytes(pid: int) -> int | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def entries(directory: str) -> int | None:
    try:
        return len(os.listdir(directory))
    except OSError:
        return None
