"""protocol.replicas: everyone computes the same, regions first, and little moves. SPEC §11.1."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol.ids import Digest, NodeId, digest_of
from protocol.replicas import REPLICAS_MAX, Site, placement, ranking, with_newcomer

REGIONS = ["eu", "us", "ap", "sa", "af"]
BLOBS = st.binary(max_size=8).map(digest_of)
NODES = st.binary(min_size=16, max_size=16).map(lambda raw: NodeId(raw.hex()))
SITES = st.lists(
    st.builds(Site, NODES, st.sampled_from(REGIONS)),
    min_size=1,
    max_size=24,
    unique_by=lambda site: site.node_id,
)
REPLICAS = st.integers(min_value=1, max_value=REPLICAS_MAX)


def site(index: int, region: str = "eu") -> Site:
    return Site(NodeId(f"{index:032x}"), region)


@given(BLOBS, SITES, REPLICAS, st.randoms(use_true_random=False))
def test_the_order_is_total_and_knows_no_arrival(
    blob: Digest, sites: list[Site], replicas: int, rng: Random
) -> None:
    found = ranking(blob, sites)
    assert sorted(found) == sorted(sites)
    shuffled = list(sites)
    rng.shuffle(shuffled)
    assert ranking(blob, shuffled) == found
    assert placement(blob, sites, replicas) == found[:replicas]


@given(BLOBS, SITES, REPLICAS)
def test_as_many_regions_as_can_be(blob: Digest, sites: list[Site], replicas: int) -> None:
    placed = placement(blob, sites, replicas)
    assert len(placed) == min(replicas, len(sites))
    regions = len({one.region for one in sites})
    assert len({one.region for one in placed}) == min(regions, len(placed))


@given(BLOBS, SITES, REPLICAS, st.data())
def test_one_node_gone_moves_one_copy_at_most(
    blob: Digest, sites: list[Site], replicas: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sites))
    before = set(placement(blob, sites, replicas))
    after = set(placement(blob, [one for one in sites if one != gone], replicas))
    if gone not in before:
        assert after == before
    else:
        assert before - after == {gone}
        assert len(after - before) == (1 if len(sites) > replicas else 0)


@given(BLOBS, SITES, REPLICAS, st.data())
def test_a_newcomer_is_judged_by_those_placed_alone(
    blob: Digest, sites: list[Site], replicas: int, data: st.DataObject
) -> None:
    newcomer = data.draw(st.sampled_from(sites))
    others = [one for one in sites if one != newcomer]
    placed = placement(blob, others, replicas)
    assert with_newcomer(blob, placed, newcomer, replicas) == placement(blob, sites, replicas)
    assert with_newcomer(blob, placement(blob, sites, replicas), newcomer, replicas) == placement(
        blob, sites, replicas
    )


@given(BLOBS, SITES, REPLICAS, st.data())
def test_the_next_in_order_replaces_one_that_fails(
    blob: Digest, sites: list[Site], replicas: int, data: st.DataObject
) -> None:
    failing = data.draw(st.sets(st.sampled_from(sites), max_size=len(sites) - 1))
    left = [one for one in sites if one not in failing]
    placed = placement(blob, left, replicas)
    assert len(placed) == min(replicas, len(left))
    assert set(placement(blob, sites, replicas)) - failing <= set(placed)


def test_blobs_spread_evenly_and_a_newcomer_takes_its_share() -> None:
    sites = [site(index, REGIONS[index % 3]) for index in range(30)]
    blobs = [digest_of(index.to_bytes(4)) for index in range(2000)]
    held = Counter(one for blob in blobs for one in placement(blob, sites, 3))
    assert set(held) == set(sites)
    # 200 each on average, with a deviation of 14.
    assert 130 < min(held.values()) <= max(held.values()) < 270
    more = [*sites, site(30)]
    moved = sum(set(placement(b, sites, 3)) != set(placement(b, more, 3)) for b in blobs)
    # Its region's share of 2,000 among eleven.
    assert 130 < moved < 240
