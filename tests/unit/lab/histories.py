"""A run in which all went well, and how to break it."""

from __future__ import annotations

from typing import Any

import msgspec

from edged.lab import history as h

NODES = tuple(
    h.Node(name=f"n{number}", region=region)
    for number, region in enumerate(("eu", "us", "ap"), start=1)
)
NAMES = tuple(node.name for node in NODES)
RIGHT = {"1": "b1" * 32, "2": "b2" * 32}
"""Label -> the right body's digest."""
VERSIONS = {"1": "a1" * 32, "2": "a2" * 32}
RUN = h.Run(
    t_s=0.0,
    scenario="good",
    seed=1,
    started_at_ms=1,
    nodes=NODES,
    functions=(
        h.Function(
            name="f",
            abi="raw",
            replicas=3,
            versions=tuple(
                h.Version(label=label, module=f"c{label}" * 32, body_digest=body)
                for label, body in RIGHT.items()
            ),
        ),
    ),
    bounds=h.Bounds(membership_s=5.0, catalog_s=5.0, replicas_s=10.0),
    replay="edged chaos run good.toml --seed 1",
)


def deploy(label: str, begun_s: float, **changes: Any) -> h.Deploy:
    return msgspec.structs.replace(
        h.Deploy(
            t_s=begun_s + 0.5,
            function="f",
            label=label,
            version=VERSIONS[label],
            module=f"c{label}" * 32,
            node="n1",
            begun_s=begun_s,
            acknowledged_s=begun_s + 0.5,
            wanted=3,
            holders=NAMES,
        ),
        **changes,
    )


def fault(state: h.FaultState, t_s: float, **changes: Any) -> h.Fault:
    made = h.Fault(t_s=t_s, id="1", action="kill", targets=("n3",), state=state, detail="so")
    return msgspec.structs.replace(made, **changes)


def request(node: str, label: str, sent_s: float, **changes: Any) -> h.Request:
    made = h.Request(
        t_s=sent_s + 0.01,
        region="eu",
        node=node,
        function="f",
        intended_s=sent_s,
        sent_s=sent_s,
        done_s=sent_s + 0.01,
        status=200,
        answered_by=node,
        version=VERSIONS[label][:12],
        body_digest=RIGHT[label],
        body_bytes=7,
    )
    return msgspec.structs.replace(made, **changes)


def artifact(label: str, **changes: Any) -> h.Artifact:
    made = h.Artifact(module=f"c{label}" * 32, key="k" * 64, digest=f"d{label}" * 32, own=True)
    return msgspec.structs.replace(made, **changes)


def sample(node: str, t_s: float, **changes: Any) -> h.Sample:
    made = h.Sample(
        t_s=t_s,
        node=node,
        state="ready",
        pid=100 + int(node[1:]),
        rss_bytes=50_000_000,
        fds=40,
        threads=9,
        alive=NAMES,
        catalog="e" * 16,
        artifacts=(artifact("1"), artifact("2", own=False, builders=("n2",))),
    )
    return msgspec.structs.replace(made, **changes)


def catalog(node: str, **changes: Any) -> h.Catalog:
    made = h.Catalog(
        t_s=41.0,
        node=node,
        after="end",
        digest="e" * 16,
        functions={"f": VERSIONS["2"]},
        versions={"f": (VERSIONS["2"], VERSIONS["1"])},
    )
    return msgspec.structs.replace(made, **changes)


def converged(what: h.Convergence, **changes: Any) -> h.Converged:
    made = h.Converged(t_s=35.0, what=what, after="1", seconds=2.0, waited_s=2.0, nodes=NAMES)
    return msgspec.structs.replace(made, **changes)


def decided(t_s: float, before: str, after: str, **changes: Any) -> h.Decided:
    made = h.Decided(t_s=t_s, node="n2", function="f", before=before, after=after, trigger="drift")
    return msgspec.structs.replace(made, **changes)


def explained(node: str) -> h.Explained:
    return h.Explained(
        t_s=41.0,
        node=node,
        function="f",
        form="artifact",
        best="artifact",
        why="artifact costs less",
        forms=(
            h.FormCost(form="forward", lacks="no peer answers it now"),
            h.FormCost(form="artifact", ready_s=0.003, per_call_s=0.001, total_s=0.1),
        ),
        inputs=(
            h.InputValue(
                name="bandwidth", value=125e3, source="measured", confidence=0.5, age_s=3.0,
                flips_at=1e6, flips_to="module",
            ),
        ),
    )  # fmt: skip


EVENTS: tuple[h.HistoryRow, ...] = (
    RUN,
    deploy("1", 0.0),
    h.Phase(t_s=0.0, name="warm-up", errors_max=0.0),
    h.Phase(t_s=10.0, name="faults", errors_max=0.1),
    deploy("2", 12.0),
    fault("begun", 20.0),
    fault("proven", 20.1),
    fault("ended", 30.0),
    converged("membership"),
    converged("catalog"),
    converged("replicas"),
    h.Phase(t_s=40.0, name="end"),
    *map(catalog, NAMES),
    *map(explained, NAMES),
    h.Left(t_s=42.0, fds_before=9, fds_after=9),
)


def requests() -> tuple[h.Request, ...]:
    """Ten per second, of which those to the node that is down fail."""
    rows: list[h.Request] = []
    for number in range(400):
        node, sent_s = NAMES[number % 3], number / 10
        row = request(node, "1" if sent_s < 12.5 else "2", sent_s)
        if node == "n3" and 20.0 <= sent_s < 21.0:
            row = msgspec.structs.replace(
                row, status=None, version=None, body_digest=None, error="refused"
            )
        rows.append(row)
    return tuple(rows)


def samples() -> tuple[h.Sample, ...]:
    """One per second and node; n3 dies and comes back as another process."""
    rows: list[h.Sample] = []
    for t_s in range(40):
        for name in NAMES:
            row = sample(name, float(t_s))
            if name == "n3" and 20 < t_s <= 30:
                row = h.Sample(t_s=float(t_s), node=name, state="dead")
            elif name == "n3" and t_s > 30:
                row = msgspec.structs.replace(row, pid=203)
            rows.append(row)
    return tuple(rows)


def good() -> h.History:
    planned = h.Planned(t_s=20.0, id="1", action="kill", targets=("n3",), duration_s=10.0)
    return h.History(
        run=RUN, timeline=(planned,), rows=EVENTS, requests=requests(), samples=samples()
    )


def with_run(history: h.History, **changes: Any) -> h.History:
    run = msgspec.structs.replace(history.run, **changes)
    return msgspec.structs.replace(history, run=run, rows=(run, *history.rows[1:]))


def with_rows(history: h.History, *more: h.HistoryRow) -> h.History:
    return msgspec.structs.replace(history, rows=(*history.rows, *more))


def without(history: h.History, *kinds: type[h.Row]) -> h.History:
    rows = tuple(row for row in history.rows if not isinstance(row, kinds))
    return msgspec.structs.replace(history, rows=rows)
