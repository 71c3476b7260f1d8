"""Inputs of decisions for the planner's tests: a guest as FACTS of its kind are measured."""

from __future__ import annotations

from typing import Any, Final

from protocol.costs import Blob, Forward, Inputs, Prices, Sources

MBIT: Final = 125_000.0
PRICED: Final = Prices(wire_s_per_byte=2e-8, cpu_s_per_s=0.01, stored_s_per_byte_s=1e-12)


def inputs(*, mbit: float = 100.0, here: str = "", **changes: Any) -> Inputs:
    """QuickJS with a table of 20,000 entries, on a node that has the blobs named in `here`."""
    sources = Sources(0.02, mbit * MBIT)
    names = here.split()

    def blob(name: str, wire_bytes: int, size_bytes: int) -> Blob:
        return Blob(
            wire_bytes=wire_bytes, size_bytes=size_bytes, here=name in names, sources=sources
        )

    given: dict[str, Any] = {
        "module": blob("module", 256_000, 730_000),
        "artifact": blob("artifact", 881_000, 2_200_000),
        "snapshot": blob("snapshot", 999_000, 7_200_000),
        "delta": blob("delta", 691_000, 0),
        "snapshot_artifact": blob("snapshot_artifact", 2_100_000, 10_700_000),
        "code_bytes": 600_000,
        "link_bytes_s": mbit * MBIT,
        "decompress_bytes_s": 700e6,
        "compile_bytes_s": 4.4e6,
        "compile_fixed_s": 0.03,
        "load_s": 0.0002,
        "init_s": 0.034,
        "make_snapshot_s": 0.5,
        "instantiate_s": 0.0003,
        "instantiate_snapshot_s": 0.0002,
        "run_s": 0.001,
        "waiting": 1,
        "rate_per_s": 0.5,
        "horizon_s": 600.0,
        "forward": Forward(rtt_s=0.06, per_call_s=0.0012, payload_bytes=2000),
        "prices": PRICED,
    }
    return Inputs(**(given | changes))
