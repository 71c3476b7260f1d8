"""Who compiles, who waits, who goes on: protocol/building.py. SPEC §9.3."""

from __future__ import annotations

from protocol_support import node_id

from protocol.building import (
    GRACE_S,
    LEISURE,
    PATIENCE,
    SMALL_S,
    Scene,
    goes_on,
    next_step,
    rank_of,
)
from protocol.ids import ArtifactKey, Digest

MODULE, KEY = Digest("ab" * 32), ArtifactKey("cd" * 32)
LONG_S = 10.0
NODES = [node_id(f"n{number}") for number in range(9)]


def step(
    scene: Scene,
    *,
    builders: int = 1,
    estimate_s: float = LONG_S,
    waited_s: float = 0.0,
    urgent: bool = True,
) -> str:
    return next_step(
        scene, builders=builders, estimate_s=estimate_s, waited_s=waited_s, urgent=urgent
    )


def test_all_agree_on_one_order_that_differs_by_module_and_key() -> None:
    def order(module: Digest, key: ArtifactKey) -> list[int]:
        return [rank_of(node, module, key, NODES) for node in NODES]

    assert sorted(order(MODULE, KEY)) == list(range(9))
    assert order(MODULE, KEY) != order(Digest("ac" * 32), KEY)
    assert order(MODULE, KEY) != order(MODULE, ArtifactKey("ce" * 32))
    assert rank_of(NODES[0], MODULE, KEY, []) == 0
    without = [rank_of(one, MODULE, KEY, [n for n in NODES if n != one]) for one in NODES]
    assert without == order(MODULE, KEY), "whether a node counts itself changes nothing"


def test_one_builds_and_the_others_wait_for_it() -> None:
    assert step(Scene(rank=0, ready=0, building=0)) == "build"
    assert step(Scene(rank=1, ready=0, building=0)) == "wait"
    assert step(Scene(rank=1, ready=0, building=1), waited_s=LONG_S) == "wait"
    assert step(Scene(rank=0, ready=0, building=1)) == "wait", "another has begun before"
    assert step(Scene(rank=0, ready=1, building=0)) == "fetch"
    assert step(Scene(rank=3, ready=1, building=1)) == "fetch"


def test_waiting_ends_by_cost() -> None:
    waiting = Scene(rank=2, ready=0, building=1)
    assert step(waiting, waited_s=PATIENCE * LONG_S - 0.1) == "wait"
    assert step(waiting, waited_s=PATIENCE * LONG_S) == "build"
    silent = Scene(rank=2, ready=0, building=0)
    assert step(silent, waited_s=2 * GRACE_S - 0.1) == "wait"
    assert step(silent, waited_s=2 * GRACE_S) == "build"
    assert step(Scene(rank=8, ready=0, building=0), estimate_s=1.0, waited_s=1.5) == "build"


def test_where_no_request_waits_a_slow_builder_is_not_doubled() -> None:
    waiting = Scene(rank=2, ready=0, building=1)
    assert step(waiting, waited_s=LEISURE * LONG_S - 0.1, urgent=False) == "wait"
    assert step(waiting, waited_s=LEISURE * LONG_S, urgent=False) == "build"
    silent = Scene(rank=2, ready=0, building=0)
    assert step(silent, waited_s=2 * GRACE_S, urgent=False) == "build", "nobody has begun"


def test_of_several_that_began_at_once_the_best_ranked_go_on() -> None:
    for builders in range(1, 5):
        going = [
            one
            for one in NODES
            if goes_on(one, MODULE, KEY, [n for n in NODES if n != one], builders=builders)
        ]
        ranked = sorted(NODES, key=lambda one: rank_of(one, MODULE, KEY, NODES))
        assert sorted(going) == sorted(ranked[:builders])
    assert goes_on(NODES[0], MODULE, KEY, NODES, builders=0), "nobody's word is accepted"


def test_what_compiles_quickly_is_not_waited_for() -> None:
    assert step(Scene(rank=5, ready=0, building=1), estimate_s=SMALL_S - 0.01) == "build"
    assert step(Scene(rank=5, ready=1, building=0), estimate_s=SMALL_S - 0.01) == "fetch"


def test_a_quorum_has_as_many_builders() -> None:
    assert [step(Scene(rank=r, ready=0, building=0), builders=2) for r in range(3)] == [
        "build",
        "build",
        "wait",
    ]
    assert step(Scene(rank=1, ready=0, building=1), builders=2) == "build"
    assert step(Scene(rank=2, ready=0, building=2), builders=2, waited_s=9.0) == "wait"


def test_who_accepts_nobodys_word_builds_at_once() -> None:
    assert step(Scene(rank=9, ready=3, building=3), builders=0) == "build"
