"""What each form of a function's code would cost one node. edged/docs/PLANNER.md has the formulas.

Pure: the caller measures, this adds up. Every cost is in seconds: of callers' waiting, and of what
callers would rather wait than have spent (bytes sent, disk held, cores busy), by prices the caller
gives. Rows come in the order of FORMS, which also breaks ties: nothing here depends on a set's or
a mapping's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from .errors import LocalProtocolError

PlanForm = Literal[
    "forward",
    "artifact",
    "module",
    "snapshot-artifact",
    "snapshot-delta",
    "snapshot",
    "snapshot-here",
]
FORMS: Final[tuple[PlanForm, ...]] = get_args(PlanForm)
INIT_FORMS: Final[frozenset[PlanForm]] = frozenset(("module", "artifact"))
"""Whose calls run the init themselves."""
SOURCES_MAX: Final = 12
"""Peers that a fetch connects to by choice (SPEC §10.5)."""
SEGMENT_BYTES: Final = 256 * 1024
"""Of wire bytes, at most: what is decompressed while the next is on its way."""
ROUNDS: Final = 2
"""Round trips before a blob's bytes flow: its manifest, its first segment."""
ATTESTED_ROUNDS: Final = 3
"""One more for an artifact: whose word is it (SPEC §9.2)."""


class Peer(NamedTuple):
    rtt_s: float
    bytes_per_s: float


class Sources(NamedTuple):
    """All who have a blob, as one."""

    rtt_s: float
    """Of the nearest."""
    bytes_per_s: float
    """Of all together."""


def sources_of(peers: Iterable[Peer]) -> Sources | None:
    """None: nobody has it."""
    nearest = sorted([peer for peer in peers if peer.bytes_per_s > 0])[:SOURCES_MAX]
    if not nearest:
        return None
    return Sources(nearest[0].rtt_s, sum([peer.bytes_per_s for peer in nearest]))


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """One that can be fetched, made, or is here. A delta's `size_bytes` is 0: it is not kept."""

    wire_bytes: int = 0
    size_bytes: int = 0
    """On disk. Expected, where nobody has made it yet."""
    here: bool = False
    sources: Sources | None = None
    lacks: str = "no peer has it"
    """Why it cannot be fetched where there are no sources."""


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """The nearest peer that answers at once."""

    rtt_s: float
    load_s: float = 0.0
    """That a request waits there for a thread."""
    per_call_s: float
    """There: instantiate, init if it runs the module, run."""
    payload_bytes: int = 0
    """Of a request and its answer."""


class Rented(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the demand while its rate is not: what it has cost."""

    calls: int = 0
    """That were forwarded, or served in the form held now."""
    paid_s: float = 0.0
    """By those that were forwarded, at the measured cost."""
    forwarded: int = 0
    """Of `calls`."""


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller would rather wait than have spent, in seconds."""

    wire_s_per_byte: float = 0.0
    cpu_s_per_s: float = 0.0
    """Per core-second."""
    stored_s_per_byte_s: float = 0.0
    """Storage pressure: per byte held and second."""


class Room(NamedTuple):
    """On the disk, a step of what is made by letting other things go (protocol.caching)."""

    size_bytes: int
    """So many can be had …"""
    lost_s_per_s: float
    """… for this: seconds of having what went again, per second from then on."""


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Of one decision: one function on one node. Rates are bytes per second."""

    module: Blob
    artifact: Blob
    """The module's native code."""
    snapshot: Blob | None = None
    """None: the function has no init, or its snapshot is not worth having."""
    delta: Blob | None = None
    """The snapshot's against the module."""
    snapshot_artifact: Blob | None = None
    code_bytes: int
    """Of the code section: what compiling's time is proportional to."""
    link_bytes_s: float
    """Of this node's own link; infinite where it never was the bound."""
    decompress_bytes_s: float
    compile_bytes_s: float
    compile_fixed_s: float = 0.0
    load_s: float
    init_s: float = 0.0
    """0: the function has none."""
    make_snapshot_s: float = 0.0
    """Instrumenting, compiling that, and rewriting: all of making a snapshot here but its init."""
    instantiate_s: float
    """Of the module."""
    instantiate_snapshot_s: float = 0.0
    run_s: float
    fetch_queue_s: float = 0.0
    compile_queue_s: float = 0.0
    waiting: int = 0
    """Requests that wait for this decision."""
    rate_per_s: float | None
    """None: unknown; then `rented` speaks for the demand."""
    rented: Rented = Rented()
    horizon_s: float
    """For which what is chosen is expected to serve."""
    forward: Forward | None = None
    prices: Prices = Prices()
    room: tuple[Room, ...] | None = None
    """From what is free upwards, both numbers ascending; None: enough for anything."""
    confidence: float = 1.0
    """Of the least certain of the values that matter, 0 to 1."""

    def __post_init__(self) -> None:
        """Raises LocalProtocolError: a value no measurement can have."""
        rates = (self.decompress_bytes_s, self.compile_bytes_s, self.link_bytes_s)
        times = (
            self.compile_fixed_s, self.load_s, self.init_s, self.make_snapshot_s,
            self.instantiate_s, self.instantiate_snapshot_s, self.run_s, self.fetch_queue_s,
            self.compile_queue_s, self.horizon_s, self.rate_per_s or 0.0, *_prices(self.prices),
        )  # fmt: skip
        # A sum is finite and a minimum a number only if all of them are.
        if not (min(rates) > 0 and min(times) >= 0 and sum(times) < math.inf):
            raise LocalProtocolError("a rate must be positive, a time finite and not negative")
        if not (0 <= self.confidence <= 1 and self.waiting >= 0 and self.code_bytes >= 0):
            raise LocalProtocolError("confidence is 0 to 1, counts are not negative")


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table. `queue_s` to `load_s` add up to `ready_s`, as what is hidden behind
    another step is not counted; `wait_s` to `hold_price_s` add up to `total_s`."""

    form: PlanForm
    lacks: str | None = None
    """Why it cannot be had; then its times are infinite."""
    queue_s: float = 0.0
    rtt_s: float = 0.0
    transfer_s: float = 0.0
    decompress_s: float = 0.0
    build_s: float = 0.0
    load_s: float = 0.0
    ready_s: float = 0.0
    per_call_s: float = 0.0
    wire_bytes: int = 0
    stored_bytes: int = 0
    """That the form takes, what is here already included."""
    cpu_s: float = 0.0
    wait_s: float = 0.0
    """Of the requests that wait now."""
    calls_s: float = 0.0
    """Of those expected, or by which an unknown demand is judged."""
    wire_price_s: float = 0.0
    cpu_price_s: float = 0.0
    hold_price_s: float = 0.0
    total_s: float = 0.0

    @property
    def price_s(self) -> float:
        return self.wire_price_s + self.cpu_price_s + self.hold_price_s


def options(inputs: Inputs) -> tuple[Option, ...]:
    """One row per form that makes sense for the function, in the order of FORMS."""
    steps = [_artifact(inputs), _module(inputs)]
    if inputs.init_s and inputs.snapshot is not None:
        steps += _snapshots(inputs, inputs.snapshot)
    forward_s = math.inf
    if inputs.forward is not None:
        forward_s = forward_cost_s(inputs, inputs.forward)
    now_s = forward_s
    for each in steps:
        if each.lacks is None and not each.wire_bytes and not each.build_s:
            now_s = min(now_s, each.ready_s + each.per_call_s)
    priced = [_priced(inputs, each, now_s, forward_s) for each in steps]
    return (_forward(inputs, forward_s), *priced)


# ---------------------------------------------------------------- getting ready
class _Steps(NamedTuple):
    """Until a form is ready."""

    form: PlanForm
    per_call_s: float
    stored_bytes: int
    new_bytes: int
    """Of those stored: what is not here yet."""
    lacks: str | None = None
    queue_s: float = 0.0
    rtt_s: float = 0.0
    transfer_s: float = 0.0
    decompress_s: float = 0.0
    build_s: float = 0.0
    load_s: float = 0.0
    ready_s: float = 0.0
    wire_bytes: int = 0


def _artifact(inputs: Inputs) -> _Steps:
    per_call_s = inputs.instantiate_s + inputs.init_s + inputs.run_s
    return _fetched_code(inputs, "artifact", inputs.artifact, per_call_s)


def _module(inputs: Inputs) -> _Steps:
    per_call_s = inputs.instantiate_s + inputs.init_s + inputs.run_s
    parts = [inputs.module]
    return _compiled(inputs, "module", per_call_s, parts, inputs.artifact, kept=parts)


def _snapshots(inputs: Inputs, snapshot: Blob) -> list[_Steps]:
    per_call_s = inputs.instantiate_snapshot_s + inputs.run_s
    found = []
    code = inputs.snapshot_artifact
    if code is not None:
        found.append(_fetched_code(inputs, "snapshot-artifact", code, per_call_s))
    made = code or Blob(size_bytes=inputs.artifact.size_bytes)
    both = [inputs.module, snapshot]
    if inputs.delta is not None:
        # As a prefix, the base must be whole before the delta's one frame can be undone.
        parts = both if snapshot.here else [inputs.module, inputs.delta]
        undo_s = 0.0 if snapshot.here else snapshot.size_bytes / inputs.decompress_bytes_s
        form: PlanForm = "snapshot-delta"
        found.append(_compiled(inputs, form, per_call_s, parts, made, kept=both, unpack_s=undo_s))
    found.append(_compiled(inputs, "snapshot", per_call_s, [snapshot], made, kept=[snapshot]))
    rebuild_s = 0.0 if snapshot.here else inputs.make_snapshot_s + inputs.init_s
    form, parts = "snapshot-here", [inputs.module]
    found.append(_compiled(inputs, form, per_call_s, parts, made, kept=both, rebuild_s=rebuild_s))
    return found


def _fetched_code(inputs: Inputs, form: PlanForm, code: Blob, per_call_s: float) -> _Steps:
    got = _fetch(inputs, [code], ATTESTED_ROUNDS)
    new_bytes = 0 if code.here else code.size_bytes
    if isinstance(got, str):
        return _Steps(form, per_call_s, code.size_bytes, new_bytes, lacks=got)
    queue_s, rtt_s, transfer_s, decompress_s, wire_bytes = got
    return _Steps(
        form, per_call_s, code.size_bytes, new_bytes, None,
        queue_s, rtt_s, transfer_s, decompress_s, 0.0, inputs.load_s,
        queue_s + rtt_s + transfer_s + decompress_s + inputs.load_s, wire_bytes,
    )  # fmt: skip


def _compiled(
    inputs: Inputs,
    form: PlanForm,
    per_call_s: float,
    parts: list[Blob],
    code: Blob,
    *,
    kept: list[Blob],
    unpack_s: float = 0.0,
    rebuild_s: float = 0.0,
) -> _Steps:
    """`parts` are fetched, then unpacked or rebuilt into what is compiled to `code`."""
    stored = code.size_bytes + sum([blob.size_bytes for blob in kept])
    if code.here:
        load_s = inputs.load_s
        return _Steps(form, per_call_s, stored, 0, load_s=load_s, ready_s=load_s)
    new = code.size_bytes + sum([blob.size_bytes for blob in kept if not blob.here])
    got = _fetch(inputs, parts, ROUNDS)
    if isinstance(got, str):
        return _Steps(form, per_call_s, stored, new, lacks=got)
    queue_s, rtt_s, transfer_s, decompress_s, wire_bytes = got
    decompress_s += unpack_s
    fetched_s = queue_s + rtt_s + transfer_s + decompress_s
    # Others' compiles go on while this one's bytes come.
    blocked_s = max(0.0, inputs.compile_queue_s - fetched_s)
    compile_s = inputs.compile_fixed_s + inputs.code_bytes / inputs.compile_bytes_s
    build_s = rebuild_s + compile_s
    return _Steps(
        form, per_call_s, stored, new, None,
        queue_s + blocked_s, rtt_s, transfer_s, decompress_s, build_s, inputs.load_s,
        fetched_s + blocked_s + build_s + inputs.load_s, wire_bytes,
    )  # fmt: skip


def _fetch(
    inputs: Inputs, parts: list[Blob], rounds: int
) -> tuple[float, float, float, float, int] | str:
    """(queue_s, rtt_s, transfer_s, decompress_s, wire bytes) of what is not here, all of it at
    once over one link; why it cannot be had."""
    rtt_s = transfer_s = 0.0
    wire_bytes = size_bytes = 0
    for part in parts:
        if part.here:
            continue
        if part.sources is None:
            return part.lacks
        rtt_s = max(rtt_s, part.sources.rtt_s)
        transfer_s = max(transfer_s, part.wire_bytes / part.sources.bytes_per_s)
        wire_bytes += part.wire_bytes
        size_bytes += part.size_bytes
    if not wire_bytes:
        return 0.0, 0.0, 0.0, 0.0, 0
    transfer_s = max(transfer_s, wire_bytes / inputs.link_bytes_s)
    # Two stages in a row over equal segments take the longer, and once the shorter.
    decompress_s = size_bytes / inputs.decompress_bytes_s
    segments = math.ceil(wire_bytes / SEGMENT_BYTES)
    shorter, longer = sorted((transfer_s, decompress_s))
    hidden_s = longer + shorter / segments
    return inputs.fetch_queue_s, rounds * rtt_s, transfer_s, hidden_s - transfer_s, wire_bytes


# ---------------------------------------------------------------- what follows
def forward_cost_s(inputs: Inputs, forward: Forward) -> float:
    """Of one call that a peer answers, its payload's price included."""
    return (
        forward.rtt_s
        + forward.load_s
        + forward.per_call_s
        + forward.payload_bytes / inputs.link_bytes_s
        + forward.payload_bytes * inputs.prices.wire_s_per_byte
    )


def _forward(inputs: Inputs, cost_s: float) -> Option:
    if inputs.forward is None:
        return _lacking("forward", "no peer answers it now", 0)
    rented = inputs.rented
    if inputs.rate_per_s is not None:
        calls_s = inputs.rate_per_s * inputs.horizon_s * cost_s
    else:
        calls_s = rented.paid_s + (rented.calls - rented.forwarded) * cost_s
    wait_s = inputs.waiting * cost_s
    return Option(
        form="forward",
        per_call_s=cost_s,
        wait_s=wait_s,
        calls_s=calls_s,
        total_s=wait_s + calls_s,
    )


def _lost_s_per_s(room: tuple[Room, ...] | None, new_bytes: int) -> float | None:
    """None: so much room cannot be made."""
    if room is None or not new_bytes:
        return 0.0
    for step in room:
        if step.size_bytes >= new_bytes:
            return step.lost_s_per_s
    return None


def _lacking(form: PlanForm, why: str | None, stored_bytes: int) -> Option:
    inf = math.inf
    return Option(
        form=form, lacks=why, ready_s=inf, per_call_s=inf, stored_bytes=stored_bytes, total_s=inf
    )


def _priced(inputs: Inputs, steps: _Steps, now_s: float, forward_s: float) -> Option:
    """`now_s`: of a call that does not wait for this form, whoever answers it."""
    lost_s_per_s = _lost_s_per_s(inputs.room, steps.new_bytes)
    lacks = "no room for it" if lost_s_per_s is None else steps.lacks
    if lacks is not None or lost_s_per_s is None:
        return _lacking(steps.form, lacks, steps.stored_bytes)
    prices = inputs.prices
    soon_s = min(steps.ready_s + steps.per_call_s, now_s)
    # A peer goes on answering where it is quicker; code that is here gives way to this form, and
    # where it is the better of the two, the time until then is not to this form's credit.
    then_s = min(steps.per_call_s, forward_s)
    now_s = max(now_s, then_s)
    if inputs.rate_per_s is not None:
        meanwhile_s = min(steps.ready_s, inputs.horizon_s)
        calls_s = inputs.rate_per_s * (
            _arriving_s(steps.ready_s, then_s, now_s)
            - _arriving_s(steps.ready_s - meanwhile_s, then_s, now_s)
            + (inputs.horizon_s - meanwhile_s) * then_s
        )
    else:
        calls_s = inputs.rented.calls * then_s
    wait_s = inputs.waiting * soon_s
    wire_price_s = steps.wire_bytes * prices.wire_s_per_byte
    cpu_price_s = steps.build_s * prices.cpu_s_per_s
    held_s_per_s = steps.stored_bytes * prices.stored_s_per_byte_s + lost_s_per_s
    hold_price_s = held_s_per_s * inputs.horizon_s
    return Option(
        form=steps.form,
        queue_s=steps.queue_s,
        rtt_s=steps.rtt_s,
        transfer_s=steps.transfer_s,
        decompress_s=steps.decompress_s,
        build_s=steps.build_s,
        load_s=steps.load_s,
        ready_s=steps.ready_s,
        per_call_s=steps.per_call_s,
        wire_bytes=steps.wire_bytes,
        stored_bytes=steps.stored_bytes,
        cpu_s=steps.build_s,
        wait_s=wait_s,
        calls_s=calls_s,
        wire_price_s=wire_price_s,
        cpu_price_s=cpu_price_s,
        hold_price_s=hold_price_s,
        total_s=wait_s + calls_s + wire_price_s + cpu_price_s + hold_price_s,
    )


def _arriving_s(left_s: float, then_s: float, now_s: float) -> float:
    """∫ min(now_s, u + then_s) du from 0 to `left_s`: what one call per second costs that comes
    while there are u seconds left, and waits for them or takes what answers now."""
    waits_s = min(left_s, now_s - then_s)
    waited = waits_s * (waits_s / 2 + then_s)
    return waited if left_s <= waits_s else waited + (left_s - waits_s) * now_s


def _prices(prices: Prices) -> tuple[float, ...]:
    return (
        prices.wire_s_per_byte,
        prices.cpu_s_per_s,
        prices.stored_s_per_byte_s,
    )
