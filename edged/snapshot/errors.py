"""Why a module cannot be captured: the codes, and what raises them.

`CannotSnapshot`, `InitTrapped`, `InitExited` and `InitTimeout` are in edged.errors, whose table
says what they mean to a client.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from edged.errors import CannotSnapshot

Reason = Literal[
    "malformed",  # the bytes are not a module; `thing` is the offset
    "invalid",  # the validator refuses it
    "component",  # a component, not a core module
    "gc",  # garbage-collected types
    "imported-memory",
    "imported-table",
    "imported-global",
    "imported-tag",
    "shared-memory",
    "passive-elements",  # of a type no table has: whether they were dropped cannot be told
    "limits",  # more of something than is looked at
    "no-initializer",  # nothing to call
    "initializer-type",  # takes or gives values
    "missing-export",  # of a call or a renaming
    "bad-arguments",  # of a call
    "import-type",  # a WASI function with a type it does not have
    "import-called",  # one that is no WASI function
    "table-mutated",
    "table-grown",
    "reference-global",  # a global refers to another thing than at the start
    "needs-more",  # memory or table elements than the policy grants
    "too-large",  # the snapshot
]
THING_CHARS_MAX: Final = 250
DETAIL_CHARS_MAX: Final = 1000
REASONS: Final = frozenset(get_args(Reason))


class Malformed(CannotSnapshot):
    """The bytes at `offset` are not what the binary format has there."""

    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(
            "malformed", f"malformed module: {detail} at byte {offset}", thing=f"byte {offset}"
        )
        self.offset = offset


def refuse(reason: Reason, thing: str, detail: str) -> CannotSnapshot:
    """The error to raise; its text names the thing. Both are cut: names come from the module."""
    thing, detail = thing[:THING_CHARS_MAX], detail[:DETAIL_CHARS_MAX]
    return CannotSnapshot(reason, f"{thing}: {detail}" if thing else detail, thing=thing)
