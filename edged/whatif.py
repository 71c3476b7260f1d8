"""The values of a decision by name: reading one, putting another in its place, finding how far one
would have to go for another form to be the cheapest, and which one made it so. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from protocol.costs import Blob, Forward, Inputs, PlanForm, Sources, options
from protocol.errors import LocalProtocolError
from protocol.planner import decide

from .errors import BadRequest
from .interfaces import PlanFlip

GIBIBYTE: Final = 1 << 30
STEP: Final = 2.0
"""Factor between looks; two changes of winner within one are told as one."""
STEPS_MAX: Final = 14
"""To a factor of 16,000 in either direction: beyond it nobody's link or code ever is."""
HALVINGS: Final = 6
"""Of a step: to within 1.1 %."""
SHARE: Final = 0.25
"""Of what a form is cheaper by: an input that accounts for less of it explains nothing."""
_BLOBS: Final = ("module", "artifact", "snapshot", "delta", "snapshot_artifact")

Reader = Callable[[Inputs], float | None]
Writer = Callable[[Inputs, float], Inputs]


def _field(name: str) -> tuple[Reader, Writer]:
    def read(inputs: Inputs) -> float | None:
        value: float | None = getattr(inputs, name)
        return value

    def write(inputs: Inputs, value: float) -> Inputs:
        return msgspec.structs.replace(inputs, **{name: value})

    return read, write


def _sources(inputs: Inputs) -> list[Sources]:
    blobs: list[Blob | None] = [getattr(inputs, name) for name in _BLOBS]
    return [blob.sources for blob in blobs if blob is not None and blob.sources is not None]


def _with_sources(inputs: Inputs, change: Callable[[Sources], Sources]) -> Inputs:
    changed = {}
    for name in _BLOBS:
        blob: Blob | None = getattr(inputs, name)
        if blob is not None and blob.sources is not None:
            changed[name] = msgspec.structs.replace(blob, sources=change(blob.sources))
    return msgspec.structs.replace(inputs, **changed)


def _bandwidth(inputs: Inputs) -> float | None:
    most = max((one.bytes_per_s for one in _sources(inputs)), default=None)
    return None if most is None else min(most, inputs.link_bytes_s)


def _with_bandwidth(inputs: Inputs, value: float) -> Inputs:
    made = _with_sources(inputs, lambda one: one._replace(bytes_per_s=value))
    return msgspec.structs.replace(made, link_bytes_s=value)


def _rtt(inputs: Inputs) -> float | None:
    return min((one.rtt_s for one in _sources(inputs)), default=None)


def _with_rtt(inputs: Inputs, value: float) -> Inputs:
    return _with_sources(inputs, lambda one: one._replace(rtt_s=value))


def _forward(inputs: Inputs) -> float | None:
    one = inputs.forward
    return None if one is None else one.rtt_s + one.load_s + one.per_call_s


def _with_forward(inputs: Inputs, value: float) -> Inputs:
    before = inputs.forward
    payload = 0 if before is None else before.payload_bytes
    made = Forward(rtt_s=0.0, per_call_s=value, payload_bytes=payload)
    return msgspec.structs.replace(inputs, forward=made)


def _price(inputs: Inputs) -> float | None:
    return inputs.prices.wire_s_per_byte * GIBIBYTE


def _with_price(inputs: Inputs, value: float) -> Inputs:
    prices = msgspec.structs.replace(inputs.prices, wire_s_per_byte=value / GIBIBYTE)
    return msgspec.structs.replace(inputs, prices=prices)


def _pressure(inputs: Inputs) -> float | None:
    """Of what is held as long as the decision looks ahead: by its price, and by what must go for
    the largest thing that may have to come."""
    price = inputs.prices.stored_s_per_byte_s + _room_s_per_byte_s(inputs)
    return price * GIBIBYTE * _ahead_s(inputs)


def _room_s_per_byte_s(inputs: Inputs) -> float:
    blobs: list[Blob | None] = [getattr(inputs, name) for name in _BLOBS]
    size_bytes = max((blob.size_bytes for blob in blobs if blob and not blob.here), default=0)
    if not inputs.room or not size_bytes:
        return 0.0
    enough = (step for step in inputs.room if step.size_bytes >= size_bytes)
    step = next(enough, inputs.room[-1])  # of what is all in vain, the price is what can be told
    return step.lost_s_per_s / size_bytes


def _with_pressure(inputs: Inputs, value: float) -> Inputs:
    """In place of what room costs, too."""
    stored_s_per_byte_s = value / GIBIBYTE / _ahead_s(inputs)
    prices = msgspec.structs.replace(inputs.prices, stored_s_per_byte_s=stored_s_per_byte_s)
    return msgspec.structs.replace(inputs, prices=prices, room=None)


def _ahead_s(inputs: Inputs) -> float:
    return max(inputs.horizon_s, 1.0)


def _calls(inputs: Inputs) -> float | None:
    return float(inputs.rented.calls)


def _with_calls(inputs: Inputs, value: float) -> Inputs:
    rented = msgspec.structs.replace(inputs.rented, calls=round(value))
    return msgspec.structs.replace(inputs, rented=rented)


def _waiting(inputs: Inputs) -> float | None:
    return float(inputs.waiting)


def _with_waiting(inputs: Inputs, value: float) -> Inputs:
    return msgspec.structs.replace(inputs, waiting=round(value))


INPUTS: Final[Mapping[str, tuple[Reader, Writer]]] = {
    "bandwidth": (_bandwidth, _with_bandwidth),
    "rtt": (_rtt, _with_rtt),
    "rate": _field("rate_per_s"),
    "calls": (_calls, _with_calls),
    "waiting": (_waiting, _with_waiting),
    "forward": (_forward, _with_forward),
    "init": _field("init_s"),
    "run": _field("run_s"),
    "instantiate": _field("instantiate_s"),
    "instantiate-snapshot": _field("instantiate_snapshot_s"),
    "compile": _field("compile_bytes_s"),
    "decompress": _field("decompress_bytes_s"),
    "load": _field("load_s"),
    "make-snapshot": _field("make_snapshot_s"),
    "compile-queue": _field("compile_queue_s"),
    "horizon": _field("horizon_s"),
    "price": (_price, _with_price),
    "pressure": (_pressure, _with_pressure),
}
"""How each is read and replaced; planwords.UNITS has their units."""
FLIPPING: Final = ("bandwidth", "rate", "rtt", "init", "compile", "forward", "run", "price")
"""That change by themselves, or that an operator sets: what a flip is told of."""
_MAY_LACK: Final = {"rate": "rate_per_s", "forward": "forward"}
"""Inputs that may be unknown where forms can be had all the same, and their fields."""


def values_of(inputs: Inputs) -> dict[str, float]:
    """Those that are known."""
    read = ((name, reader(inputs)) for name, (reader, _) in INPUTS.items())
    return {name: value for name, value in read if value is not None}


def with_values(inputs: Inputs, values: Mapping[str, float]) -> Inputs:
    """Raises BadRequest."""
    for name, value in values.items():
        known = INPUTS.get(name)
        if known is None:
            raise BadRequest(f"{name[:40]!r} is no input; there are: {', '.join(INPUTS)}")
        if not 0 <= value < math.inf:
            raise BadRequest(f"{name} = {value!r}: not a finite number from 0 up")
        try:
            inputs = known[1](inputs, value)
        except LocalProtocolError as error:
            raise BadRequest(f"{name} = {value!r}: {error}") from error
    return inputs


def flips(inputs: Inputs) -> tuple[PlanFlip, ...]:
    """For each of FLIPPING the nearest value, up or down, at which another form is the cheapest."""
    best = decide(inputs).best
    found = []
    for name in FLIPPING:
        read, write = INPUTS[name]
        now = read(inputs)
        begin = now
        if not begin:  # no demand yet, or a price of nothing: from the least that matters
            begin = 1.0 if name == "price" else 1 / max(inputs.horizon_s, 1.0)
            if name not in ("rate", "price"):
                continue
        ways = [_nearest(inputs, write, begin, factor, best) for factor in (STEP, 1 / STEP)]
        known = [flip for flip in ways if flip is not None]
        if known:
            value, form = min(known, key=lambda flip: abs(math.log(flip[0] / begin)))
            found.append(PlanFlip(name, now or 0.0, value, form))
    return tuple(found)


def _nearest(
    inputs: Inputs, write: Writer, begin: float, factor: float, best: PlanForm | None
) -> tuple[float, PlanForm] | None:
    same = begin
    for _ in range(STEPS_MAX):
        other = same * factor
        form = decide(write(inputs, other)).best
        if form != best:
            return None if form is None else _between(inputs, write, same, other, best, form)
        same = other
    return None


def _between(
    inputs: Inputs,
    write: Writer,
    same: float,
    other: float,
    best: PlanForm | None,
    form: PlanForm,
) -> tuple[float, PlanForm]:
    for _ in range(HALVINGS):
        middle = math.sqrt(same * other)
        there = decide(write(inputs, middle)).best
        if there == best or there is None:
            same = middle
        else:
            other, form = middle, there
    return other, form


def deciding(inputs: Inputs, *, left: PlanForm, taken: PlanForm, then: Mapping[str, float]) -> str:
    """Which input's change since `then` did most to make one form cheaper than the other: with what
    it was then in its place, the least of the lead is left. "": none did, so it is by what is here
    or can be had."""
    lead_s = _lead_s(inputs, left, taken)
    name, most_s = "", SHARE * lead_s
    if not 0 < lead_s < math.inf:
        return name
    now = values_of(inputs)
    for each in INPUTS:
        if then.get(each) == now.get(each):
            continue
        owed_s = lead_s - _lead_s(_as_then(inputs, each, now, then), left, taken)
        if owed_s > most_s:
            name, most_s = each, owed_s
    return name


def _as_then(
    inputs: Inputs, name: str, now: Mapping[str, float], then: Mapping[str, float]
) -> Inputs:
    """With one value as it was; what stands for several peers changes for each in proportion."""
    old = then.get(name)
    if old is None:
        absent = _MAY_LACK.get(name)
        return inputs if absent is None else msgspec.structs.replace(inputs, **{absent: None})
    factor = old / now[name] if now.get(name) else 1.0
    if name == "bandwidth":
        link_bytes_s = inputs.link_bytes_s * factor
        inputs = msgspec.structs.replace(inputs, link_bytes_s=link_bytes_s)
        return _with_sources(inputs, lambda one: one._replace(bytes_per_s=one.bytes_per_s * factor))
    if name == "rtt" and factor:
        return _with_sources(inputs, lambda one: one._replace(rtt_s=one.rtt_s * factor))
    return INPUTS[name][1](inputs, old)


def _lead_s(inputs: Inputs, left: PlanForm, taken: PlanForm) -> float:
    """Infinite, or no number, where one cannot be had."""
    costs = {row.form: row.total_s for row in options(inputs)}
    return costs.get(left, math.inf) - costs.get(taken, math.inf)
