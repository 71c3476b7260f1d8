"""A plan as a node would tell it: made by the real cost model from made-up measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edged.interfaces import PlanChange, PlanInput, PlanView
from edged.planning import _finite
from edged.planwords import UNITS
from edged.whatif import flips, values_of, with_values
from protocol.costs import Blob, Inputs, Sources
from protocol.ids import Digest, FunctionName, VersionId
from protocol.planner import decide

MIB = 1024 * 1024
FAST = Sources(0.02, 125e6)


def sample_inputs() -> Inputs:
    """Of a function whose init takes 2 s and whose snapshot is five times its module."""
    return Inputs(
        module=Blob(wire_bytes=1 * MIB, size_bytes=3 * MIB, sources=FAST),
        artifact=Blob(wire_bytes=3 * MIB, size_bytes=9 * MIB),
        snapshot=Blob(wire_bytes=12 * MIB, size_bytes=36 * MIB, sources=FAST),
        delta=Blob(wire_bytes=11 * MIB, sources=FAST),
        snapshot_artifact=Blob(wire_bytes=14 * MIB, size_bytes=42 * MIB),
        code_bytes=2 * MIB,
        link_bytes_s=math.inf,
        decompress_bytes_s=400e6,
        compile_bytes_s=1e6,
        load_s=0.003,
        init_s=2.0,
        make_snapshot_s=1.0,
        instantiate_s=0.0002,
        instantiate_snapshot_s=0.001,
        run_s=0.005,
        rate_per_s=0.5,
        horizon_s=600.0,
    )


def sample_plan(name: str, what_if: Mapping[str, float]) -> PlanView:
    inputs = with_values(sample_inputs(), what_if)
    decision = decide(inputs)
    return PlanView(
        node="n1",
        name=FunctionName(name),
        version=VersionId("ab" * 32),
        form=decision.form,
        best=decision.best,
        held="module",
        margin=decision.margin,
        why=decision.why,
        preferred=None,
        serving=Digest("cd" * 32),
        decided_at_s=1.0,
        trigger="request",
        rows=tuple(map(_finite, decision.options)),
        failed={"snapshot": "no memory\x1b[31m"},
        inputs=tuple(
            PlanInput(name, value, UNITS[name], "what-if", 1.0)
            if name in what_if
            else PlanInput(name, value, UNITS[name], "measured", 0.8, 12.0, 9)
            for name, value in values_of(inputs).items()
        ),
        flips=flips(inputs),
        changes=(PlanChange(1.0, "drift", "module", "snapshot", "bandwidth", 125e3, 2.5e6),),
    )
