"""What a deploy was acknowledged for: it is there at the end, in force, and was on enough nodes."""

from __future__ import annotations

from typing import Final

from edged.lab.history import Catalog, Deploy, Finding, History

from .base import Invariant, named, surely_before, windows

NAME: Final = "acknowledged-survive"
RECOVERY_S: Final = 10.0
"""After a fault's end not every node can be reached at once."""


def check(history: History) -> list[Finding]:
    looks = [row for row in history.of(Catalog) if row.after == "end"]
    deploys = [row for row in history.of(Deploy) if row.acknowledged_s is not None]
    return [
        finding
        for deploy in deploys
        for finding in (*_lost(deploy, looks), *_overruled(deploy, looks, history))
    ] + [finding for deploy in deploys for finding in _too_few(deploy, history)]


def _finding(deploy: Deploy, t_s: float, detail: str) -> Finding:
    return Finding(t_s=t_s, invariant=NAME, subject=deploy.function, detail=detail)


def _told(deploy: Deploy) -> str:
    return (
        f"version {deploy.label} ({(deploy.version or '')[:12]}), acknowledged by {deploy.node}"
        f" at {deploy.t_s:.2f} s"
    )


def _lost(deploy: Deploy, looks: list[Catalog]) -> list[Finding]:
    without = [
        look
        for look in looks
        if deploy.function not in look.functions
        or deploy.version not in look.versions.get(deploy.function, (deploy.version,))
    ]
    if not without:
        return []
    nodes = named(look.node for look in without)
    return [_finding(deploy, without[0].t_s, f"{_told(deploy)}, is not in the catalog of {nodes}")]


def _overruled(deploy: Deploy, looks: list[Catalog], history: History) -> list[Finding]:
    """Nodes on which a version is current that this one took the place of."""
    older = {
        other.version
        for other in history.of(Deploy)
        if other.function == deploy.function
        and other.version is not None
        and surely_before(other, deploy, history)
    }
    wrong = [look for look in looks if look.functions.get(deploy.function) in older]
    if not wrong:
        return []
    nodes = named(look.node for look in wrong)
    detail = f"{_told(deploy)}, has given way to an older one on {nodes}"
    return [_finding(deploy, wrong[0].t_s, detail)]


def _too_few(deploy: Deploy, history: History) -> list[Finding]:
    """Fewer had it than it asked for, although nothing was broken."""
    could = min(deploy.wanted, len(history.run.nodes))
    broken = any(
        window.touches(deploy.begun_s - RECOVERY_S, deploy.t_s) for window in windows(history)
    )
    if broken or len(set(deploy.holders)) >= could:
        return []
    had = named(deploy.holders) or "nobody"
    detail = f"{_told(deploy)}, when {had} had it: {could} nodes had to, and nothing was broken"
    return [_finding(deploy, deploy.t_s, detail)]


def doubts(history: History) -> list[str]:
    if not any(row.after == "end" for row in history.of(Catalog)):
        return ["no node's catalog was read at the end"]
    if not any(row.acknowledged_s is not None for row in history.of(Deploy)):
        return ["no deploy was acknowledged"]
    return []


ACKNOWLEDGED: Final = Invariant(
    NAME, "acknowledged deploys survive, in force, and were on enough nodes", check, doubts
)
