"""What a node decided about a function's code, in words: for events, tables and reports."""

from __future__ import annotations

from typing import Final, Protocol

from .quantities import digits, show_quantity

UNITS: Final = {
    "bandwidth": "bytes/s",
    "rtt": "s",
    "rate": "1/s",
    "calls": "",
    "waiting": "",
    "forward": "s",
    "init": "s",
    "run": "s",
    "instantiate": "s",
    "instantiate-snapshot": "s",
    "compile": "bytes/s",
    "decompress": "bytes/s",
    "load": "s",
    "make-snapshot": "s",
    "compile-queue": "s",
    "horizon": "s",
    "price": "s/GiB",
    "pressure": "s/GiB",
}
"""Of the inputs of a decision, by name: whatif.py reads and replaces them."""
_BITS: Final = ("bandwidth",)
"""Shown in bits, as links are sold."""
NOTHING: Final = "nothing"
"""Where there is no form."""


def input_value(name: str, value: float) -> str:
    """In the unit that the input has."""
    return show_quantity(value, UNITS.get(name, ""), bits=name in _BITS)


class Change(Protocol):
    """A PlanChange, or a row of a run."""

    @property
    def before(self) -> str | None: ...
    @property
    def after(self) -> str | None: ...
    @property
    def trigger(self) -> str: ...
    @property
    def input(self) -> str:
        """ "": none moved."""
        ...

    @property
    def input_before(self) -> float: ...
    @property
    def input_after(self) -> float: ...


def change_words(change: Change) -> str:
    head = f"{change.before or NOTHING} → {change.after or NOTHING} ({change.trigger})"
    if not change.input:
        return head
    before = input_value(change.input, change.input_before)
    return f"{head}: {change.input} {before} → {input_value(change.input, change.input_after)}"


def flip_words(name: str, value: float, to_value: float, form: str) -> str:
    """By how much an input would have to change, to what, and which form wins then."""
    there = input_value(name, to_value)
    if not value or not to_value:
        return f"at {there}: {form}"
    factor = to_value / value
    by = f"×{digits(factor)}" if factor >= 1 else f"÷{digits(1 / factor)}"
    return f"{by}, at {there}: {form}"
