"""After each event the cluster agrees again within a bound: on members, catalog and copies.

A measurement that the next event overtook shows nothing, neither way.
"""

from __future__ import annotations

from typing import Final

from edged.lab.history import Converged, Convergence, Finding, History

from .base import Invariant


def _bound_s(history: History, what: Convergence) -> float:
    bounds = history.run.bounds
    return {
        "membership": bounds.membership_s,
        "catalog": bounds.catalog_s,
        "replicas": bounds.replicas_s,
    }[what]


def _invariant(name: str, what: Convergence, states: str) -> Invariant:
    def check(history: History) -> list[Finding]:
        bound_s = _bound_s(history, what)
        return [
            Finding(
                t_s=row.t_s,
                invariant=name,
                subject=f"after {row.after or 'the start'}",
                detail=_told(row, bound_s),
            )
            for row in history.of(Converged)
            if row.what == what and _late(row, bound_s)
        ]

    def doubts(history: History) -> list[str]:
        bound_s = _bound_s(history, what)
        rows = [row for row in history.of(Converged) if row.what == what]
        if any(row.seconds is not None or _late(row, bound_s) for row in rows):
            return []
        return [f"{what}: not once was there time enough to see it converge"]

    return Invariant(name, states, check, doubts)


def _late(row: Converged, bound_s: float) -> bool:
    return (row.waited_s if row.seconds is None else row.seconds) > bound_s


def _told(row: Converged, bound_s: float) -> str:
    took = f"after {row.waited_s:.1f} s: {row.detail}" if row.seconds is None else ""
    return f"not {took}" if took else f"only after {row.seconds:.1f} s; {bound_s:g} s are allowed"


MEMBERSHIP: Final = _invariant(
    "membership-converges", "membership", "after an event all who run see each other, in time"
)
CATALOG: Final = _invariant(
    "catalog-converges", "catalog", "after an event all who run know the same, in time"
)
REPLICAS: Final = _invariant(
    "replicas-restored", "replicas", "after an event every function has its holders, in time"
)
