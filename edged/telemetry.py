"""Logs and metrics of one node. Nothing global: many nodes may live in one process.

Logs are JSON lines on stderr (structlog); metrics live in the node's own prometheus registry.
"""

from __future__ import annotations

import sys
from typing import TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Log = structlog.typing.FilteringBoundLogger

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def make_log(node: str, *, level: str = "info", stream: TextIO | None = None) -> Log:
    """A logger of its own, bound to the node's name."""
    log: Log = structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        context_class=dict,
    )
    return log.bind(node=node)


class Metrics:
    """The node's counters. Names follow Prometheus practice: base units, `_total` on counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "edged_requests", "Answers of the public gateway", "function", "status", "start"
        )
        self.request_seconds = Histogram(
            "edged_request_seconds",
            "Time from the end of the request's head to the end of its answer",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.errors = self._counter("edged_errors", "Errors by code", "code")
        self.http_rejected = self._counter(
            "edged_http_rejected", "Requests and connections refused before routing", "reason"
        )
        self.running = self._gauge("edged_invocations_running", "Guests running now")
        self.compiles = self._counter("edged_compiles", "Compiles by result", "result")
        self.compile_seconds = self._counter("edged_compile_cpu_seconds", "CPU spent compiling")
        self.fetched_bytes = self._counter("edged_fetched_wire_bytes", "Wire bytes from peers")
        self.served_bytes = self._counter("edged_served_wire_bytes", "Wire bytes to peers")
        self.streams_refused = self._counter(
            "edged_streams_refused", "Inbound peer streams refused or cut", "reason"
        )
        self.datagrams = self._counter("edged_datagrams", "Gossip datagrams", "direction")
        self.datagram_bytes = self._counter(
            "edged_datagram_bytes", "UDP payload bytes", "direction"
        )
        self.datagrams_dropped = self._counter(
            "edged_datagrams_dropped", "Datagrams that were refused", "reason"
        )
        self.members = self._gauge("edged_members", "Members by state", "state")
        self.blobs = self._gauge("edged_blobs", "Blobs held", "kind")
        self.blob_bytes = self._gauge("edged_blob_bytes", "Bytes of blobs held", "kind")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def render(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self.registry)
