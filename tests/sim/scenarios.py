"""Named scenarios for the simulator, so that a test and `scripts/sim` run the very same thing."""

from __future__ import annotations

from collections.abc import Callable

from simulator import Network, Node, Simulation

from protocol.ids import digest_of

Scenario = Callable[[Simulation, float], dict[str, float]]


def steady(sim: Simulation, seconds: float) -> dict[str, float]:
    """Everyone joins, functions are deployed, nothing goes wrong."""
    sim.start_all()
    joined_s = sim.run_until(sim.members_agree, limit_s=10, what="all see all")
    sim.deploy(sim.nodes[-1], "hello")
    spread_s = sim.run_until(
        lambda: all(n.gossip and n.gossip.catalog.lookup("hello") for n in sim.up()),
        limit_s=5,
        what="everyone knows the function",
    )
    sim.deploy(sim.nodes[0], "big", args=12_000)
    big_s = sim.run_until(sim.converged, limit_s=10, what="a record over the datagram budget")
    sim.run(seconds)
    sim.run_until(sim.converged, limit_s=1, what="still converged")
    sim.check_no_false_deaths()
    return {"joined_s": joined_s, "spread_s": spread_s, "big_record_s": big_s}


def kill(sim: Simulation, seconds: float) -> dict[str, float]:
    """One process dies, is found, comes back on its disk, and is seen at once."""
    sim.start_all()
    sim.run_until(sim.converged, limit_s=15, what="all see all")
    sim.deploy(sim.nodes[0], "before")
    sim.run(1)
    victim = sim.rng.choice(sim.nodes)
    sim.kill(victim)
    known_s = sim.run_until(sim.members_agree, limit_s=25, what="the death is known to all")
    sim.deploy(sim.up()[0], "meanwhile")
    sim.run(seconds)
    sim.start(victim)
    back_s = sim.run_until(sim.converged, limit_s=15, what="the restarted node is back")
    sim.check_no_false_deaths()
    return {"known_s": known_s, "back_s": back_s}


def partition(sim: Simulation, seconds: float) -> dict[str, float]:
    """Two halves deploy on their own, then meet again."""
    sim.start_all()
    sim.run_until(sim.converged, limit_s=15, what="all see all")
    half = max(1, len(sim.nodes) // 2)
    left, right = sim.nodes[:half], sim.nodes[half:]
    sim.partition([left, right])
    sim.deploy(left[0], "both")
    sim.deploy(left[0], "left")
    sim.run(0.3)
    sim.deploy(right[0], "right")
    winner = sim.deploy(right[0], "both")
    split_s = sim.run_until(sim.members_agree, limit_s=60, what="each half sees only itself")
    sim.run(seconds)
    sim.heal()
    healed_s = sim.run_until(sim.converged, limit_s=60, what="the halves have merged")
    for node in sim.up():
        names = [name for name, _, _ in sim.catalog_of(node)]
        if names != ["both", "left", "right"]:
            sim.fail(f"{node.name} has {names}")
        current = node.gossip.catalog.lookup("both") if node.gossip else None
        if current is None or current.version != winner:
            sim.fail(f"{node.name}: the later deployment did not win")
    sim.check_no_false_deaths()
    return {"split_s": split_s, "healed_s": healed_s}


def lossy(sim: Simulation, seconds: float) -> dict[str, float]:
    """20 % loss, duplicates and reordering: slower, but nobody healthy dies."""
    sim.set_network(loss=0.2, duplicate=0.1, jitter_s=0.05)
    sim.start_all()
    joined_s = sim.run_until(sim.converged, limit_s=30, what="all see all")
    sim.deploy(sim.nodes[0], "hello")
    spread_s = sim.run_until(sim.catalogs_agree, limit_s=10, what="everyone knows the function")
    sim.run(seconds)
    sim.check_no_false_deaths()
    sim.set_network(loss=0.0)
    sim.run_until(sim.converged, limit_s=15, what="converged once the loss ends")
    return {"joined_s": joined_s, "spread_s": spread_s}


def pauses(sim: Simulation, seconds: float) -> dict[str, float]:
    """Short stops (garbage collection, a starved core) kill nobody."""
    sim.start_all()
    sim.run_until(sim.converged, limit_s=15, what="all see all")
    until_s = sim.now + seconds
    while sim.now < until_s:
        sim.pause(sim.rng.choice(sim.nodes), 0.2 + sim.rng.random())
        sim.run(2.0)
    if sim.downs:
        sim.fail(f"pauses under 1.2 s led to {len(sim.downs)} deaths")
    sim.run_until(sim.converged, limit_s=15, what="converged after the pauses")
    return {"pauses": seconds / 2}


def leave(sim: Simulation, seconds: float) -> dict[str, float]:
    """A graceful leave is known at once and is not a death."""
    sim.start_all()
    sim.run_until(sim.converged, limit_s=15, what="all see all")
    goer = sim.nodes[len(sim.nodes) // 2]
    sim.leave(goer)
    start_s = sim.now
    sim.run_until(
        lambda: all(_state_of(node, goer) == "left" for node in sim.up() if node is not goer),
        limit_s=3,
        what="the leave is known to all",
    )
    left_s = sim.now - start_s
    sim.run(seconds)
    if sim.downs:
        sim.fail("a node that left was declared down")
    return {"left_s": left_s}


def _state_of(node: Node, other: Node) -> str | None:
    member = node.gossip.member(other.node_id) if node.gossip else None
    return member.state if member else None


def mixed(sim: Simulation, seconds: float) -> dict[str, float]:
    """Everything at once for `seconds`, then quiet: all must agree again."""
    sim.set_network(loss=0.05, duplicate=0.02, jitter_s=0.02)
    for node in sim.nodes:
        node.skew_ms = sim.rng.randrange(-2000, 2000)
    sim.start_all()
    sim.run_until(sim.members_agree, limit_s=30, what="all see all")
    until_s = sim.now + seconds
    split_until_s = 0.0
    while sim.now < until_s:
        _deed(sim)
        if sim.now >= split_until_s:
            sim.heal() if split_until_s else None
            split_until_s = 0.0
            if sim.rng.random() < 0.1:
                nodes = sim.rng.sample(sim.nodes, len(sim.nodes))
                cut = sim.rng.randrange(1, len(nodes))
                sim.partition([nodes[:cut], nodes[cut:]])
                split_until_s = sim.now + 2 + 8 * sim.rng.random()
        sim.run(sim.rng.random())
    sim.heal()
    for node in sim.nodes:
        if node.gossip is None:
            sim.start(node)
    healed_s = sim.run_until(sim.converged, limit_s=90, what="all agree after the storm")
    sim.run(60)
    sim.run_until(sim.converged, limit_s=1, what="agreement lasts")
    sim.check_no_false_deaths()
    sim.check_aliases_mean_something()
    return {"healed_s": healed_s, "functions": float(len(sim.catalog_of(sim.nodes[0])))}


def _deed(sim: Simulation) -> None:
    """One random thing that operators, machines or fate do."""
    node = sim.rng.choice(sim.nodes)
    die = sim.rng.random()
    if node.gossip is None:
        sim.start(node)
    elif die < 0.3:
        sim.deploy(node, f"f{sim.rng.randrange(8)}", args=sim.rng.choice([0, 0, 0, 3000]))
    elif die < 0.4:
        sim.remove(node, f"f{sim.rng.randrange(8)}")
    elif die < 0.5:
        sim.roll_back(node, f"f{sim.rng.randrange(8)}")
    elif die < 0.75:
        digest = digest_of(b"%d" % sim.rng.randrange(20))
        sim.hold(node, digest, digest not in node.held)
    elif die < 0.85 and len(sim.up()) > 2:
        sim.kill(node)
    else:
        sim.pause(node, sim.rng.random())


SCENARIOS: dict[str, Scenario] = {
    "steady": steady,
    "kill": kill,
    "partition": partition,
    "lossy": lossy,
    "pauses": pauses,
    "leave": leave,
    "mixed": mixed,
}


def run(
    name: str, *, nodes: int, seconds: float, seed: int, silent: bool = False
) -> tuple[Simulation, dict[str, float]]:
    """Raises SimulationFailure with the command that runs exactly this again."""
    command = f"scripts/sim --scenario {name} --nodes {nodes} --seconds {seconds:g} --seed {seed}"
    if silent:
        command += " --silent"
    network = Network(refuses=not silent)
    sim = Simulation(nodes=nodes, seed=seed, network=network, command=command)
    try:
        return sim, SCENARIOS[name](sim, seconds)
    except AssertionError as error:
        if sim.command not in str(error):
            raise AssertionError(f"{error}\nreplay: {sim.command}") from error
        raise
