"""Many small storms side by side: fixed seeds, and some that nobody has seen."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Iterator

from .runs import parse, run
from .simulation import SimulationFailure

FRESH_FROM = 1_000_000
"""Fresh seeds are above, fixed ones below."""
OPTIONAL = ("kill", "leave", "pause=8", "partition", "oneway", "torn", "wipe", "silent", "wire")
AMOUNTS = ("loss=0.15", "dup", "reorder", "corrupt", "jitter", "skew", "drift=0.02")
TOPOLOGIES = ("", "", "", "aws8", "metro", "satellite")


def command_for(seed: int) -> str:
    """The storm of a seed: size, faults and place are drawn from it, and written out."""
    rng = random.Random(f"storm {seed}")
    faults = [name for name in OPTIONAL if rng.random() < 0.6]
    faults += [name for name in AMOUNTS if rng.random() < 0.4]
    words = f"scripts/sim --scenario storm --nodes {rng.randint(2, 8)} --seconds 20 --seed {seed}"
    topology = rng.choice(TOPOLOGIES)
    if topology:
        words += f" --preset wan --topology {topology}"
    elif rng.random() < 0.2:
        words += " --preset local"
    if faults:
        words += f" --faults {','.join(faults)}"
    return words


def _one(seed: int) -> tuple[int, float, str]:
    """(seed, CPU seconds, what failed)."""
    command = command_for(seed)
    start_s = time.process_time()
    failed = ""
    try:
        run(parse(command))
    except SimulationFailure as error:
        failed = str(error)
    except Exception:
        failed = f"{traceback.format_exc()}replay: {command}"
    return seed, time.process_time() - start_s, failed


def _fresh(count: int) -> Iterator[int]:
    rng = random.Random(os.urandom(16))
    for _ in range(count):
        yield rng.randrange(FRESH_FROM, 1_000 * FRESH_FROM)


def many(*, fixed: int, fresh: int, jobs: int) -> int:
    """Exit status; prints every failure as it comes and one line at the end."""
    seeds = [*range(1, fixed + 1), *_fresh(fresh)]
    start_s = time.monotonic()
    cpu_s, bad = 0.0, 0
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for _, used_s, failed in pool.imap_unordered(_one, seeds):
            cpu_s += used_s
            if failed:
                bad += 1
                print(f"FAILED: {failed}\n", flush=True)
    took_s = time.monotonic() - start_s
    print(
        f"{fixed} fixed and {fresh} fresh seeds: {len(seeds) - bad} passed, {bad} failed "
        f"in {took_s:.0f} s ({cpu_s:.0f} s CPU)"
    )
    return 1 if bad else 0
