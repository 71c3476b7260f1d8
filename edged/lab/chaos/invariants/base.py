"""What an invariant is, and what several of them read from a history."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from edged.lab.history import Deploy, Fault, Finding, History

NAMES_SHOWN_MAX: Final = 8


def _none(_history: History) -> list[str]:
    return []


class Invariant(NamedTuple):
    name: str
    """What [invariants] skip and findings call it."""
    states: str
    """In one line."""
    check: Callable[[History], list[Finding]]
    doubts: Callable[[History], list[str]] = _none
    """Why the absence of findings shows nothing: what the run did not get to see."""


class Window(NamedTuple):
    """A fault that was begun."""

    fault: Fault
    begin_s: float
    end_s: float
    """Of the run, where it was not ended."""

    def touches(self, begin_s: float, end_s: float) -> bool:
        return self.begin_s <= end_s and begin_s <= self.end_s


def windows(history: History) -> list[Window]:
    """In the order in which they were begun."""
    begun: dict[str, Fault] = {}
    ended: dict[str, float] = {}
    for fault in history.of(Fault):
        if fault.state == "begun":
            begun[fault.id] = fault
        elif fault.state == "ended":
            ended[fault.id] = fault.t_s
    last_s = history.end_s
    return [Window(each, each.t_s, ended.get(name, last_s)) for name, each in begun.items()]


def liars(history: History) -> frozenset[str]:
    """Builders that were poisoned. What they run and answer themselves is theirs to say."""
    return frozenset(
        name
        for window in windows(history)
        if window.fault.action == "poison"
        for name in window.fault.targets
    )


def surely_before(first: Deploy, second: Deploy, history: History) -> bool:
    """Whether `second` takes the place of `first` by what edged promises: it was begun when the
    other was over. Clocks are the machine's, so the same, unless they were moved: then whoever
    deploys must have had time to hear of the other. Before the load the run has no time: there one
    deploy follows the other as the rows do."""
    deploys = history.of(Deploy)
    if deploys.index(first) >= deploys.index(second):
        return False
    moved = any(window.fault.action == "clock-skew" for window in windows(history))
    gap_s = history.run.bounds.catalog_s if moved and second.begun_s > 0 else 0.0
    return first.t_s + gap_s <= second.begun_s


def named(names: Iterable[str]) -> str:
    """Sorted, and only the first of many."""
    found = sorted(set(names))
    more = len(found) - NAMES_SHOWN_MAX
    return ", ".join(found[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
