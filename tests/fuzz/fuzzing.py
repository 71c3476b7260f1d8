"""Runs targets on mutated inputs; a failure tells how to run that one input again."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mutating import make
from targets import Target

from protocol.errors import RemoteProtocolError

BATCH: Final = 50
"""Inputs per look at the clock."""


class FuzzFailure(Exception):
    """A target raised what it must not."""


@dataclass
class Tally:
    executions: int = 0
    accepted: int = 0
    elapsed_s: float = 0.0


def replay_line(target: Target, seed: int, number: int) -> str:
    return f"scripts/fuzz --seed {seed} --target {target.name} --only {number}"


def input_of(target: Target, seed: int, number: int) -> bytes:
    return make(target.corpus, random.Random(f"{seed}/{target.name}/{number}"))


def execute(target: Target, seed: int, number: int) -> bool:
    """Whether the input was accepted. Raises FuzzFailure with what to run to see it again."""
    data = input_of(target, seed, number)
    try:
        target.run(data)
    except RemoteProtocolError:
        return False
    except Exception as error:
        line = replay_line(target, seed, number)
        shown = data[:200].hex()
        raise FuzzFailure(
            f"{target.name}: {type(error).__name__}: {error}\ninput {shown}\nreplay: {line}"
        ) from error
    return True


def fuzz(targets: Sequence[Target], seed: int, seconds: float) -> dict[str, Tally]:
    """All targets in turn, with equal time. Raises FuzzFailure."""
    tallies = {target.name: Tally() for target in targets}
    start_s = time.monotonic()
    while time.monotonic() - start_s < seconds:
        # Slow targets get fewer inputs, not more time.
        target = min(targets, key=lambda each: tallies[each.name].elapsed_s)
        tally = tallies[target.name]
        since_s = time.monotonic()
        for _ in range(BATCH):
            tally.accepted += execute(target, seed, tally.executions)
            tally.executions += 1
        tally.elapsed_s += time.monotonic() - since_s
    return tallies
