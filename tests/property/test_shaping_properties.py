"""Any link, any sends: no bandwidth out of nothing, order within a flow, delays within bounds."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocol.shaping import (
    CLEAR,
    RECOVERY_S_MAX,
    REORDER_S,
    Flow,
    Link,
    Pipe,
    queue_bytes_max,
)

shares = st.floats(0, 1) | st.just(0.0)
rates = st.none() | st.floats(1_000, 1e9)
links = st.builds(
    Link,
    latency_s=st.floats(0, 2),
    jitter_s=st.floats(0, 1) | st.just(0.0),
    loss=shares,
    bandwidth_bytes_s=rates,
    jitter=st.sampled_from(["uniform", "normal", "pareto"]),
    correlation=st.floats(0, 0.999) | st.just(0.0),
    duplicate=shares,
    reorder=shares,
    cut=st.sampled_from([None, None, None, "drop", "reset"]),
)
sends = st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 1500)), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


@given(links, sends, seeds)
def test_datagrams_come_after_they_left_and_never_above_the_bandwidth(
    link: Link, sends: list[tuple[float, int]], seed: int
) -> None:
    pipe, now, passed, begun = Pipe(link, random.Random(seed)), 0.0, 0, 0.0
    for pause_s, size in sends:
        now += pause_s
        before = pipe.queue_bytes(now)
        if not before:
            begun, passed = now, 0
        fate = pipe.offer(size, now)
        rate = link.bandwidth_bytes_s
        if link.cut is not None:
            assert fate == "cut"
        elif fate == "queue":
            assert rate is not None
            assert before + size > queue_bytes_max(rate)
        elif fate != "loss":
            passed += size
            left_at = now if rate is None else max(now, begun + passed / rate - 1e-9)
            assert all(arrival >= left_at - 1e-6 for arrival in fate)
            latest = now + (0 if rate is None else queue_bytes_max(rate) / rate)
            if link.jitter == "uniform":
                most = link.latency_s + link.jitter_s + max(link.latency_s, REORDER_S)
                assert max(fate) <= latest + most + 1e-6
        else:
            passed += size
        if rate is not None:
            assert pipe.queue_bytes(now) <= queue_bytes_max(rate) + 1e-3


@given(links, links, sends, seeds)
def test_a_flow_is_in_order_and_within_its_window(
    link: Link, other: Link, sends: list[tuple[float, int]], seed: int
) -> None:
    pipe, now = Pipe(link, random.Random(seed)), 0.0
    flow, arrivals, window = Flow(pipe), list[float](), 10_000
    for at, (pause_s, size) in enumerate(sends):
        now += pause_s
        if at == len(sends) // 2:
            pipe.change(other, now)
        size = min(size, flow.room(now, CLEAR, window))
        if size:
            arrivals.append(flow.send(size, now, CLEAR))
            assert arrivals[-1] >= now
        else:
            assert flow.room_at(CLEAR, window) > now
        assert flow.under_way_bytes <= window
    assert all(one <= two for one, two in pairwise(arrivals))
    assert flow.end(now) >= max(arrivals, default=now)


@given(links, st.integers(1, 300_000), seeds)
def test_a_piece_arrives_at_last(link: Link, size: int, seed: int) -> None:
    pipe = Pipe(link, random.Random(seed))
    rate = link.bandwidth_bytes_s
    passing_s = 0 if rate is None else size / rate
    stray_s = 21 * link.jitter_s
    arrival = pipe.pass_piece(size, 0.0, 0.1)
    assert passing_s <= arrival <= passing_s + link.latency_s + stray_s + 2 * RECOVERY_S_MAX
