"""The generator against scripted servers on memory streams, on a virtual clock: times are exact."""

from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

import h11
import pytest
import trio
from blake3 import blake3
from trio.testing import MockClock, memory_stream_pair

from edged.errors import ConfigError
from edged.lab.history import Request
from edged.lab.load.around import Around, Target
from edged.lab.load.client import Connection
from edged.lab.load.runner import run_load
from edged.lab.load.spec import FunctionLoad, LoadSpec, parse_stages
from edged.lab.load.summary import Collector
from edged.links import EMPTY, Document, heal, partition
from edged.topology import File, LinkRow

NEAR = Target("n1", "eu", "192.0.2.1", 80)
FAR = Target("n2", "us", "192.0.2.2", 80)
GEO = Document(
    topology=File(
        regions={"eu": 1.0, "us": 1.0},
        rtt_ms={"eu": {"us": 100.0}},
        link=LinkRow(latency_ms=1.0),
    )
)
HELLO = FunctionLoad(name="hello")
Behave = Callable[[trio.abc.Stream], Awaitable[None]]


async def answer(stream: trio.abc.Stream, request: h11.Request, body: bytes = b"hello") -> None:
    told = [("content-length", str(len(body))), ("x-edged-node", "n1"), ("x-edged-start", "warm")]
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    server.next_event()
    data = server.send(h11.Response(status_code=200, headers=[*told, ("x-edged-version", "v1")]))
    data += server.send(h11.Data(data=body))
    await stream.send_all(data + server.send(h11.EndOfMessage()))


async def requests(stream: trio.abc.Stream):
    while True:
        reader = h11.Connection(h11.SERVER)
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Request):
                first = event
            elif isinstance(event, h11.EndOfMessage):
                yield first
                break
            elif event is h11.NEED_DATA:
                data = await stream.receive_some()
                if not data:
                    return
                reader.receive_data(data)


def steady(service_s: float) -> Behave:
    async def behave(stream: trio.abc.Stream) -> None:
        async for request in requests(stream):
            await trio.sleep(service_s)
            await answer(stream, request)

    return behave


class Run:
    """One load; `rows` as they came, `connects` by target."""

    def __init__(self, behave: Behave, targets: tuple[Target, ...] = (NEAR,)) -> None:
        self.rows: list[Request] = []
        self.connects: Counter[str] = Counter()
        self.ends: list[trio.abc.Stream] = []
        self.behave = behave
        self.targets = targets

    async def __call__(
        self,
        spec: LoadSpec,
        document: Document = EMPTY,
        meanwhile: Callable[[Around], Awaitable[None]] | None = None,
    ) -> list[Request]:
        around = Around(self.targets, document, Random(1))
        async with trio.open_nursery() as nursery:

            async def connect(target: Target) -> Connection:
                self.connects[target.name] += 1
                ours, theirs = memory_stream_pair()
                self.ends.append(theirs)
                nursery.start_soon(self._serve, theirs)
                return Connection(ours, quiet=lambda: True, close=ours.send_stream.close)

            if meanwhile is not None:
                nursery.start_soon(meanwhile, around)
            started_at = trio.current_time()
            await run_load(
                spec,
                around,
                on_result=self.rows.append,
                rng=Random(2),
                started_at=started_at,
                connect=connect,
            )
            nursery.cancel_scope.cancel()
        return self.rows

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            await self.behave(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def load(rate: str, **more: object) -> LoadSpec:
    return LoadSpec(functions=(HELLO,), stages=parse_stages(rate), arrivals="constant", **more)  # type: ignore[arg-type]


def latencies(rows: list[Request]) -> list[float]:
    return [round(row.done_s - row.intended_s, 6) for row in rows]


async def test_a_row_tells_what_was_asked_and_answered(autojump_clock: MockClock) -> None:
    (row,) = await Run(steady(0.25))(load("1:1s"))
    assert row == Request(
        t_s=0.25, region="eu", node="n1", function="hello", intended_s=0.0, sent_s=0.0,
        done_s=0.25, status=200, start="warm", answered_by="n1", version="v1",
        body_digest=blake3(b"hello").hexdigest(), body_bytes=5, error=None,
    )  # fmt: skip


async def test_connections_are_kept_and_requests_never_wait_for_each_other(
    autojump_clock: MockClock,
) -> None:
    run = Run(steady(0.25))
    rows = await run(load("10:2s"))
    assert latencies(rows) == [0.25] * 20
    assert run.connects["n1"] == 3  # of 0.25 s each, 10 a second


async def test_a_system_that_stalls_does_not_stall_the_clients(autojump_clock: MockClock) -> None:
    """Coordinated omission: a closed loop would see one slow request here instead of 21."""

    async def stalls_for_two_seconds(stream: trio.abc.Stream) -> None:
        async for request in requests(stream):
            now = trio.current_time() - zero
            await trio.sleep(2.0 - now if now < 2.0 else 0.0)
            await answer(stream, request)

    zero = trio.current_time()
    rows = await Run(stalls_for_two_seconds)(load("10:4s"))
    assert len(rows) == 40
    assert sorted(latencies(rows), reverse=True)[:20] == pytest.approx(
        [2.0 - n / 10 for n in range(20)]
    )


async def test_a_full_client_says_that_it_is_late(autojump_clock: MockClock) -> None:
    spec = load("10:1s", in_flight_max=1)
    rows = await Run(steady(0.2))(spec)
    assert latencies(rows) == pytest.approx([0.2 + n / 10 for n in range(10)])
    collected = Collector(spec)
    for row in rows:
        collected.add(row)
    summary = collected.summary()
    assert summary.lateness_ms.max == pytest.approx(900)
    assert "did not keep up: 90.0% of requests" in summary.warnings[0]


async def test_a_region_is_as_far_as_the_links_say(autojump_clock: MockClock) -> None:
    """A handshake's round trip, the request's and the answer's; the handshake only once."""
    run = Run(steady(0.01), targets=(FAR,))
    rows = await run(load("1:3s", regions={"eu": 1.0}), GEO)
    assert latencies(rows) == pytest.approx([0.21, 0.11, 0.11])


async def test_bandwidth_and_loss_cost_time(autojump_clock: MockClock) -> None:
    """125 kB take a second at 1 Mbit/s; a lost segment costs at least a round trip."""

    async def verbose(stream: trio.abc.Stream) -> None:
        async for request in requests(stream):
            await answer(stream, request, b"x" * 125_000)

    narrow = Document(
        topology=File(regions={"us": 1.0}, link=LinkRow(latency_ms=50, bandwidth_mbit=1))
    )
    (row,) = await Run(verbose, targets=(FAR,))(load("1:1s"), narrow)
    assert latencies([row]) == [pytest.approx(0.2 + 1.0, abs=0.01)]
    lossy = Document(topology=File(regions={"us": 1.0}, link=LinkRow(latency_ms=50, loss=0.2)))
    rows = await Run(steady(0.0), targets=(FAR,))(load("20:10s"), lossy)
    slow = [latency for latency in latencies(rows) if latency > 0.29]
    assert 0.2 < len(slow) / len(rows) < 0.55
    assert {row.error for row in rows} == {None}


@pytest.mark.parametrize(
    ("routing", "asked"),
    [("nearest", {"n1": 20}), ("node:n2", {"n2": 20}), ("node:n9", {"": 20})],
)
async def test_routing(autojump_clock: MockClock, routing: str, asked: dict[str, int]) -> None:
    run = Run(steady(0.0), targets=(FAR, NEAR))
    rows = await run(load("20:1s", routing=routing, regions={"eu": 1.0}), GEO)
    assert Counter(row.node for row in rows) == asked
    assert {row.error for row in rows} == ({"no-target"} if "" in asked else {None})


async def test_random_routing_reaches_all(autojump_clock: MockClock) -> None:
    rows = await Run(steady(0.0), targets=(FAR, NEAR))(load("40:1s", routing="random"), GEO)
    assert min(Counter(row.node for row in rows).values()) > 10


async def test_a_cut_way_hangs_until_the_timeout_or_until_it_is_healed(
    autojump_clock: MockClock,
) -> None:
    cut = partition(GEO, [["eu"], ["us"]])

    async def heals(around: Around) -> None:
        await trio.sleep(6.5)
        around.set_document(heal(cut))

    run = Run(steady(0.0), targets=(FAR,))
    rows = await run(load("1:8s", regions={"eu": 1.0}, timeout_s=3.0), cut, heals)
    by_time = sorted(rows, key=lambda row: row.intended_s)
    assert [row.error for row in by_time] == ["timeout"] * 4 + [None] * 4
    assert by_time[0].done_s == 3.0
    assert by_time[4].done_s == pytest.approx(6.7)


async def test_a_way_that_resets_refuses_at_once(autojump_clock: MockClock) -> None:
    cut = partition(GEO, [["eu"], ["us"]], cut="reset")
    rows = await Run(steady(0.0), targets=(FAR,))(load("1:2s", regions={"eu": 1.0}), cut)
    assert [row.error for row in rows] == ["refused"] * 2


async def test_a_cut_while_an_answer_is_awaited_resets_it(autojump_clock: MockClock) -> None:
    async def cuts(around: Around) -> None:
        await trio.sleep(0.5)
        around.set_document(partition(GEO, [["eu"], ["us"]], cut="reset"))

    rows = await Run(steady(1.0), targets=(FAR,))(load("1:1s", regions={"eu": 1.0}), GEO, cuts)
    assert [row.error for row in rows] == ["reset"]


async def test_a_node_that_comes_is_asked_and_one_that_goes_is_not(
    autojump_clock: MockClock,
) -> None:
    async def moves(around: Around) -> None:
        await trio.sleep(0.95)
        around.set_targets([FAR])

    run = Run(steady(0.0))
    rows = await run(load("10:2s", regions={"eu": 1.0}), meanwhile=moves)
    assert Counter(row.node for row in rows) == {"n1": 10, "n2": 10}


async def test_what_answers_too_late_is_a_timeout_of_exactly_that_length(
    autojump_clock: MockClock,
) -> None:
    rows = await Run(steady(5.0))(load("1:2s", timeout_s=1.5))
    assert [row.error for row in rows] == ["timeout"] * 2
    assert latencies(rows) == [1.5, 1.5]


async def closes(stream: trio.abc.Stream) -> None:
    async for _ in requests(stream):
        await stream.aclose()
        return


async def babbles(stream: trio.abc.Stream) -> None:
    async for _ in requests(stream):
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def stops_halfway(stream: trio.abc.Stream) -> None:
    async for _ in requests(stream):
        await stream.send_all(b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhe")
        await stream.aclose()
        return


async def refuses_politely(stream: trio.abc.Stream) -> None:
    async for _ in requests(stream):
        await stream.send_all(b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n")


async def invents_a_status(stream: trio.abc.Stream) -> None:
    async for _ in requests(stream):
        await stream.send_all(b"HTTP/1.1 777 \r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (closes, "reset"),
        (babbles, "not-http"),
        (stops_halfway, "reset"),
        (refuses_politely, "http-503"),
        (invents_a_status, "not-http"),
    ],
)
async def test_failures_have_names(autojump_clock: MockClock, behave: Behave, error: str) -> None:
    (row,) = await Run(behave)(load("1:1s"))
    assert row.error == error
    assert row.status == (503 if error == "http-503" else None)


async def only_once(stream: trio.abc.Stream) -> None:
    async for request in requests(stream):
        await answer(stream, request)
        break
    async for _ in requests(stream):
        await stream.aclose()
        return


@pytest.mark.parametrize(
    ("method", "errors"), [("GET", [None] * 3), ("POST", [None, "reset", None])]
)
async def test_a_kept_connection_that_ends_is_made_anew_where_that_is_safe(
    autojump_clock: MockClock, method: str, errors: list[str | None]
) -> None:
    run = Run(only_once)
    function = FunctionLoad(name="hello", method=method)
    rows = await run(
        LoadSpec(functions=(function,), stages=parse_stages("1:3s"), arrivals="constant")
    )
    assert [row.error for row in rows] == errors


async def test_clients_must_be_somewhere() -> None:
    around = Around([FAR], GEO, Random(1))
    with pytest.raises(ConfigError, match="'atlantis': no region of the topology; there are eu"):
        around.check_clients(["eu", "atlantis"])
    Around([FAR], EMPTY, Random(1)).check_clients(["atlantis"])
    with pytest.raises(ConfigError, match="there is no target"):
        await run_load(
            load("1:1s"), Around([], EMPTY, Random(1)), on_result=[].append, rng=Random(1)
        )
    with pytest.raises(ConfigError, match="2000 targets"):
        Around([NEAR] * 2000, EMPTY, Random(1))
