"""What goes when the store is above its bound."""

from __future__ import annotations

import io

import pytest
import trio.testing

from edged.errors import StoreError
from edged.evicting import LOOK_S, RECENT_S, Derived, Evictor
from edged.interfaces import ArtifactRow, BlobInfo, BlobKind
from edged.telemetry import Metrics, make_log
from protocol.ids import ArtifactKey, Digest, digest_of

MODULE = digest_of(b"module")


class World:
    """A store, and what the rest of a node says of it."""

    def __init__(self, *, bytes_max: int) -> None:
        self.held: dict[Digest, BlobInfo] = {}
        self.rows: list[ArtifactRow] = []
        self.known: list[Digest] = []
        self.used: dict[Digest, int] = {}
        self.costs: dict[Digest, float] = {}
        self.kept: set[Digest] = set()
        self.gone: list[Digest] = []
        self.events: list[str] = []
        self.failing = False
        self.stream = io.StringIO()
        self.evictor = Evictor(
            self,
            node="n",
            bytes_max=bytes_max,
            snapshots=lambda: self.known,
            uses=lambda code: self.used.get(code, 0),
            cost_s=lambda derived: self.costs.get(derived.digest, 1.0),
            evict=self.evict,
            note=lambda kind, name, detail: self.events.append(f"{kind} {name} {detail}"),
            metrics=Metrics(),
            log=make_log("n", stream=self.stream),
            wall_s=lambda: 10_000.0,
        )

    def add(self, name: str, kind: BlobKind, size: int, *, age_s: float = 1e3) -> Digest:
        digest = digest_of(name.encode())
        self.held[digest] = BlobInfo(digest, kind, size, size // 2, None, 10_000.0 - age_s)
        return digest

    def artifact(self, name: str, size: int, *, uses: int = 0, age_s: float = 1e3) -> Digest:
        digest, code = (
            self.add(name, "artifact", size, age_s=age_s),
            digest_of(f"of {name}".encode()),
        )
        self.rows.append(ArtifactRow(code, ArtifactKey("k"), digest, size, 0.0, b""))
        self.used[code] = uses
        return digest

    def snapshot(self, name: str, size: int, *, uses: int = 0) -> Digest:
        digest = self.add(name, "module", size)
        self.known.append(digest)
        self.used[digest] = uses
        return digest

    # ------------------------------------------------------------ as the evictor sees it
    def blobs(self) -> list[BlobInfo]:
        return list(self.held.values())

    def artifacts(self) -> list[ArtifactRow]:
        return list(self.rows)

    async def evict(self, digest: Digest) -> bool:
        if self.failing:
            raise StoreError("the disk is away")
        if digest in self.kept:
            return False
        del self.held[digest]
        self.rows = [row for row in self.rows if row.digest != digest]
        self.gone.append(digest)
        return True


async def test_within_the_bound_nothing_goes() -> None:
    world = World(bytes_max=300)
    world.artifact("a", 100)
    world.snapshot("s", 100)
    assert await world.evictor.look() == 0
    assert world.gone == []


async def test_what_is_used_least_per_byte_and_second_goes_first() -> None:
    world = World(bytes_max=450)
    hot = world.artifact("hot", 100, uses=10)
    cold = world.artifact("cold", 100)
    large = world.snapshot("large", 200, uses=1)
    assert await world.evictor.look() == 150
    assert world.gone == [cold]
    world.evictor._bytes_max = 200
    assert await world.evictor.look() == 300
    assert world.gone == [cold, large]
    assert list(world.held) == [hot]
    assert world.events == [
        "blobs-evicted n 1 blobs, 150 bytes, for room",
        "blobs-evicted n 1 blobs, 300 bytes, for room",
    ]


async def test_what_is_dear_to_have_again_stays() -> None:
    world = World(bytes_max=150)
    dear, cheap = world.artifact("dear", 100, uses=1), world.artifact("cheap", 100, uses=2)
    world.costs = {dear: 60.0, cheap: 0.1}
    await world.evictor.look()
    assert world.gone == [cheap]


async def test_modules_and_what_must_stay_are_left_and_the_next_goes() -> None:
    world = World(bytes_max=300)
    module = world.add("module", "module", 200)
    pinned, recent = world.artifact("pinned", 100), world.artifact("recent", 100, age_s=1.0)
    other = world.artifact("other", 100, uses=9)
    world.kept = {pinned}
    assert RECENT_S > 1.0
    assert await world.evictor.look() == 150
    assert world.gone == [other]
    assert {module, pinned, recent} == set(world.held)
    assert "above its bound" in world.stream.getvalue()


async def test_uses_are_counted_once_also_of_code_that_was_mapped_anew() -> None:
    world = World(bytes_max=10**6)
    first, second = world.artifact("first", 100, uses=3), world.artifact("second", 100, uses=4)
    for _ in range(5):
        await world.evictor.look()  # the same uses again
    world.used[digest_of(b"of first")] = 2  # unmapped since, and used twice
    world.evictor._bytes_max = 200
    await world.evictor.look()
    assert world.gone == [second]
    assert list(world.held) == [first]


async def test_it_looks_now_and_then_and_outlives_a_disk_that_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(bytes_max=100)
    world.artifact("a", 100)
    world.failing = True
    with trio.move_on_after(2.5 * LOOK_S):
        await world.evictor.run()
    assert world.stream.getvalue().count("no room made") == 2
    world.failing = False
    with trio.move_on_after(1.5 * LOOK_S):
        await world.evictor.run()
    assert len(world.gone) == 1
    unbounded = World(bytes_max=0)
    with trio.fail_after(1):
        await unbounded.evictor.run()


@pytest.mark.parametrize("kind", ["artifact", "snapshot"])
async def test_a_blob_that_went_otherwise_is_forgotten(kind: str) -> None:
    world = World(bytes_max=100)
    made = world.artifact if kind == "artifact" else world.snapshot
    digest = made("x", 60)
    await world.evictor.look()
    del world.held[digest]
    await world.evictor.look()
    assert world.evictor._known == {}
    assert world.gone == []
    assert Derived(digest, digest, kind) not in world.evictor._known.values()
