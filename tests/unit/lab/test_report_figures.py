"""What a report computes from a run's rows."""

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.lab import history as h
from edged.lab.report import figures, plots, style
from edged.lab.report.plots import LANES_MAX, packed
from edged.lab.runfolder import read_history
from tests.unit.lab.recorded import END_S, FAULTS, HOSTILE, NODES, write_run

RUN = h.Run(t_s=0.0, scenario="s", seed=1, started_at_ms=0, nodes=NODES, functions=(), replay="")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> h.History:
    return read_history(write_run(tmp_path_factory.mktemp("run") / "run"))


def history(*rows: h.HistoryRow, requests: tuple[h.Request, ...] = (), samples=()) -> h.History:
    return h.History(run=RUN, timeline=(), rows=(RUN, *rows), requests=requests, samples=samples)


def request(intended_s: float, latency_s: float = 0.01, **more: object) -> h.Request:
    done_s = intended_s + latency_s
    return h.Request(
        t_s=done_s, region="eu-west-1", node="n1", function="f", intended_s=intended_s,
        sent_s=intended_s, done_s=done_s, **more,
    )  # fmt: skip


def test_a_fault_lasts_from_its_begin_to_its_end_with_its_proof(recorded: h.History) -> None:
    spans = figures.spans(recorded)
    assert [(s.fault.id, s.begin_s, s.end_s, s.proof) for s in spans] == [
        (name, begin_s, end_s, proof) for name, _, _, begin_s, end_s, proof, _ in FAULTS
    ]


def test_a_fault_that_was_never_ended_lasts_to_the_end_of_the_run() -> None:
    begun = h.Fault(t_s=2.0, id="a", action="kill", targets=("n1",), state="begun")
    (span,) = figures.spans(history(begun, h.Phase(t_s=9.0, name="end")))
    assert (span.end_s, span.proof) == (9.0, "begun")


def test_phases_end_where_the_next_begins(recorded: h.History) -> None:
    windows = figures.windows(recorded)
    assert [(w.begin_s, w.end_s) for w in windows] == [(0, 10), (10, 50), (50, END_S)]


def test_requests_count_when_they_were_intended() -> None:
    rows = tuple(request(n / 50, 3.0 if n < 50 else 0.01) for n in range(100))
    course = figures.course(history(requests=rows))
    assert course.width_s == pytest.approx(0.66, abs=0.01)
    assert [bucket.requests for bucket in course.buckets] == [33, 33, 34]
    medians = [bucket.latency_ms["p50"] for bucket in course.buckets]
    assert medians == pytest.approx([3000, 3000, 10], rel=0.001)


def test_buckets_hold_enough_requests_for_their_quantiles() -> None:
    sparse = tuple(request(float(n)) for n in range(60))
    course = figures.course(history(requests=sparse))
    assert len(course.buckets) <= 3
    assert sum(bucket.requests for bucket in course.buckets) == 60


def test_failed_requests_are_errors_and_no_latency() -> None:
    rows = (request(0.1, error="timeout"), request(0.2, 4.0, error="reset"))
    (bucket,) = figures.course(history(requests=rows)).buckets
    assert (bucket.errors, bucket.latency_ms["p99"]) == (2, None)


def test_a_run_without_requests_has_an_empty_course() -> None:
    assert [b.requests for b in figures.course(history()).buckets] == [0]


def test_latency_by_client_and_answering_region() -> None:
    rows = (
        request(0.0, 0.1, answered_by="n1"),
        request(0.1, 0.3, answered_by="n1"),
        request(0.2, 0.5, answered_by="n1"),
        request(0.3, 0.7, answered_by="n3"),
        request(0.4, 9.9, answered_by="n3", error="http-503"),
    )
    matrix = figures.by_answerer(history(requests=rows))
    assert matrix.rows == ("eu-west-1",)
    assert matrix.cells == pytest.approx(
        {("eu-west-1", "us-east-1"): 300, ("eu-west-1", "eu-west-1"): 700}, rel=0.001
    )


def test_more_names_than_fit_are_counted() -> None:
    rows = tuple(request(0.1, answered_by=f"x{n:02}") for n in range(20))
    matrix = figures.by_answerer(history(requests=rows))
    assert (len(matrix.columns), matrix.left_out) == (figures.NAMES_MAX, 4)


def sample(t_s: float, node: str, **more: object) -> h.Sample:
    return h.Sample(t_s=t_s, node=node, state="ready", **more)


def test_bytes_of_a_node_that_starts_again_are_added_up() -> None:
    counts = [100, 300, 50, 80]
    samples = tuple(
        sample(float(at), "n1", links={"n3": h.LinkCount(stream_bytes=n, dropped=at % 2)})
        for at, n in enumerate(counts)
    )
    matrix = figures.link_bytes(history(samples=samples))
    assert matrix.cells == {("us-east-1", "eu-west-1"): 380.0}


def test_cpu_is_per_process_and_a_gap_is_a_gap() -> None:
    samples = (
        sample(0.0, "n1", pid=1, cpu_s=1.0, rss_bytes=2**20),
        sample(1.0, "n1", pid=1, cpu_s=1.5, rss_bytes=2**21),
        sample(2.0, "n1"),
        sample(3.0, "n1", pid=2, cpu_s=0.1, rss_bytes=2**20),
        sample(5.0, "n1", pid=2, cpu_s=0.5, rss_bytes=2**20),
    )
    (track,) = figures.tracks(history(samples=samples))
    assert [value for _, value in track.cpu if not math.isnan(value)] == [0.5, 0.2]
    assert [value for _, value in track.memory if not math.isnan(value)] == [1, 2, 1, 1]
    assert math.isnan(track.memory[2][1])


def test_convergence_is_grouped_by_the_event_it_follows(recorded: h.History) -> None:
    events = figures.settled(recorded)
    assert [event.event for event in events][:3] == ["start", "f1 kill", "f2 partition"]
    assert all(len(event.rows) == 3 for event in events)


def test_what_comes_after_a_fault_s_begin_is_named_by_the_fault(recorded: h.History) -> None:
    row = h.Converged(t_s=1.0, what="catalog", after="f1 begun", seconds=1.0, waited_s=1.0)
    events = figures.settled(msgspec.structs.replace(recorded, rows=(*recorded.rows, row)))
    assert events[-1].event == "f1 kill begun"


def test_what_was_overtaken_is_not_said_to_have_failed() -> None:
    pytest.importorskip("matplotlib")
    rows = [
        h.Converged(t_s=1.0, what="catalog", after="f1", seconds=None, waited_s=waited_s)
        for waited_s in (2.0, 15.0)
    ]
    with style.drawing():
        made = plots.convergence([figures.Settled("f1 kill", tuple(rows))], h.Bounds())
    assert "1 did not converge, 1 were overtaken by the next event" in made.about


@settings(max_examples=30)
@given(st.text(max_size=80), st.integers(1, 40))
def test_text_is_one_printable_line_of_bounded_length(text: str, limit: int) -> None:
    shown = figures.plain(text, limit)
    assert len(shown) <= limit
    assert all(c.isprintable() for c in shown)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), max_size=60))
def test_no_fault_is_drawn_over_another(times: list[tuple[float, float]]) -> None:
    rows = [
        figures.Span(
            h.Fault(t_s=begin_s, id=str(number), action=HOSTILE, targets=(), state="begun"),
            begin_s,
            min(100.0, begin_s + length_s),
            "proven",
            "",
        )
        for number, (begin_s, length_s) in enumerate(sorted(times), 1)
    ]
    lanes = packed(rows, 100.0)
    assert len(lanes) == len(rows)
    for number in range(LANES_MAX - 1):
        mine = [r for r, lane in zip(rows, lanes, strict=True) if lane.number == number]
        assert all(a.end_s <= b.begin_s for a, b in pairwise(mine))
