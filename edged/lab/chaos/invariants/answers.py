"""Every whole answer's bytes are those of the version that it says it is of.

What a poisoned builder answers to those who ask it is not judged; what it answers for others is."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from edged.lab.history import Deploy, Finding, History, Request

from .base import Invariant, liars

NAME: Final = "answers-right"


class _Right(NamedTuple):
    """What a function may answer."""

    by_version: dict[str, str | None]
    """edged's version -> BLAKE3 of the one right body; None: not one constant."""
    unknown: frozenset[str | None]
    """Bodies of versions whose deploy was not acknowledged: they may be in force all the same,
    under a version that nobody was told."""

    def version(self, prefix: str) -> str | None:
        """In full."""
        return next((each for each in self.by_version if each.startswith(prefix)), None)


def _rights(history: History) -> dict[str, _Right]:
    found: dict[str, _Right] = {}
    for function in history.run.functions:
        bodies = {version.label: version.body_digest for version in function.versions}
        deploys = [row for row in history.of(Deploy) if row.function == function.name]
        known = {row.version: bodies.get(row.label) for row in deploys if row.version is not None}
        silent = frozenset(bodies.get(row.label) for row in deploys if row.version is None)
        found[function.name] = _Right(known, silent)
    return found


def _whole(history: History) -> list[Request]:
    untrue = liars(history)
    return [
        row
        for row in history.requests
        if row.error is None
        and row.status == 200
        and row.body_digest is not None
        and row.node not in untrue
    ]


def _wrong(row: Request, right: _Right) -> str | None:
    """What is wrong with an answer."""
    version = None if row.version is None else right.version(row.version)
    if version is not None:
        body = right.by_version[version]
        if body in (None, row.body_digest):
            return None
        return f"as version {version[:12]}, another body than that version's"
    if None in right.unknown or row.body_digest in right.unknown:
        return None
    if row.version is None:
        return "without saying of which version it is"
    return f"as version {row.version[:12]}, which nobody has deployed"


def check(history: History) -> list[Finding]:
    rights = _rights(history)
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], Request] = {}
    for row in _whole(history):
        right = rights.get(row.function)
        wrong = None if right is None else _wrong(row, right)
        if wrong is not None:
            kind = (row.function, row.answered_by or row.node, wrong)
            counts[kind] += 1
            first.setdefault(kind, row)
    return [
        Finding(
            t_s=first[kind].t_s,
            invariant=NAME,
            subject=kind[0],
            detail=f"{kind[1]} answered {count} requests {kind[2]}; the first was sent to"
            f" {first[kind].node}",
        )
        for kind, count in counts.items()
    ]


def doubts(history: History) -> list[str]:
    rights = _rights(history)
    for row in _whole(history):
        right = rights.get(row.function)
        version = None if right is None or row.version is None else right.version(row.version)
        if right is not None and version is not None and right.by_version[version] is not None:
            return []
    return ["no answer's right bytes are known"]


ANSWERS: Final = Invariant(NAME, "every answer's bytes are its version's", check, doubts)
