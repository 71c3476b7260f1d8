"""What a node decided about a function's code, and why: what the control API shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from protocol.costs import Option, PlanForm
from protocol.ids import Digest, FunctionName, VersionId

InputSource = Literal["measured", "stated", "prior", "config", "known", "what-if"]
"""measured: by this node; stated: by the snapshot's maker, at this node's relative speed; prior:
nothing was measured, so what is usual; known: looked up, not estimated."""


class PlanInput(msgspec.Struct, frozen=True):
    """One value that a decision depends on."""

    name: str
    """As in what-if: see UNITS of edged/planwords.py."""
    value: float
    unit: str
    """"s", "bytes/s", "1/s", "s/GiB", or "" of a count."""
    source: InputSource
    confidence: float
    """0 to 1; 1 of what is no estimate."""
    age_s: float | None = None
    """Since the newest measurement; None: not measured."""
    samples: int = 0


class PlanFlip(msgspec.Struct, frozen=True):
    """By how much one input alone would have to change for another form to be the cheapest."""

    input: str
    value: float
    to_value: float
    """Nearest to the present one, in either direction."""
    form: PlanForm
    """The cheapest then."""


class PlanChange(msgspec.Struct, frozen=True):
    """A decision that took the place of another."""

    at_s: float
    """Unix time."""
    trigger: str
    """"deploy", "request", "drift", "pressure", "failed"."""
    before: PlanForm | None
    after: PlanForm | None
    input: str = ""
    """Whose change since `before` was chosen did most to make `after` the cheaper one; "": none
    did: one failed, or what is here or at peers changed."""
    input_before: float = 0.0
    """When `before` was chosen; 0: unknown."""
    input_after: float = 0.0


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """The table of forms as it would be decided on now."""

    node: str
    name: FunctionName
    version: VersionId
    form: PlanForm | None
    """That this node has chosen; with what-if, that it would choose. None: none can be had."""
    best: PlanForm | None
    """The cheapest. Another is kept only where this is not cheaper by `margin`."""
    held: PlanForm | None
    """Chosen before this look."""
    margin: float
    why: str
    preferred: PlanForm | None
    """By the node's configuration, whatever it costs."""
    serving: Digest | None
    """What invocations run in now: the module, or its snapshot; None: nothing here yet."""
    decided_at_s: float | None
    """Unix time of the newest decision that counted; None: there was none, nobody has asked."""
    trigger: str
    rows: tuple[Option, ...]
    """In the order of protocol.costs.FORMS. Times of what cannot be had (`lacks`) are 0 here."""
    failed: dict[str, str]
    """Forms that failed lately and are not tried again for a while, with the reason."""
    inputs: tuple[PlanInput, ...]
    flips: tuple[PlanFlip, ...]
    changes: tuple[PlanChange, ...]
    """The last ones, oldest first."""


class Planner(Protocol):
    """What the control API needs of the node."""

    def explain(self, name: str, what_if: Mapping[str, float]) -> PlanView:
        """Decides nothing. Raises FunctionNotFound; BadRequest: an input that there is not, or a
        value it cannot have."""
        ...
