"""What a run says of itself."""

from __future__ import annotations

from collections.abc import Mapping

from .runs import Run


def summary(run: Run, title: str) -> str:
    sim = run.sim
    virtual_s = max(sim.world.elapsed_s, 1e-9)
    per_node = sim.network.datagram_bytes / virtual_s / max(len(sim.nodes), 1)
    speed = virtual_s / max(run.cpu_s, 1e-9)
    lines = [
        f"{title}: ok",
        f"  virtual {virtual_s:.1f} s in {run.cpu_s:.2f} s CPU ({speed:.1f} × real time)",
        *(f"  {name:<16} {value:.2f}" for name, value in run.results.items()),
        f"  {'datagrams':<16} {sim.network.datagrams}, {per_node:.0f} bytes/s per node",
        f"  {'lost':<16} {sim.network.lost}, full sockets {sim.processes.overflown}",
        f"  {'streams':<16} {sim.streams.started}, broken {sim.streams.broken}",
        f"  {'events':<16} {_counts(sim.processes.events)}",
        f"  {'peaks':<16} {_counts(sim.checks.peaks)}",
    ]
    if sim.processes.refused:
        lines.append(f"  {'refused':<16} {_counts(sim.processes.refused)}")
    lines.append(f"  {'trace':<16} {sim.world.trace.hexdigest(16)}")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
