"""A small run folder, made by code: eight regions, faults of all kinds, and names that attack."""

from __future__ import annotations

from pathlib import Path
from random import Random

from edged.lab import history as h
from edged.lab.runfolder import recording, write_timeline, write_verdict

HOSTILE = "<script>document.title='owned'</script>"
WORSE = '"><img src=http://203.0.113.9/x onerror=alert(1)>$\\frac{1}{0}$\x1b[31m'
REGIONS = (
    "us-east-1", "us-west-2", "eu-west-1", "eu-central-1",
    "ap-northeast-1", "ap-southeast-1", "sa-east-1", "ap-south-1",
)  # fmt: skip
NODES = tuple(h.Node(name=f"n{number}", region=region) for number, region in enumerate(REGIONS, 1))
FAULTS = (
    ("f1", "kill", ("n3",), 12.0, 20.0, "proven", "pid 4711 is gone, 3 peers call it down"),
    ("f2", "partition", ("region:ap-south-1", WORSE), 24.0, 36.0, "proven", HOSTILE),
    ("f3", "link", ("region:eu-west-1", "region:us-east-1"), 30.0, 44.0, "unproven", "0 delayed"),
    ("f4", "corrupt", ("n5",), 46.0, 46.0, "proven", "one byte of a blob"),
    ("f5", HOSTILE, ("hello",), 48.0, 55.0, "proven", WORSE),
)
END_S = 60.0


def write_run(directory: Path, *, seed: int = 7, faults: bool = True) -> Path:
    rng = Random(seed)
    fault_rows = FAULTS if faults else ()
    with recording(directory) as folder:
        write_timeline(
            directory,
            [h.Planned(t_s=f[3], id=f[0], action=f[1], targets=f[2]) for f in fault_rows],
        )
        for row in sorted(events(fault_rows), key=lambda row: row.t_s):
            folder.event(row)
        for request in requests(rng):
            folder.request(request)
        for sample in samples(rng):
            folder.sample(sample)
    write_verdict(directory, verdict())
    return directory


def events(faults: tuple[tuple[str, str, tuple[str, ...], float, float, str, str], ...]):
    yield h.Run(
        t_s=0.0, scenario=f"geo-loss {HOSTILE}", seed=7, started_at_ms=1_795_000_000_000,
        commit="0123456789abcdef", nodes=NODES, functions=(), topology="aws8",
        replay=f"edged chaos run configs/chaos/geo-loss.toml --seed 7 {HOSTILE}",
    )  # fmt: skip
    yield h.Phase(t_s=0.0, name="warm-up", errors_max=0.0)
    yield h.Phase(t_s=10.0, name="faults", errors_max=0.05)
    yield h.Phase(t_s=50.0, name=f"after {HOSTILE}", errors_max=0.0)
    yield h.Phase(t_s=END_S, name="end")
    yield h.Deploy(
        t_s=1.5, function=HOSTILE, label="1", version="abc", module="00", node="n1", begun_s=0.4,
        acknowledged_s=1.5, wanted=3, holders=("n1", "n4", "n6"),
    )  # fmt: skip
    yield h.Deploy(
        t_s=31.0, function="hello", label="2", module="01", node="n8", begun_s=25.0,
        error=f"NoHolder: {WORSE}",
    )  # fmt: skip
    yield h.Decided(
        t_s=22.0, node="n2", function=HOSTILE, before="module", after=HOSTILE, trigger="drift",
        input="bandwidth", input_before=125e3, input_after=2.5e6,
    )  # fmt: skip
    yield h.Explained(
        t_s=END_S, node="n2", function=HOSTILE, form="snapshot", best="module", why=WORSE,
        forms=(
            h.FormCost(form="snapshot", ready_s=1.5, per_call_s=0.01, wire_bytes=1 << 20),
            h.FormCost(form="module", lacks=HOSTILE),
        ),
        inputs=(
            h.InputValue(
                name="bandwidth", value=2.5e6, source="measured", confidence=0.5, age_s=3.0,
                flips_at=1.25e5, flips_to=HOSTILE,
            ),
        ),
    )  # fmt: skip
    for what, seconds in (("membership", 0.8), ("catalog", 1.1), ("replicas", 2.5)):
        yield h.Converged(t_s=4.0, what=what, after="", seconds=seconds, waited_s=4.0)
    for number, (name, action, targets, begin_s, end_s, proof, detail) in enumerate(faults):
        parts = {"id": name, "action": action, "targets": targets}
        yield h.Fault(t_s=begin_s, state="begun", **parts)
        yield h.Fault(t_s=begin_s, state=proof, detail=detail, **parts)
        yield h.Fault(t_s=end_s, state="ended", **parts)
        for what, factor in (("membership", 1.5), ("catalog", 2.2), ("replicas", 5.0)):
            never = number == 2 and what == "replicas"
            seconds = None if never else 0.4 + factor * (number % 3)
            yield h.Converged(t_s=END_S, what=what, after=name, seconds=seconds, waited_s=12.0)


def requests(rng: Random):
    intended_s = 0.0
    number = 0
    while (intended_s := intended_s + rng.expovariate(25.0)) < END_S - 1:
        number += 1
        source = rng.randrange(len(REGIONS))
        target = source if rng.random() < 0.7 else rng.randrange(len(REGIONS))
        down = target == 2 and 12 <= intended_s < 20
        cut = (target == 7) != (source == 7) and 24 <= intended_s < 36
        far_s = 0.0 if source == target else 0.03 + 0.02 * abs(source - target)
        cold = number < 30 or rng.random() < 0.01
        latency_s = far_s + (0.4 if cold else 0.004) * rng.lognormvariate(0, 0.5)
        latency_s = 5.0 if cut else 0.002 if down else latency_s
        error = "timeout" if cut else "refused" if down else None
        yield h.Request(
            t_s=intended_s + latency_s, region=REGIONS[source], node=f"n{target + 1}",
            function=HOSTILE, intended_s=intended_s, sent_s=intended_s + 0.0001,
            done_s=intended_s + latency_s, error=error, status=None if error else 200,
            start=None if error else rng.choice(STARTS) if cold else "warm",
            answered_by=None if error else f"n{target + 1}",
        )  # fmt: skip


STARTS = ("compiled", "artifact", "forwarded", "loaded", HOSTILE)


def samples(rng: Random):
    cpu = dict.fromkeys((node.name for node in NODES), 0.5)
    for second in range(int(END_S)):
        for at, node in enumerate(NODES):
            down = node.name == "n3" and 12 <= second < 20
            cpu[node.name] = 0.2 if down else cpu[node.name] + rng.uniform(0.02, 0.2)
            yield h.Sample(
                t_s=float(second), node=node.name, state="dead" if down else "ready",
                pid=None if down else 100 + at + (100 if node.name == "n3" and second > 12 else 0),
                cpu_s=None if down else cpu[node.name],
                rss_bytes=None if down else (60 + at + second // 4) << 20,
                links={
                    peer.name: h.LinkCount(
                        datagrams=second * 4, stream_bytes=second * 3000 * (at + 1) * (to + 2),
                        dropped=second // 5,
                    )
                    for to, peer in enumerate(NODES)
                    if to != at and not down
                },
            )  # fmt: skip


def verdict() -> h.Verdict:
    finding = h.Finding(
        t_s=46.0, invariant="bytes", subject=HOSTILE, detail=f"{WORSE}: 2 answers of another body"
    )
    judged = (
        h.Judged(invariant="bytes", findings=1, teaches="every body is its version's"),
        h.Judged(invariant="durability", findings=0, teaches="acknowledged deploys survive"),
    )
    return h.Verdict(
        scenario="geo-loss", seed=7, verdict="invalid", why=f"1 finding {HOSTILE}",
        findings=(finding,), unproven=(f"f3: {WORSE}",), judged=judged, replay="edged chaos run",
    )  # fmt: skip
