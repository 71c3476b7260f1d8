"""What every fault is: it begins, is proven from outside, goes on, and ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final

import trio

from edged.lab.history import Planned

from ..field import Field

PROOF_TIMEOUT_S: Final = 10.0
"""Gossip's datagrams, which count what is lost, are 0.2 to 1 s apart; a busy machine triples it."""
POLL_S: Final = 0.05


class Unproven(Exception):
    """The fault did not demonstrably take effect; says why."""


class Fault(ABC):
    """One planned fault with its targets resolved. Used by one task: begin, then `prove` beside
    `sustain` until its time is over, then `end`, which also follows a `begin` that failed."""

    lasting: ClassVar[bool] = True
    """It goes on by itself: without a duration to the end of the run. Else it is over when done."""

    def __init__(self, field: Field, planned: Planned) -> None:
        self.field = field
        self.planned = planned
        self.step_s: float | None = None
        """When the last of its steps began, on trio's clock, if it has several: from then on the
        cluster can converge."""

    @property
    def targets(self) -> tuple[str, ...]:
        return self.planned.targets

    @abstractmethod
    async def begin(self) -> None:
        """Raises Unproven, EdgedError: it could not be done."""

    @abstractmethod
    async def prove(self) -> str:
        """The evidence, in words. May wait; its time is the caller's. Raises Unproven."""

    async def sustain(self) -> None:
        """What has to be done all the while; cancelled at the fault's end."""
        await trio.sleep_forever()

    @abstractmethod
    async def end(self) -> str:
        """Undoes it, and says what shows that. Raises EdgedError: a node does not come back."""

    def number(self, key: str) -> float:
        """A setting."""
        value = self.planned.settings[key]
        assert isinstance(value, int | float)
        return value

    def text(self, key: str) -> str:
        value = self.planned.settings[key]
        assert isinstance(value, str)
        return value


async def until(check: Callable[[], Awaitable[str | None]], otherwise: Callable[[], str]) -> str:
    """What `check` says first; Raises Unproven with `otherwise` if the caller's time, which has to
    be within PROOF_TIMEOUT_S, is over."""
    with trio.move_on_after(PROOF_TIMEOUT_S):
        while True:
            if (evidence := await check()) is not None:
                return evidence
            await trio.sleep(POLL_S)
    raise Unproven(otherwise())
