"""What peers tell of artifacts is believed only as far as it holds. Everything else fails closed:
no lot, the source reported and asked no more. SPEC §9.1, §9.2, §9.4."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import trio
from protocol_support import anchor, credential_of, key_of, node_id
from trio.testing import MockClock

from edged.acceptance import Acceptance
from edged.acquisition import HEDGE_S, Acquisition, Lot
from edged.clock import Clock
from edged.errors import ArtifactRefused, PeerError
from edged.interfaces import BlobInfo, Peer
from edged.rates import Rates
from edged.telemetry import Metrics, make_log
from protocol.artifact import (
    Attestation,
    Attested,
    attest,
    encode_attested,
)
from protocol.identity import Role
from protocol.ids import ArtifactKey, Digest, NodeId, digest_of

MODULE, OTHER = digest_of(b"module"), digest_of(b"other module")
ARTIFACT, ANOTHER = digest_of(b"artifact"), digest_of(b"another artifact")
MANIFEST, MANIFEST_2 = digest_of(b"manifest"), digest_of(b"manifest 2")
KEY, OTHER_KEY = ArtifactKey("cd" * 32), ArtifactKey("ce" * 32)


class MemoryMeta:
    """What Acceptance needs of a store."""

    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}

    def get_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    async def set_meta(self, key: str, value: bytes) -> None:
        self.meta[key] = value


def word(
    builder: str = "b1",
    *,
    module: Digest = MODULE,
    key: ArtifactKey = KEY,
    artifact: Digest = ARTIFACT,
    manifest: Digest = MANIFEST,
    roles: tuple[Role, ...] = ("build",),
    not_after_s: int = 4_000_000_000,
    signed_by: str = "",
) -> Attestation:
    return attest(
        key_of(signed_by or builder),
        credential_of(builder, roles=roles, not_after_s=not_after_s),
        module=module,
        key=key,
        artifact=artifact,
        manifest=manifest,
    )


def told(*words: Attestation, artifact: Digest = ARTIFACT, manifest: Digest = MANIFEST) -> bytes:
    return encode_attested(Attested(artifact, 300, 100, manifest, words))


def peer(name: str) -> Peer:
    address = ("127.0.0.1", 1)
    return Peer(node_id(name), name, "local", address, address, "", 0.001)


class World:
    def __init__(self, accept: str = "signed") -> None:
        self.store = MemoryMeta()
        self.answers: dict[str, bytes | PeerError] = {}
        self.asked: list[str] = []
        self.fetched: list[tuple[Digest, Digest, list[str]]] = []
        self.fetch_s = 0.0
        self.notes: list[tuple[str, str, str]] = []
        self.metrics = Metrics()
        self.acceptance = self.accepting(accept)
        self.rates = Rates()
        self.acquisition = Acquisition(
            acceptance=self.acceptance,
            fetcher=self,
            key=KEY,
            ask=self.ask,
            peers=lambda _module: [peer(name) for name in self.answers],
            bases=lambda _module: [],
            note=lambda *row: self.notes.append(row),
            rates=self.rates,
            metrics=self.metrics,
            log=make_log("t", stream=io.StringIO()),
        )

    def accepting(self, accept: str) -> Acceptance:
        return Acceptance(
            accept,
            anchor=anchor(),
            credential=credential_of("me"),
            store=cast("Any", self.store),
            clock=Clock(),
        )

    async def ask(self, asked: Peer, module: Digest, key: ArtifactKey) -> bytes:
        assert (module, key) == (MODULE, KEY)
        self.asked.append(asked.name)
        await trio.sleep(0.001)
        answer = self.answers[asked.name]
        if isinstance(answer, PeerError):
            raise answer
        return answer

    async def fetch(
        self,
        digest: Digest,
        manifest_digest: Digest,
        *,
        progress: Callable[[int, int], None],
        urgent: bool = True,
        bases: Sequence[Digest] | None = None,
        holder: NodeId | None = None,
        holders: Callable[[Digest], Sequence[Peer]] | None = None,
    ) -> BlobInfo:
        assert holders is not None
        names = [found.name for found in holders(digest)]
        self.fetched.append((digest, manifest_digest, names))
        progress(50, 100)
        await trio.sleep(self.fetch_s)
        progress(100, 100)
        return BlobInfo(digest, "artifact", 300, 100, manifest_digest, 0.0)

    async def survey(self) -> Lot | None:
        return await self.acquisition.survey(MODULE)

    def refused(self, reason: str) -> float:
        return self.metrics.artifacts_refused.labels(reason).value


EXPIRED = 1_000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (told(), "unsigned"),
        (b"\x93\x01\x02\x03", "attestation"),
        (told(word(signed_by="b2")), "signature"),
        (told(word(roles=("serve", "control"))), "credential-role"),
        (told(word(module=OTHER)), "attestation"),
        (told(word(key=OTHER_KEY)), "attestation"),
        (told(word(artifact=ANOTHER)), "attestation"),
        (told(word(), artifact=ANOTHER), "attestation"),
        (told(word(), manifest=MANIFEST_2), "manifest"),
        (told(word(), word("b2", signed_by="b3")), "signature"),
        (told(msgspec.structs.replace(word(), signature=b"short")), "signature"),
        (told(word(manifest=Digest("")), word("b2"), manifest=MANIFEST_2), "manifest"),
    ],
    ids=[
        "unsigned",
        "not an answer",
        "signed with another key",
        "not by a builder",
        "replayed for another module",
        "for another key: other ISA flags, version or engine",
        "of another artifact",
        "offered under another digest",
        "another wire form",
        "one good word does not carry a bad one",
        "no signature at all",
        "nobody signed what is served",
    ],
)
async def test_what_does_not_hold_is_refused_reported_and_not_asked_again(
    answer: bytes, reason: str, autojump_clock: MockClock
) -> None:
    world = World()
    world.answers = {"liar": answer}
    assert await world.survey() is None
    assert world.refused(reason) == 1
    assert world.notes == [("artifact-refused", "liar", f"module {MODULE[:12]}: {reason}")]
    assert world.acquisition.sources(MODULE) == []
    assert world.acquisition.sources(OTHER) != [], "banned for that blob"
    world.answers["good"] = told(word())
    lot = await world.survey()
    assert lot is not None
    assert await world.acquisition.fetch(MODULE, lot, urgent=True, limit_s=9)
    assert world.fetched == [(ARTIFACT, MANIFEST, ["good"])]
    assert world.asked == ["liar", "good"]


async def test_a_foreign_cluster_is_believed_nothing(autojump_clock: MockClock) -> None:
    world = World()
    stranger = credential_of("b1", roles=("build",))
    forged = msgspec.structs.replace(stranger, signature=bytes(64))
    world.answers = {"liar": told(msgspec.structs.replace(word(), builder=forged))}
    assert await world.survey() is None
    assert world.refused("signature") == 1


async def test_who_hands_on_a_word_that_has_outlived_its_credential_is_not_to_blame(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.answers = {"late": told(word(not_after_s=EXPIRED))}
    assert await world.survey() is None
    assert world.notes == []
    world.answers["late"] = told(word(not_after_s=EXPIRED), word("b2"))
    lot = await world.survey()
    assert lot is not None
    assert list(lot.words) == [node_id("b2")]


async def test_a_distrusted_builder_counts_nothing_also_after_a_restart(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.acceptance.distrust([node_id("b1")])
    await world.acceptance.save()
    world.answers = {"p": told(word("b1"))}
    assert await world.survey() is None
    again = world.accepting("signed")
    assert again.distrusted == (node_id("b1"),)
    words = again.sort([word("b1")], module=MODULE, key=KEY, artifact=ARTIFACT)
    assert not again.enough(words)
    with pytest.raises(ArtifactRefused) as refusal:
        again.check(words)
    assert refusal.value.reason == "distrusted"


@pytest.mark.parametrize(
    ("accept", "builders", "enough"),
    [
        ("none", ["b1", "b2", "b3"], False),
        ("signed", ["b1"], True),
        ("signed", [], False),
        ("quorum=2", ["b1"], False),
        ("quorum=2", ["b1", "b1"], False),
        ("quorum=2", ["b1", "b2"], True),
        ("quorum=3", ["b1", "b2"], False),
        ("none", ["me"], True),
        ("quorum=16", ["me"], True),
    ],
)
def test_policy(accept: str, builders: list[str], *, enough: bool) -> None:
    acceptance = World(accept).acceptance
    words = acceptance.sort(
        [word(name) for name in builders], module=MODULE, key=KEY, artifact=ARTIFACT
    )
    assert acceptance.enough(words) == enough
    if enough:
        acceptance.check(words)
    else:
        with pytest.raises(ArtifactRefused) as refusal:
            acceptance.check(words)
        assert refusal.value.reason == "policy"


async def test_a_quorum_is_gathered_by_artifact_across_manifests(
    autojump_clock: MockClock,
) -> None:
    world = World("quorum=2")
    world.answers = {
        "a": told(word("b1")),
        "b": told(word("b3", artifact=ANOTHER), artifact=ANOTHER),
    }
    assert await world.survey() is None, "two builders, but not of the same"
    assert world.notes == [], "too few is nobody's fault"
    world.answers["c"] = told(word("b2", manifest=MANIFEST_2), manifest=MANIFEST_2)
    lot = await world.survey()
    assert lot is not None
    assert (lot.artifact, sorted(lot.words)) == (ARTIFACT, sorted(map(node_id, ("b1", "b2"))))
    assert lot.manifest == MANIFEST
    await world.acquisition.fetch(MODULE, lot, urgent=True, limit_s=9)
    ((_, _, holders),) = world.fetched
    assert "c" not in holders, "it serves another wire form"


async def test_the_nearest_is_asked_first_and_the_next_if_it_is_silent(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.answers = {name: told(word()) for name in ("near", "far")}
    assert await world.survey() is not None
    assert world.asked == ["near"]
    world.answers["near"] = PeerError("gone")
    began_s = trio.current_time()
    assert await world.survey() is not None
    assert HEDGE_S <= trio.current_time() - began_s < 2 * HEDGE_S


async def test_a_fetch_that_takes_too_long_is_given_up_and_remembered(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.answers = {"slow": told(word())}
    lot = await world.survey()
    assert lot is not None
    world.fetch_s = 10.0
    assert not await world.acquisition.fetch(MODULE, lot, urgent=True, limit_s=5.0)
    assert world.rates.fetch_s(50) == pytest.approx(5.0)


async def test_whose_code_an_artifact_is_is_known_while_it_comes(
    autojump_clock: MockClock,
) -> None:
    world = World()
    world.answers = {"p": told(word())}
    lot = await world.survey()
    assert lot is not None
    for limit_s in (5.0, 50.0):
        world.fetch_s = 10.0
        async with trio.open_nursery() as nursery:
            fetch = partial(world.acquisition.fetch, urgent=True, limit_s=limit_s)
            nursery.start_soon(fetch, MODULE, lot)
            await trio.sleep(1)
            assert world.acquisition.module_of(ARTIFACT) == MODULE
            assert world.acquisition.module_of(ANOTHER) is None
        assert world.acquisition.module_of(ARTIFACT) is None


async def test_what_could_not_be_used_is_not_fetched_again(autojump_clock: MockClock) -> None:
    world = World()
    world.answers = {"p": told(word())}
    world.acquisition.unfit(MODULE, ARTIFACT)
    assert await world.survey() is None


def test_bans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.acquisition.BANS_MAX", 2)
    world = World()
    for number in range(4):
        world.acquisition.unfit(MODULE, digest_of(b"%d" % number))
    assert len(world.acquisition._unfit) == 2
