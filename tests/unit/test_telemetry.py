"""Logs and metrics belong to one node: two in a process share nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edged.metrics import family
from edged.telemetry import LEVELS, Metrics, make_log


def test_log_lines_are_json_bound_to_the_node() -> None:
    stream = io.StringIO()
    make_log("node-1", stream=stream).info("joined", seeds=2, odd="a\nb\x00é")
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "node": "node-1",
        "event": "joined",
        "level": "info",
        "seeds": 2,
        "odd": "a\nb\x00é",
    }


@pytest.mark.parametrize("level", LEVELS)
def test_levels_filter(level: str) -> None:
    stream = io.StringIO()
    log = make_log("n", level=level, stream=stream)
    for name in LEVELS:
        getattr(log, name)("event")
    written = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert written == [name for name, value in LEVELS.items() if value >= LEVELS[level]]


def test_exceptions_are_one_line() -> None:
    stream = io.StringIO()
    log = make_log("n", stream=stream)
    try:
        int("first\nsecond")
    except ValueError:
        log.exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_what_json_cannot_say_is_told_in_python() -> None:
    stream = io.StringIO()
    log = make_log("n", stream=stream)
    log.error("odd", exc_info=ValueError("given"), path={1}, broken="\ud800", none=None)
    log.info("no exception", exc_info=True)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["exception"] == "ValueError: given"
    assert (first["path"], first["broken"], first["none"]) == ("{1}", "\ud800", None)
    assert "exception" not in second


def test_loggers_do_not_share_state() -> None:
    first, second = io.StringIO(), io.StringIO()
    one = make_log("one", stream=first).bind(peer="x")
    make_log("two", stream=second).info("hello")
    one.info("hello")
    assert json.loads(second.getvalue())["node"] == "two"
    assert "peer" not in json.loads(second.getvalue())
    assert json.loads(first.getvalue())["peer"] == "x"


def test_what_json_cannot_say_is_written_as_its_repr() -> None:
    stream = io.StringIO()
    make_log("n", stream=stream).info("odd", path=Path("/a"), raw=b"\xff")
    entry = json.loads(stream.getvalue())
    assert (entry["path"], entry["raw"]) == ("PosixPath('/a')", r"b'\xff'")


def test_label_values_are_escaped() -> None:
    metrics = Metrics()
    odd = 'a"b\\c\nd\ud800é'
    metrics.errors.labels(odd).inc(2)
    metrics.registry.collect(lambda: [family("edged_x", "gauge", "X", "kind", {odd: 1e16})])
    samples = [
        sample
        for parsed in text_string_to_metric_families(metrics.render().decode())
        for sample in parsed.samples
        if sample.name in ("edged_errors_total", "edged_x")
    ]
    assert [list(sample.labels.values()) for sample in samples] == [['a"b\\c\nd?é']] * 2
    assert [sample.value for sample in samples] == [2, 1e16]


def test_children_may_be_removed() -> None:
    metrics = Metrics()
    metrics.errors.labels("a").inc()
    metrics.errors.remove("a")
    metrics.errors.remove("b")
    assert b'code="a"' not in metrics.render()


def test_metrics_render_as_prometheus_text() -> None:
    metrics = Metrics()
    metrics.requests.labels("hello", "200", "warm").inc()
    metrics.request_seconds.observe(0.004)
    metrics.members.labels("alive").set(3)
    families = {
        found.name: found for found in text_string_to_metric_families(metrics.render().decode())
    }
    (sample,) = [
        sample for sample in families["edged_requests"].samples if sample.name.endswith("_total")
    ]
    assert sample.labels == {"function": "hello", "status": "200", "start": "warm"}
    assert sample.value == 1
    assert families["edged_members"].samples[0].value == 3
    buckets = [
        sample.value
        for sample in families["edged_request_seconds"].samples
        if sample.labels.get("le") in {"0.0025", "0.005"}
    ]
    assert buckets == [0, 1]


def test_two_nodes_in_one_process() -> None:
    one, two = Metrics(), Metrics()
    one.running.set(5)
    assert b"edged_invocations_running 5.0" in one.render()
    assert b"edged_invocations_running 0.0" in two.render()
