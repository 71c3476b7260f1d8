"""Carries a plan out: one task per request, begun when the plan says.

A client task waits as its region's links have it, asks, and tells one row (history.Request). When
more requests are under way than `in_flight_max`, the next wait: their latency counts from when they
were intended, and their lateness says that it was the client.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Final, NamedTuple

import trio

from edged.errors import ConfigError
from edged.lab.history import Request

from .around import Around, Severed, Target
from .client import Answer, Ask, Connect, Connection, Pools, Unusable, ask_of, connect
from .plan import Arrival, plan
from .spec import LoadSpec

OnResult = Callable[[Request], None]

STATUS_MAX: Final = 599
"""RFC 9110 §15: what is above is no status; a row has no room for it either."""
_REASONS: Final[Mapping[int, str]] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EMFILE: "client-fds",
    errno.ENFILE: "client-fds",
}


class Outcome(NamedTuple):
    answer: Answer | None
    error: str | None


async def run_load(
    spec: LoadSpec,
    around: Around,
    *,
    on_result: OnResult,
    rng: Random,
    started_at: float | None = None,
    flying: Callable[[int], None] = lambda _: None,
    connect: Connect = connect,
) -> None:
    """Returns when the last request is over. Cancelled, it tells nothing of those under way.

    `started_at`: the zero of the rows' times, of trio's clock; the load itself starts now. `flying`
    is told how many requests are under way, whenever that changes. `on_result` must not block.

    Raises ConfigError: clients are nowhere, or in a region that the topology does not have."""
    regions = spec.regions or around.regions
    if not regions:
        raise ConfigError("load: there is no target, and no region of clients is given")
    around.check_clients(spec.regions)
    clients = _Clients(spec, around, on_result, started_at, flying, connect)
    try:
        await clients.run(plan(spec, regions, rng))
    finally:
        clients.pools.keep_only(())


class _Clients:
    def __init__(
        self,
        spec: LoadSpec,
        around: Around,
        on_result: OnResult,
        started_at: float | None,
        flying: Callable[[int], None],
        connect: Connect,
    ) -> None:
        self._spec = spec
        self._around = around
        self._on_result = on_result
        self._begun_at = trio.current_time()
        self._zero_at = self._begun_at if started_at is None else started_at
        self._flying = flying
        self._open = connect
        self._asks = {function.name: ask_of(function) for function in spec.functions}
        self._slots = trio.Semaphore(spec.in_flight_max)
        self.pools = Pools()

    async def run(self, arrivals: Iterator[Arrival]) -> None:
        targets = self._around.targets
        async with trio.open_nursery() as nursery:
            for arrival in arrivals:
                await trio.sleep_until(self._begun_at + arrival.intended_s)
                await self._slots.acquire()
                if targets is not self._around.targets:
                    targets = self._around.targets
                    self.pools.keep_only(targets)
                self._tell_flying()
                nursery.start_soon(self._request, arrival)

    def _tell_flying(self) -> None:
        self._flying(self._spec.in_flight_max - self._slots.value)

    async def _request(self, arrival: Arrival) -> None:
        sent_at = trio.current_time()
        target = self._around.route(self._spec, arrival.region, arrival.luck)
        outcome = Outcome(None, "timeout")
        try:
            if target is None:
                outcome = Outcome(None, "no-target")
            else:
                with trio.move_on_after(self._spec.timeout_s):
                    outcome = await self._outcome(arrival, target)
        finally:
            self._slots.release()
            self._tell_flying()
        self._on_result(self._row(arrival, target, sent_at, outcome))

    async def _outcome(self, arrival: Arrival, target: Target) -> Outcome:
        ask = self._asks[arrival.function.name]
        try:
            answer = await self._ask(arrival.region, target, ask)
        except Unusable as error:
            return Outcome(None, error.why)
        except Severed:
            return Outcome(None, "reset")
        except OSError as error:
            return Outcome(None, _reason(error))
        status = answer.head.status
        if status > STATUS_MAX:
            return Outcome(None, "not-http")
        return Outcome(answer, f"http-{status}" if status >= 400 else None)

    async def _ask(self, region: str, target: Target, ask: Ask) -> Answer:
        """Raises Unusable, Severed, OSError."""
        while True:
            connection = self.pools.idle(region, target)
            fresh = connection is None
            if connection is None:
                connection = await self._connect(region, target)
            try:
                answer = await self._exchange(region, target, ask, connection)
            except Unusable as error:
                # It may have been closed for idleness the moment before it was used again.
                if fresh or error.answered or not ask.idempotent:
                    raise
                continue
            self.pools.done(region, target, connection)
            return answer

    async def _connect(self, region: str, target: Target) -> Connection:
        """Raises OSError."""
        way = self._around.way(region, target)
        try:
            await self._around.handshake(way)
        except Severed as error:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the link refuses") from error
        return await self._open(target)

    async def _exchange(
        self, region: str, target: Target, ask: Ask, connection: Connection
    ) -> Answer:
        """The connection is closed unless all went well."""
        way = self._around.way(region, target)
        try:
            await self._around.there(way, ask.size_bytes)
            answer = await connection.exchange(ask)
            await self._around.back(way, answer.head.size_bytes + answer.body_bytes)
        except BaseException:
            connection.close()
            raise
        return answer

    def _row(
        self, arrival: Arrival, target: Target | None, sent_at: float, outcome: Outcome
    ) -> Request:
        done_s = self._seconds(trio.current_time())
        answer = outcome.answer
        return Request(
            t_s=done_s,
            region=arrival.region,
            node="" if target is None else target.name,
            function=arrival.function.name,
            intended_s=self._seconds(self._begun_at + arrival.intended_s),
            sent_s=self._seconds(sent_at),
            done_s=done_s,
            status=None if answer is None else answer.head.status,
            start=None if answer is None else answer.head.start,
            answered_by=None if answer is None else answer.head.answered_by,
            version=None if answer is None else answer.head.version,
            body_digest=None if answer is None else answer.body_digest,
            body_bytes=0 if answer is None else answer.body_bytes,
            error=outcome.error,
        )

    def _seconds(self, at: float) -> float:
        return round(max(0.0, at - self._zero_at), 6)


def _reason(error: OSError) -> str:
    """trio tells a failed connect as an OSError whose cause says why, for one address or many."""
    causes: list[BaseException] = [error]
    while causes:
        cause = causes.pop()
        if isinstance(cause, OSError) and (known := _REASONS.get(cause.errno or 0)):
            return known
        if isinstance(cause, BaseExceptionGroup):
            causes.extend(cause.exceptions)
        if cause.__cause__ is not None:
            causes.append(cause.__cause__)
    return "unreachable"
