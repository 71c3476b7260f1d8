"""Named stories, so that a test and `scripts/sim` run the very same thing. Each returns what it
measured, in seconds or counts, and fails through `Simulation.fail`."""

from __future__ import annotations

from collections.abc import Callable

from .faults import STORM, Faults, Storm, parse_faults
from .forming import start_formed
from .node import Node
from .simulation import Simulation

Results = dict[str, float]
Story = Callable[[Simulation, float, Faults, bool], Results]
"""(simulation, seconds, faults, formed)."""


def _begin(sim: Simulation, faults: Faults, formed: bool) -> Storm:
    storm = Storm(sim, faults)
    storm.prepare()
    if formed:
        start_formed(sim)
    else:
        sim.start_all()
    return storm


def _joined(sim: Simulation, faults: Faults, formed: bool) -> float:
    _begin(sim, faults, formed)
    return sim.checks.settle("all see all")


def steady(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """Everyone joins, functions are deployed, nothing else happens."""
    _begin(sim, faults, formed)
    joined_s = sim.run_until(sim.checks.members_agree, limit_s=10, what="all see all")
    sim.deploy(sim.nodes[-1], "hello")
    spread_s = sim.run_until(
        lambda: all(n.gossip and n.gossip.catalog.lookup("hello") for n in sim.up()),
        limit_s=5,
        what="everyone knows the function",
    )
    sim.deploy(sim.nodes[0], "big", args=12_000)
    big_s = sim.checks.settle("a record over the datagram budget")
    before = sim.network.datagram_bytes
    sim.run(seconds)
    idle = (sim.network.datagram_bytes - before) / len(sim.nodes) / max(seconds, 1e-9)
    sim.run_until(sim.checks.converged, limit_s=1, what="still converged")
    _no_deaths(sim)
    return {"joined_s": joined_s, "spread_s": spread_s, "big_record_s": big_s, "idle_bytes_s": idle}


def _no_deaths(sim: Simulation) -> None:
    if sim.checks.accuracy.deaths:
        sim.fail(sim.checks.tell(sim.checks.accuracy.deaths[0]))


def kill(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """One process dies, is found, comes back on its disk, and is seen at once."""
    _joined(sim, faults, formed)
    sim.deploy(sim.nodes[0], "before")
    sim.run(1)
    victim = sim.rng.choice(sim.nodes)
    sim.kill(victim)
    known_s = sim.run_until(
        sim.checks.members_agree,
        limit_s=sim.checks.completeness.bound_s,
        what="the death is known to all",
    )
    sim.deploy(sim.up()[0], "meanwhile")
    sim.run(seconds)
    sim.start(victim)
    back_s = sim.checks.settle("the restarted node is back")
    return {"known_s": known_s, "back_s": back_s}


def partition(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """Two halves deploy on their own, then meet again."""
    _joined(sim, faults, formed)
    half = max(1, len(sim.nodes) // 2)
    left, right = sim.nodes[:half], sim.nodes[half:]
    sim.partition([left, right])
    sim.deploy(left[0], "both")
    sim.deploy(left[0], "left")
    sim.run(0.3)
    sim.deploy(right[0], "right")
    winner = sim.deploy(right[0], "both")
    split_s = sim.run_until(sim.checks.members_agree, limit_s=60, what="each half sees only itself")
    sim.run(seconds)
    sim.heal()
    healed_s = sim.checks.settle("the halves have merged")
    for node in sim.up():
        assert node.gossip is not None
        names = [name for name, _ in node.gossip.catalog.functions()]
        if names != ["both", "left", "right"]:
            sim.fail(f"{node.name} has {names}")
        current = node.gossip.catalog.lookup("both")
        if current is None or current.version != winner:
            sim.fail(f"{node.name}: the later deployment did not win")
    return {"split_s": split_s, "healed_s": healed_s}


def lossy(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """20 % loss, duplicates and reordering: slower, but nobody healthy dies."""
    _begin(sim, faults, formed)
    sim.set_network(loss=0.2, duplicate=0.1, jitter_s=0.05)
    joined_s = sim.checks.settle("all see all")
    sim.deploy(sim.nodes[0], "hello")
    spread_s = sim.run_until(
        sim.checks.catalogs_agree, limit_s=10, what="everyone knows the function"
    )
    sim.run(seconds)
    _no_deaths(sim)
    sim.set_network(loss=0.0)
    sim.checks.settle("converged once the loss ends")
    return {"joined_s": joined_s, "spread_s": spread_s}


def pauses(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """Short stops (garbage collection, a starved core) kill nobody."""
    _joined(sim, faults, formed)
    until_s = sim.now + seconds
    count = 0
    while sim.now < until_s:
        sim.pause(sim.rng.choice(sim.nodes), 0.2 + sim.rng.random())
        count += 1
        sim.run(2.0)
    _no_deaths(sim)
    sim.checks.settle("converged after the pauses")
    return {"pauses": count}


def leave(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """A graceful leave is known at once and is not a death."""
    _joined(sim, faults, formed)
    goer = sim.nodes[len(sim.nodes) // 2]
    sim.leave(goer)
    left_s = sim.run_until(
        lambda: all(state_of(node, goer) == "left" for node in sim.up() if node is not goer),
        limit_s=3,
        what="the leave is known to all",
    )
    sim.run(seconds)
    _no_deaths(sim)
    return {"left_s": left_s}


def state_of(node: Node, other: Node) -> str | None:
    member = node.gossip.member(other.node_id) if node.gossip else None
    return member.state if member else None


def storm(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """Everything at once for `seconds`, then quiet: all must agree again, on the right thing."""
    weather = _begin(sim, faults if faults.amounts else parse_faults(STORM), formed)
    sim.run_until(sim.checks.members_agree, limit_s=60, what="all see all")
    until_s = sim.now + seconds
    while sim.now < until_s:
        weather.step()
        sim.run(sim.rng.random())
    weather.end()
    healed_s = sim.checks.settle("all agree after the storm")
    sim.run(30)
    sim.run_until(sim.checks.converged, limit_s=10, what="agreement lasts")
    first = sim.up()[0].gossip
    assert first is not None
    return {
        "healed_s": healed_s,
        "functions": len(first.catalog.functions()),
        "deaths_true": len(sim.checks.accuracy.deaths) - len(sim.checks.accuracy.false),
        "deaths_explained": len(sim.checks.accuracy.false),
    }


def scale(sim: Simulation, seconds: float, faults: Faults, formed: bool) -> Results:
    """A large cluster at work for exactly `seconds`: it idles, a function is deployed, some of the
    processes die, all is watched by the checkers."""
    _begin(sim, faults, formed)
    start_s = sim.now
    sim.run(seconds / 6)
    idle_bytes = sim.network.datagram_bytes / len(sim.nodes) / (seconds / 6)
    sim.deploy(sim.rng.choice(sim.nodes), "hello")
    deployed_s = sim.now
    sim.run(seconds / 6)
    spread_s = max(sim.processes.accepted_s.values()) - deployed_s
    victims = sim.rng.sample(sim.nodes, max(1, len(sim.nodes) // 500))
    for victim in victims:
        sim.kill(victim)
    died_s = sim.now
    sim.run(start_s + seconds - sim.now)
    told_s = [at_s for victim in victims for at_s in sim.checks.downs[victim.index].values()]
    if len(told_s) != len(victims) * len(sim.up()):
        sim.fail(f"{len(told_s)} of {len(victims) * len(sim.up())} know of a death")
    if not sim.checks.catalogs_agree():
        sim.fail(f"not all have the function: {sim.checks.describe()}")
    sim.checks.watch()
    return {
        "idle_payload_bytes_s": idle_bytes,
        "spread_s": spread_s,
        "deaths": len(victims),
        "known_s": max(told_s) - died_s,
    }


STORIES: dict[str, Story] = {
    "steady": steady,
    "kill": kill,
    "partition": partition,
    "lossy": lossy,
    "pauses": pauses,
    "leave": leave,
    "scale": scale,
    "storm": storm,
}
