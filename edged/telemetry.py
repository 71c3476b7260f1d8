"""Logs and metrics of one node. Nothing global: many nodes may live in one process.

Logs are JSON lines on stderr; metrics live in the node's own registry. edged/docs/API.md lists the
metrics.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Final, Protocol

from .metrics import Buckets, Metric, Registry

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Stream(Protocol):
    """Where log lines go: stderr, or a file that is kept short."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class Log:
    """JSON lines with fixed fields; threads may share it. A library for this cost each node 6 MB
    and a tenth of its start."""

    def __init__(
        self, stream: Stream, level: int, fields: dict[str, object], lock: threading.Lock
    ) -> None:
        self._stream = stream
        self._level = level
        self._fields = fields
        self._lock = lock

    def bind(self, **fields: object) -> Log:
        """One with more fields, writing to the same place."""
        return Log(self._stream, self._level, self._fields | fields, self._lock)

    def debug(self, event: str, **fields: object) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """`exc_info`: an exception, or True for the one being handled."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the exception being handled."""
        self._write("error", event, fields | {"exc_info": True})

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS[level] < self._level:
            return
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        row = {"timestamp": at, "level": level, **self._fields, "event": event, **fields}
        error = row.pop("exc_info", None)
        if error is True:
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            row["exception"] = "".join(traceback.format_exception(error)).rstrip()
        line = json.dumps(row, default=repr) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def make_log(node: str, *, level: str = "info", stream: Stream | None = None) -> Log:
    """A logger of its own, bound to the node's name."""
    return Log(stream or sys.stderr, LEVELS[level], {"node": node}, threading.Lock())


class Metrics:
    """The node's counters. Names follow Prometheus practice: base units, `_total` on counters."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = self._counter(
            "edged_requests", "Answers of the public gateway", "function", "status", "start"
        )
        self.request_seconds: Buckets = self.registry.histogram(
            "edged_request_seconds",
            "Time from the end of the request's head to the end of its answer",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
        )
        self.errors = self._counter("edged_errors", "Errors by code", "code")
        self.http_rejected = self._counter(
            "edged_http_rejected", "Requests and connections refused before routing", "reason"
        )
        self.forwards = self._counter(
            "edged_forwards", "Requests sent to peers that are ready, by result", "result"
        )
        self.running = self._gauge("edged_invocations_running", "Guests running now").labels()
        self.fetched_bytes = self._counter(
            "edged_fetched_wire_bytes", "Wire bytes from peers"
        ).labels()
        self.duplicate_bytes = self._counter(
            "edged_fetched_duplicate_bytes", "Wire bytes from peers that were here already"
        ).labels()
        self.control_bytes = self._counter(
            "edged_exchange_control_bytes", "Requests and notices to peers about blobs"
        ).labels()
        self.served_bytes = self._counter("edged_served_wire_bytes", "Wire bytes to peers").labels()
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
        self.trust_expires = self._gauge(
            "edged_trust_expires_seconds", "Unix time at which the node's certificate ends"
        ).labels()
        self.repairs = self._counter(
            "edged_repairs", "Modules fetched as this node is to have them, by result", "result"
        )
        self.copies_dropped = self._counter(
            "edged_copies_dropped", "Surplus modules given up"
        ).labels()
        self.under_replicated = self._gauge(
            "edged_under_replicated", "Modules that fewer nodes have than are wanted"
        ).labels()
        self.members = self._gauge("edged_members", "Members by state", "state")
        self._count_code()
        self._count_blobs()
        self._count_plans()

    def _count_code(self) -> None:
        self.compiles = self._counter("edged_compiles", "Compiles by result", "result")
        self.optimisations = self._counter(
            "edged_optimisations", "Background compiles that replace fast code, by result", "result"
        )
        self.compile_seconds = self._counter(
            "edged_compile_cpu_seconds", "CPU spent compiling"
        ).labels()
        self.artifacts_refused = self._counter(
            "edged_artifacts_refused", "Artifacts that were not opened, by reason", "reason"
        )
        self.artifacts_fetched = self._counter(
            "edged_artifacts_fetched", "Artifacts that others compiled, fetched and accepted"
        ).labels()
        self.audits = self._counter(
            "edged_audits", "Fetched artifacts compiled again, by result", "result"
        )
        self.snapshots = self._counter(
            "edged_snapshots", "Snapshots made, or made again to compare, by result", "result"
        )
        self.snapshot_seconds = self._counter(
            "edged_snapshot_cpu_seconds", "CPU spent making snapshots, their init included"
        ).labels()

    def _count_plans(self) -> None:
        self.plans = self._counter(
            "edged_plans", "Decisions about a function's code, by the form chosen", "form"
        )
        self.plan_changes = self._counter(
            "edged_plan_changes", "Decisions that took the place of another", "before", "after"
        )

    def _count_blobs(self) -> None:
        self.collected = self._counter("edged_gc_collected", "Blobs removed as unneeded", "kind")
        self.evicted = self._counter("edged_evicted", "Blobs removed for room", "kind")
        self.collected_bytes = self._counter(
            "edged_gc_collected_bytes", "Bytes of blobs removed as unneeded"
        ).labels()
        self.verified_bytes = self._counter(
            "edged_verified_bytes", "Bytes of the store that were hashed again"
        ).labels()
        self.damaged = self._counter(
            "edged_blobs_damaged", "Blobs and wire forms found damaged", "repaired"
        )
        self.blobs = self._gauge("edged_blobs", "Blobs held", "kind")
        self.blob_bytes = self._gauge("edged_blob_bytes", "Bytes of blobs held", "kind")

    def _counter(self, name: str, text: str, *labels: str) -> Metric:
        return self.registry.values(f"{name}_total", "counter", text, *labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Metric:
        return self.registry.values(name, "gauge", text, *labels)

    def render(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return self.registry.render()
