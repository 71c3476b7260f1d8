"""Pipes and flows: when what is sent arrives, by hand-made links and by statistics of a seed."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import pytest

from protocol.shaping import (
    CLEAR,
    PARETO_MAX,
    PIECE_BYTES_MAX,
    QUEUE_BYTES_MIN,
    RETRANSMIT_S,
    SEGMENT_BYTES,
    WINDOW_BYTES,
    Flow,
    Link,
    Pipe,
    queue_bytes_max,
)

MBIT = 125_000.0
DRAWS = 20_000


def pipe(link: Link, seed: int = 1) -> Pipe:
    return Pipe(link, random.Random(seed))


def delays(link: Link, seed: int = 1) -> list[float]:
    found = pipe(link, seed)
    return [found.delay() for _ in range(DRAWS)]


def test_a_clear_link_is_none() -> None:
    assert pipe(CLEAR).offer(1000, 5.0) == (5.0,)
    flow = Flow(pipe(CLEAR))
    assert flow.room(5.0, CLEAR) == PIECE_BYTES_MAX
    assert flow.send(1000, 5.0, CLEAR) == 5.0


def test_bytes_take_their_time_and_the_queue_is_bounded() -> None:
    slow = pipe(Link(latency_s=0.1, bandwidth_bytes_s=MBIT))
    assert slow.offer(1250, 0.0) == (pytest.approx(0.11),)
    assert slow.offer(1250, 0.0) == (pytest.approx(0.12),)
    fitting = 2
    while slow.offer(1250, 0.0) != "queue":
        fitting += 1
    assert fitting == pytest.approx(queue_bytes_max(MBIT) / 1250, abs=1)
    assert slow.offer(1250, 0.02) != "queue"
    assert slow.queue_bytes(100.0) == 0


def test_a_very_slow_link_holds_a_few_packets() -> None:
    assert queue_bytes_max(1000.0) == QUEUE_BYTES_MIN


def test_streams_leave_half_of_the_queue_to_datagrams() -> None:
    slow = pipe(Link(bandwidth_bytes_s=MBIT))
    flow, sent = Flow(slow), 0
    while size := flow.room(0.0, CLEAR):
        flow.send(size, 0.0, CLEAR)
        sent += size
    half = queue_bytes_max(MBIT) / 2
    assert half <= sent < half + slow.piece_bytes()
    assert slow.offer(1200, 0.0) != "queue"
    at = flow.room_at(CLEAR)
    assert flow.room(at - 0.001, CLEAR) == 0
    assert flow.room(at, CLEAR) > 0


def test_a_window_is_under_way_until_acknowledged() -> None:
    there, back = Link(latency_s=0.1), Link(latency_s=0.2)
    flow, sent = Flow(pipe(there)), 0
    while size := flow.room(0.0, back):
        flow.send(size, 0.0, back)
        sent += size
    assert sent == flow.under_way_bytes == WINDOW_BYTES
    assert flow.room_at(back) == pytest.approx(0.3)
    assert flow.room(0.29, back) == 0
    assert flow.room_at(Link(cut="drop")) == math.inf
    assert flow.room(0.31, Link(cut="drop")) == 0
    assert flow.room(0.31, back) == PIECE_BYTES_MAX
    assert flow.under_way_bytes == 0
    assert Flow(pipe(there)).room(0.0, back, window=10) == 10


def test_a_cut_drops_datagrams_and_holds_streams() -> None:
    dead = pipe(Link(cut="drop"))
    flow = Flow(dead)
    assert dead.offer(100, 0.0) == "cut"
    assert flow.room(0.0, CLEAR) == 0
    assert flow.room_at(CLEAR) == math.inf
    dead.change(CLEAR, 1.0)
    assert dead.offer(100, 1.0) == (1.0,)
    assert flow.room(1.0, CLEAR) > 0


def test_a_flow_stays_in_order_when_its_link_gets_faster() -> None:
    found = pipe(Link(latency_s=1.0))
    flow = Flow(found)
    assert flow.send(10, 0.0, CLEAR) == 1.0
    found.change(Link(latency_s=0.1), 0.0)
    assert flow.send(10, 0.0, CLEAR) == 1.0
    assert flow.end(0.0) == 1.0
    assert flow.send(10, 2.0, CLEAR) == pytest.approx(2.1)


def test_what_waits_leaves_at_the_new_bandwidth() -> None:
    found = pipe(Link(bandwidth_bytes_s=MBIT))
    for _ in range(10):
        found.offer(1250, 0.0)
    found.change(Link(bandwidth_bytes_s=10 * MBIT), 0.0)
    assert found.queue_bytes(0.0) == pytest.approx(12_500)
    assert found.offer(1250, 0.0) == (pytest.approx(0.011),)
    found.change(CLEAR, 0.0)
    assert found.offer(1250, 0.0) == (0.0,)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_loss_is_as_often_as_said_and_comes_in_bursts_if_said(correlation: float) -> None:
    found = pipe(Link(loss=0.1, correlation=correlation), seed=7)
    lost = [found.offer(100, 0.0) == "loss" for _ in range(DRAWS)]
    assert statistics.fmean(lost) == pytest.approx(0.1, abs=0.015)
    again = statistics.fmean(after for before, after in pairwise(lost) if before)
    assert again > 0.3 if correlation else again == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("jitter", ["uniform", "normal", "pareto"])
def test_the_median_delay_is_the_latency(jitter: str, correlation: float) -> None:
    link = Link(latency_s=0.1, jitter_s=0.02, jitter=jitter, correlation=correlation)  # type: ignore[arg-type]
    found = delays(link, seed=3)
    assert statistics.median(found) == pytest.approx(0.1, abs=0.001)
    assert statistics.correlation(found[:-1], found[1:]) == pytest.approx(correlation, abs=0.15)
    if jitter == "uniform":
        assert 0.08 <= min(found) < 0.081
        assert 0.119 < max(found) <= 0.12
    elif jitter == "normal":
        assert statistics.stdev(found) == pytest.approx(0.02, rel=0.05)
    else:
        assert 0.0947 < min(found) < 0.0949
        assert max(found) <= 0.1 + PARETO_MAX * 0.02
        assert sum(delay > 0.15 for delay in found) > DRAWS / 200


def test_no_delay_is_below_zero() -> None:
    found = delays(Link(latency_s=0.001, jitter_s=0.1))
    assert min(found) == 0
    assert statistics.median(found) == pytest.approx(0.001, abs=0.002)


def test_duplicates_and_late_ones_are_as_often_as_said() -> None:
    found = pipe(Link(latency_s=0.05, duplicate=0.2, reorder=0.1), seed=5)
    offers = [found.offer(100, 0.0) for _ in range(DRAWS)]
    assert statistics.fmean(len(offer) == 2 for offer in offers) == pytest.approx(0.2, abs=0.02)
    late = [offer[0] for offer in offers if isinstance(offer[0], float) and offer[0] > 0.05]
    assert len(late) / DRAWS == pytest.approx(0.1, abs=0.01)
    assert max(late) <= 0.1


def test_streams_pay_losses_in_time() -> None:
    lossy = pipe(Link(latency_s=0.1, loss=0.02), seed=9)
    large = [lossy.pass_piece(10 * SEGMENT_BYTES, 0.0, 0.2) for _ in range(DRAWS)]
    hit = 1 - 0.98**10
    assert statistics.fmean(at > 0.1 for at in large) == pytest.approx(hit, abs=0.02)
    assert sorted(set(large))[:2] == [0.1, pytest.approx(0.3)]
    small = [lossy.pass_piece(100, 0.0, 0.2) for _ in range(DRAWS)]
    assert statistics.fmean(at > 0.1 for at in small) == pytest.approx(0.02, abs=0.005)
    assert sorted(set(small))[:2] == [0.1, pytest.approx(0.1 + 0.2 + RETRANSMIT_S)]


def test_a_stream_over_a_link_that_loses_all_waits_at_most_a_minute() -> None:
    assert pipe(Link(loss=1.0)).pass_piece(100, 0.0, 0.1) == 60.0


def test_one_seed_is_one_fate() -> None:
    link = Link(0.1, 0.05, 0.1, MBIT, "pareto", 0.3, 0.1, 0.1)
    one, other = pipe(link), pipe(link)
    fates = [one.offer(500, at / 100) for at in range(500)]
    assert fates == [other.offer(500, at / 100) for at in range(500)]
