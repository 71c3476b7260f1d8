"""A node of the planner's benchmark: a policy that chooses, a disk, a link and a core that queue.

The planner here is the real one (protocol.planner, estimates, caching). It knows what a node knows:
sizes exactly, as they are signed; everything else from what it measured itself, late and with
noise, or from what the maker of a snapshot measured on a machine of another speed. Every policy is
answered for by the same node: the same queues, the same disk, and of the ways to answer a request
that are open now the soonest by what is really true.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from _planner_world import (
    COMPILE_BYTES_S,
    COMPILE_FIXED_S,
    CPU_PRICE,
    DECOMPRESS_BYTES_S,
    HOLD_PRICE,
    LOAD_S,
    NAMES,
    REWRITE_BYTES_S,
    ROUNDS,
    WIRE_PRICE,
    Function,
    Link,
    World,
)

from protocol.caching import Worth, room_of, victims_of
from protocol.costs import Blob, Forward, Inputs, PlanForm, Prices, Rented, Room, Sources
from protocol.estimates import RATE_OFF, Demand, Estimate, mean_per_s
from protocol.planner import Decision, decide

PolicyName = Literal["planner", "planner, LRU", "module", "snapshot", "artifact", "LRU", "forward"]
POLICIES: Final[tuple[PolicyName, ...]] = (
    "planner", "planner, LRU", "module", "snapshot", "artifact", "LRU", "forward",
)  # fmt: skip
NOISE: Final = 0.2
"""Of one measurement: deviation of its logarithm."""
LOOK_S: Final = 1.0
"""So long bytes have to come for their rate to be looked at before all of them are here."""
AGAIN_S: Final = 15.0
"""While a form answers, its function is planned anew no more often: warm requests plan nothing."""
HORIZON_MAX_S: Final = 3600.0
"""As a node is configured where nobody says otherwise."""
PRICES: Final = Prices(
    wire_s_per_byte=WIRE_PRICE, cpu_s_per_s=CPU_PRICE, stored_s_per_byte_s=HOLD_PRICE
)


@dataclass
class Cost:
    """What a policy's node spent, in seconds."""

    latency_s: float = 0.0
    wire_s: float = 0.0
    cpu_s: float = 0.0
    hold_s: float = 0.0
    fetched_bytes: int = 0
    changes: int = 0
    """Of a function's form for another, both of them local."""

    @property
    def total_s(self) -> float:
        return self.latency_s + self.wire_s + self.cpu_s + self.hold_s


URGENT_WEIGHT: Final = 32.0
"""Of a transfer that a request waits for: others get one segment each meanwhile (SPEC §10.5)."""


class Coming(NamedTuple):
    """A form on its way to the node."""

    function: Function
    form: PlanForm
    transfer: int | None
    size: int
    begun_s: float
    cpu_s: float


@dataclass
class State:
    """Of one function on the node."""

    form: PlanForm | None = None
    """That is ready."""
    since_s: float = 0.0
    """Since when what is on disk has not been paid for."""
    coming: Coming | None = None
    waiters_s: list[float] = field(default_factory=list)
    """When requests came that wait for it."""
    stored_bytes: int = 0
    """With what is coming."""
    planned_s: float = -math.inf
    calls: int = 0
    forwarded: int = 0
    paid_s: float = 0.0
    demand: Demand = field(default_factory=lambda: Demand(0.0))
    first_s: float = math.inf


class Sharing:
    """The node's link: all transfers share it, one that a request waits for with more weight."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left: dict[int, float] = {}
        """Bytes of each transfer over its weight, by number."""
        self._weight: dict[int, float] = {}
        self._at_s = 0.0
        self._count = 0
        self.done_s: dict[int, float] = {}

    def busy_s(self, now_s: float) -> float:
        """For how long, until now, something has come without a pause that is seen now: all that
        was on its way at the last look still is."""
        if not self._left or min(self.done_s[number] for number in self._left) < now_s:
            return 0.0
        return now_s - self._at_s

    def share(self, *, urgent: bool) -> float:
        """Of the link, for one more."""
        own = URGENT_WEIGHT if urgent else 1.0
        return own / (own + sum(self._weight[number] for number in self._left))

    def add(self, size: float, now_s: float, *, urgent: bool) -> int:
        """Its number; `done_s` says when all of them are over if none is added."""
        self.pass_time(now_s)
        self._count += 1
        self._weight[self._count] = URGENT_WEIGHT if urgent else 1.0
        self._left[self._count] = size / self._weight[self._count]
        self._foresee()
        return self._count

    def pass_time(self, now_s: float) -> None:
        """Takes what has come since from what is left."""
        while self._left and self._at_s < now_s:
            first = min(self._left, key=self._left.__getitem__)
            weight = sum(self._weight[number] for number in self._left)
            over_s = self._link.done_s(self._at_s, self._left[first] * weight)
            until_s = min(over_s, now_s)
            each = self._link.bytes_between(self._at_s, until_s) / weight
            for number in self._left:
                self._left[number] -= each
            if over_s <= now_s:
                del self._left[first]
            self._at_s = until_s
        self._at_s = max(self._at_s, now_s)

    def _foresee(self) -> None:
        at_s, served, weight = self._at_s, 0.0, sum(self._weight[each] for each in self._left)
        for number in sorted(self._left, key=self._left.__getitem__):
            at_s = self._link.done_s(at_s, max(self._left[number] - served, 0.0) * weight)
            served = max(served, self._left[number])
            weight -= self._weight[number]
            self.done_s[number] = at_s


class Node:
    def __init__(self, world: World, policy: PolicyName) -> None:
        self.world = world
        self.policy = policy
        self.cost = Cost()
        self.states = [State() for _ in world.functions]
        self._sharing = Sharing(world.link)
        self._used_bytes = 0
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._knowledge = Knowledge(world, self.states)

    def run(self) -> Cost:
        for now_s, which in self.world.requests:
            self._arrived(now_s, which)
        self._sharing.pass_time(math.inf)
        for which in range(len(self.states)):
            self._settle(which, math.inf)
            self._pay_hold(which, self.world.duration_s)
        return self.cost

    def _arrived(self, now_s: float, which: int) -> None:
        if self._sharing.busy_s(now_s) >= LOOK_S:
            self._knowledge.looked(now_s)
        self._sharing.pass_time(now_s)
        for each, state in enumerate(self.states):
            if state.coming is not None:
                self._settle(each, now_s)
        state = self.states[which]
        if state.first_s == math.inf:
            state.demand, state.first_s = Demand(now_s), now_s
        state.demand.arrived(now_s)
        self._recent[which] = None
        self._recent.move_to_end(which)
        if state.coming is None:
            self._plan(now_s, which)
        self._answer(now_s, which)

    def _answer(self, now_s: float, which: int) -> None:
        world, state = self.world, self.states[which]
        function = world.functions[which]
        own_s = world.per_call_s(function, state.form) if state.form else math.inf
        forward_s = world.forward_s(function, now_s)
        wait_s = math.inf
        if state.coming is not None:
            wait_s = self._ready_s(state.coming) - now_s
            wait_s += world.per_call_s(function, state.coming.form)
        taken_s = min(own_s, forward_s, wait_s)
        state.calls += 1
        if taken_s == wait_s:
            state.waiters_s.append(now_s)
        else:
            self.cost.latency_s += taken_s
            if taken_s == forward_s:
                state.forwarded += 1
                state.paid_s += taken_s
                if now_s >= function.forward_from_s:
                    self._knowledge.forwarded(which, taken_s, now_s)
            elif state.form is not None:
                self._knowledge.called(which, state.form, taken_s, now_s)

    # ------------------------------------------------------------ choosing
    def _plan(self, now_s: float, which: int) -> None:
        state, function = self.states[which], self.world.functions[which]
        if state.form is not None and (
            not self.policy.startswith("planner") or now_s - state.planned_s < AGAIN_S
        ):
            return
        state.planned_s = now_s
        if self.policy.startswith("planner"):
            urgent = now_s < function.forward_from_s and state.form is None
            share = self._sharing.share(urgent=urgent)
            room = None
            if self.policy == "planner":
                room = room_of(self._worths(which, now_s), self._free_bytes)
            form = self._knowledge.decide(which, state, now_s, share, room).form
        else:
            form = self._fixed(function, now_s)
        if form is None or form == "forward" or form == state.form:
            return
        if self._make_room(which, form, now_s):
            here = NAMES[state.form] if state.form else ()
            self.cost.changes += state.form is not None
            state.coming = self._coming(function, form, here, now_s)
            state.calls = state.forwarded = 0
            state.paid_s = 0.0

    def _fixed(self, function: Function, now_s: float) -> PlanForm:
        wanted: PlanForm = "artifact"
        if self.policy == "LRU":
            return self._soonest(function, now_s)
        if self.policy == "forward" and now_s >= function.forward_from_s:
            return "forward"
        if self.policy in ("module", "snapshot"):
            wanted = self.policy
        return wanted if wanted in function.forms else "module"

    def _soonest(self, function: Function, now_s: float) -> PlanForm:
        """What a cache that fetches on each miss takes, with the true bandwidth known."""

        def soon_s(form: PlanForm) -> float:
            size = self.world.wire_bytes(function, form, ())
            fetched_s = self.world.fetched_s(function, form, size, now_s)
            return fetched_s + self.world.build_cpu_s(function, form, ())

        return min(function.forms, key=soon_s)

    # ------------------------------------------------------------ acquiring
    def _coming(
        self, function: Function, form: PlanForm, here: tuple[str, ...], now_s: float
    ) -> Coming:
        size = self.world.wire_bytes(function, form, here)
        cpu_s = self.world.build_cpu_s(function, form, here)
        transfer = None
        if size:
            urgent = now_s < function.forward_from_s and not here
            transfer = self._sharing.add(size, now_s, urgent=urgent)
        self.cost.wire_s += size * WIRE_PRICE
        self.cost.cpu_s += cpu_s * CPU_PRICE
        self.cost.fetched_bytes += size
        return Coming(function, form, transfer, size, now_s, cpu_s)

    def _ready_s(self, coming: Coming) -> float:
        """As foreseen now; nothing that begins later makes it sooner."""
        done_s = coming.begun_s
        if coming.transfer is not None:
            came_s = self._sharing.done_s[coming.transfer]
            done_s = self.world.unpacked_s(
                coming.function, coming.form, coming.size, coming.begun_s, came_s
            )
        return done_s + coming.cpu_s + LOAD_S

    def _wait(self, coming: Coming, since_s: float) -> None:
        own_s = self._ready_s(coming) - since_s
        own_s += self.world.per_call_s(coming.function, coming.form)
        # A peer may have become ready meanwhile, or others' transfers have made this one late.
        self.cost.latency_s += min(own_s, self.world.forward_s(coming.function, since_s))

    def _settle(self, which: int, now_s: float) -> None:
        """What was coming is ready, and what it does not use goes."""
        state, function = self.states[which], self.world.functions[which]
        coming = state.coming
        if coming is None or (ready_s := self._ready_s(coming)) > now_s:
            return
        for since_s in state.waiters_s:
            self._wait(coming, since_s)
        state.waiters_s.clear()
        self._knowledge.arrived(coming, self._sharing, ready_s)
        self._pay_hold(which, min(ready_s, self.world.duration_s))
        self._used_bytes -= state.stored_bytes
        state.form, state.coming = coming.form, None
        state.stored_bytes = function.stored_bytes(state.form)
        self._used_bytes += state.stored_bytes

    def _pay_hold(self, which: int, until_s: float) -> None:
        state = self.states[which]
        held_s = until_s - state.since_s
        self.cost.hold_s += state.stored_bytes * HOLD_PRICE * held_s
        state.since_s = until_s

    def _make_room(self, which: int, form: PlanForm, now_s: float) -> bool:
        function, state = self.world.functions[which], self.states[which]
        here = NAMES[state.form] if state.form else ()
        both = dict.fromkeys((*here, *NAMES[form]))
        wanted = sum(function.blob(name)[1] for name in both)
        more = wanted - state.stored_bytes
        missing = more - self._free_bytes
        victims = self._victims(which, missing, now_s) if missing > 0 else []
        if sum(self.states[other].stored_bytes for other in victims) < missing:
            return False
        for other in victims:
            self._pay_hold(other, now_s)
            gone = self.states[other]
            self._used_bytes -= gone.stored_bytes
            gone.form, gone.stored_bytes = None, 0
            gone.calls = gone.forwarded = 0
            gone.paid_s = 0.0
        self._pay_hold(which, now_s)
        self._used_bytes += more
        state.stored_bytes = wanted
        return True

    @property
    def _free_bytes(self) -> int:
        return self.world.quota_bytes - self._used_bytes

    def _worths(self, which: int, now_s: float) -> list[Worth]:
        """Of what may go: all but the function's own and what is on its way."""
        held = [
            other
            for other, state in enumerate(self.states)
            if other != which and state.form is not None and state.coming is None
        ]
        return self._knowledge.worths(held, now_s)

    def _victims(self, which: int, missing: int, now_s: float) -> list[int]:
        if self.policy == "planner":
            found = victims_of(self._worths(which, now_s), missing)
            return [int(each.name) for each in found]
        victims: list[int] = []
        for other in self._recent:
            if missing <= 0:
                break
            state = self.states[other]
            if other != which and state.form is not None and state.coming is None:
                victims.append(other)
                missing -= state.stored_bytes
        return victims


class Knowledge:
    """What the node has measured, and the planner's inputs made of it."""

    def __init__(self, world: World, states: list[State]) -> None:
        self.world = world
        self._states = states
        self._rng = world.noise
        self._rng.seed(world.seed + 1_000_003)
        self._link = Estimate(100 * 125_000.0, off=RATE_OFF)
        self._compile = Estimate(COMPILE_BYTES_S)
        functions = world.functions
        self._forward = [Estimate(self._seen(each.rtt_s + each.remote_s)) for each in functions]
        self._module_call = [Estimate(self._seen(self._stated_s(each))) for each in functions]
        self._snapshot_call = [
            Estimate(self._seen(each.guest.instantiate_snapshot_s + each.guest.run_s))
            for each in functions
        ]

    @staticmethod
    def _stated_s(function: Function) -> float:
        guest = function.guest
        return guest.instantiate_s + guest.init_s + guest.run_s

    def _seen(self, value: float) -> float:
        return value * math.exp(self._rng.gauss(0, NOISE))

    # ------------------------------------------------------------ measuring
    def forwarded(self, which: int, took_s: float, now_s: float) -> None:
        self._forward[which].observe(self._seen(took_s), now_s)

    def called(self, which: int, form: PlanForm, took_s: float, now_s: float) -> None:
        found = self._snapshot_call if form.startswith("snapshot") else self._module_call
        found[which].observe(self._seen(took_s), now_s)

    def looked(self, now_s: float) -> None:
        """At the bytes of what is on its way."""
        came = self.world.link.bytes_between(now_s - LOOK_S, now_s)
        self._link.observe(self._seen(came / LOOK_S), now_s)

    def arrived(self, coming: Coming, sharing: Sharing, now_s: float) -> None:
        """It has come, and been built."""
        if coming.transfer is not None and coming.size >= 64 * 1024:
            done_s = sharing.done_s[coming.transfer]
            came = self.world.link.bytes_between(coming.begun_s, done_s)
            self._link.observe(self._seen(came / max(done_s - coming.begun_s, 1e-9)), now_s)
        code = coming.function.guest.code_bytes
        if coming.form != "snapshot-here" and coming.cpu_s > 2 * COMPILE_FIXED_S:
            self._compile.observe(self._seen(code / (coming.cpu_s - COMPILE_FIXED_S)), now_s)

    # ------------------------------------------------------------ deciding
    def decide(
        self, which: int, state: State, now_s: float, share: float, room: tuple[Room, ...] | None
    ) -> Decision:
        held: PlanForm | None = state.form
        if held is None and state.calls:
            held = "forward"
        return decide(self._inputs(which, state, now_s, share, room), held)

    def _inputs(
        self, which: int, state: State, now_s: float, share: float, room: tuple[Room, ...] | None
    ) -> Inputs:
        function = self.world.functions[which]
        guest = function.guest
        link = self._link.harmonic(now_s) * share
        sources = Sources(function.rtt_s, link)
        here = NAMES[state.form] if state.form else ()

        def blob(name: str, *, made: bool = True) -> Blob:
            wire_bytes, size_bytes = function.blob(name)
            return Blob(
                wire_bytes=wire_bytes, size_bytes=size_bytes, here=name in here,
                sources=sources if made else None,
            )  # fmt: skip

        known = function.has_artifact
        compile_bytes_s = self._compile.value(now_s)
        module_call_s = self._module_call[which].value(now_s)
        # What an init takes here is what the maker says, by how much slower calls are here.
        init_s = module_call_s * guest.init_s / self._stated_s(function)
        forward = None
        if now_s >= function.forward_from_s:
            forward = Forward(rtt_s=0.0, per_call_s=self._forward[which].value(now_s))
        return Inputs(
            module=blob("module"), artifact=blob("artifact", made=known),
            snapshot=blob("snapshot") if guest.init_s else None,
            delta=blob("delta") if guest.init_s else None,
            snapshot_artifact=blob("snapshot_artifact", made=known) if guest.init_s else None,
            code_bytes=guest.code_bytes, link_bytes_s=link,
            decompress_bytes_s=DECOMPRESS_BYTES_S, compile_bytes_s=compile_bytes_s,
            compile_fixed_s=COMPILE_FIXED_S, load_s=LOAD_S, init_s=init_s,
            make_snapshot_s=COMPILE_FIXED_S + guest.code_bytes / compile_bytes_s
            + guest.snapshot[1] / REWRITE_BYTES_S,
            instantiate_s=0.0, run_s=module_call_s - init_s,
            instantiate_snapshot_s=max(
                0.0, self._snapshot_call[which].value(now_s) - (module_call_s - init_s)
            ),
            waiting=0 if state.form else 1,
            rate_per_s=state.demand.rate_per_s(now_s, self._mean_per_s(now_s)),
            rented=Rented(calls=state.calls, paid_s=state.paid_s, forwarded=state.forwarded),
            horizon_s=state.demand.horizon_s(now_s, HORIZON_MAX_S), forward=forward,
            prices=PRICES, room=room, confidence=self._link.confidence(now_s),
        )  # fmt: skip

    # ------------------------------------------------------------ the disk
    def worths(self, held: list[int], now_s: float) -> list[Worth]:
        """Of what is held for functions: what each call would cost more without it."""
        mean = self._mean_per_s(now_s)
        return [self._worth(which, now_s, mean) for which in held]

    def _mean_per_s(self, now_s: float) -> float | None:
        return mean_per_s([state.demand for state in self._states], now_s)

    def _worth(self, which: int, now_s: float, mean: float | None) -> Worth:
        state, function = self._states[which], self.world.functions[which]
        assert state.form is not None
        rate_per_s = state.demand.rate_per_s(now_s, mean)
        if rate_per_s is None:
            rate_per_s = state.demand.calls / max(now_s, 1.0)
        calls = self._snapshot_call if state.form.startswith("snapshot") else self._module_call
        own_s = calls[which].value(now_s)
        if now_s >= function.forward_from_s:
            again_s = self._forward[which].value(now_s)
        else:  # to be had again, while the request waits
            again_s = own_s + ROUNDS * function.rtt_s
            again_s += self.world.wire_bytes(function, state.form, ()) / self._link.harmonic(now_s)
            if not (state.form.endswith("artifact") and function.has_artifact):
                again_s += COMPILE_FIXED_S + function.guest.code_bytes / self._compile.value(now_s)
        return Worth(str(which), state.stored_bytes, rate_per_s * max(again_s - own_s, 0.0))
