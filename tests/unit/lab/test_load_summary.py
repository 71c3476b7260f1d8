from blake3 import blake3

from edged.lab.history import Request
from edged.lab.load.spec import FunctionLoad, LoadSpec, parse_stages
from edged.lab.load.summary import NAMES_MAX, OTHER, Collector, WrongBody, stage_names

RIGHT, OTHERS = blake3(b"right").hexdigest(), blake3(b"wrong").hexdigest()


def spec(**more: object) -> LoadSpec:
    function = FunctionLoad(name="f", **more)  # type: ignore[arg-type]
    return LoadSpec(functions=(function,), stages=parse_stages("10:1s,20-5:2s"))


def row(intended_s: float, latency_s: float = 0.01, **more: object) -> Request:
    fields: dict[str, object] = {
        "region": "eu", "node": "n1", "function": "f", "intended_s": intended_s,
        "sent_s": intended_s, "start": "warm", "body_digest": RIGHT,
    }  # fmt: skip
    done_s = intended_s + latency_s
    return Request(t_s=done_s, done_s=done_s, **(fields | more))  # type: ignore[arg-type]


def collected(spec: LoadSpec, *rows: Request, begun_s: float = 0.0) -> Collector:
    collector = Collector(spec, begun_s=begun_s)
    for one in rows:
        collector.add(one)
    return collector


def test_failed_requests_are_counted_by_reason_and_have_no_latency() -> None:
    found = collected(
        spec(), row(0.0, 0.1), row(0.1, 9.0, error="timeout"), row(0.2, error="http-503")
    ).summary()
    assert found.all.errors == {"http-503": 1, "timeout": 1}
    assert (found.all.requests, found.all.failed, found.all.latency_ms.count) == (3, 2, 1)
    assert found.all.latency_ms.max == 100.0


def test_a_request_belongs_to_the_stage_it_was_intended_in() -> None:
    found = collected(spec(), row(100.9, 5.0), row(101.0), row(102.9), begun_s=100.0).summary()
    assert {name: group.requests for name, group in found.stages.items()} == {
        "10/s": 1,
        "20–5/s": 2,
    }
    assert found.duration_s == 5.9


def test_stages_of_the_same_rate_have_names_of_their_own() -> None:
    same = LoadSpec(functions=(FunctionLoad(name="f"),), stages=parse_stages("5:1s,0:1s,5:1s"))
    assert stage_names(same) == ["5/s", "0/s", "5/s (3)"]


def test_bodies_are_held_against_their_version_s_digest() -> None:
    expecting = spec(expect={"v1": RIGHT, "*": OTHERS})
    found = collected(
        expecting,
        row(0.0, version="v1"),
        row(0.1, version="v1", body_digest=OTHERS),
        row(0.2, version="v1", body_digest=OTHERS),
        row(0.3, version="v2", body_digest=OTHERS),
        row(0.4, version=None),
        row(0.5, version="v1", body_digest=None, error="timeout"),
    ).summary()
    assert found.wrong_bodies == (WrongBody("f", "v1", 2), WrongBody("f", "–", 1))


def test_what_servers_call_themselves_takes_bounded_room() -> None:
    rows = [
        row(0.0, start=f"s{n}", error=None if n % 2 else f"e{n}", version=f"v{n}")
        for n in range(500)
    ]
    found = collected(spec(expect={"*": OTHERS}), *rows).summary()
    assert len(found.starts) == NAMES_MAX + 1
    assert sum(group.requests for group in found.starts.values()) == 500
    assert found.starts[OTHER].requests == 500 - NAMES_MAX
    assert len(found.all.errors) <= NAMES_MAX + 1
    assert len(found.wrong_bodies) <= NAMES_MAX + 1


def test_lateness_is_told_only_where_it_matters() -> None:
    punctual = [row(0.1, sent_s=0.105) for _ in range(99)]
    assert collected(spec(), *punctual, row(0.1, sent_s=0.2)).summary().warnings == ()
    (warning,) = collected(spec(), *punctual, *[row(0.1, sent_s=0.2)] * 2).summary().warnings
    assert warning.startswith("this client did not keep up: 2.0% of requests")


def test_intervals_are_tagged_with_regions_in_order_of_time() -> None:
    found = collected(
        spec(), row(2.5), row(0.1), row(0.2, region="us"), row(0.3), row(0.4, error="reset")
    ).intervals()
    assert [(i.tag, i.start_s, i.histogram.count) for i in found] == [
        ("eu", 0.0, 2), ("us", 0.0, 1), ("eu", 2.0, 1),
    ]  # fmt: skip
