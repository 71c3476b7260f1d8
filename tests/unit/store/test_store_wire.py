"""Wire forms and partials: made once, served verified, fetched segment by segment, resumed."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
import zstandard
from blake3 import blake3

from edged.errors import BlobCorrupt, BlobNotFound, Conflict, DigestMismatch, StoreError
from edged.store import BlobStore, open_store, wireforms
from edged.store.wire import level_for, open_segment
from edged.telemetry import make_log
from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, digest_of
from protocol.manifest import Manifest, build_manifest, decode_manifest, encode_manifest

RAW = os.urandom(40_000) + bytes(40_000)
"""Five segments of 16 KiB, compressible and not."""


async def wire_of(store: BlobStore, raw: bytes = RAW) -> tuple[Manifest, list[bytes]]:
    info = await store.put(raw, kind="module")
    manifest = await store.make_manifest(info.digest)
    frames = [await store.wire_segment(info.digest, i) for i in range(manifest.segments)]
    return manifest, frames


def lying(raw: bytes, frame: bytes) -> Manifest:
    """A manifest whose only frame verifies but is not the blob's."""
    return Manifest("zstd", digest_of(raw), len(raw), 65536, (len(frame),), blake3(frame).digest())


async def test_made_once_and_as_the_protocol_says(store: BlobStore) -> None:
    manifest, frames = await wire_of(store)
    assert manifest == build_manifest(digest_of(RAW), len(RAW), frames)
    raw = b"".join(zstandard.ZstdDecompressor().decompress(frame) for frame in frames)
    assert raw == RAW
    info = store.info(manifest.blob)
    assert info is not None
    assert info.manifest == digest_of(encode_manifest(manifest))
    assert info.wire_bytes == manifest.wire_bytes
    assert decode_manifest(await store.read(info.manifest)) == manifest
    assert await store.manifest(manifest.blob) == manifest
    wire_file = store.path(manifest.blob).parents[2] / "wire" / manifest.blob[:2]
    inode = next(wire_file.iterdir()).stat().st_ino
    assert await store.make_manifest(manifest.blob) == manifest
    assert next(wire_file.iterdir()).stat().st_ino == inode


async def test_made_at_once_by_many(store: BlobStore) -> None:
    info = await store.put(RAW, kind="module")
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(store.make_manifest, info.digest)
    assert len(store.blobs()) == 2


async def test_segments_that_do_not_exist(store: BlobStore) -> None:
    manifest, _ = await wire_of(store)
    for index in (-1, manifest.segments, 10**9):
        with pytest.raises(BlobNotFound):
            await store.wire_segment(manifest.blob, index)
    info = await store.put(b"no wire form", kind="module")
    with pytest.raises(BlobNotFound):
        await store.wire_segment(info.digest, 0)
    with pytest.raises(BlobNotFound):
        await store.manifest(info.digest)


async def test_damaged_wire_form_is_never_served_and_can_be_made_anew(
    store: BlobStore, data_dir: Path
) -> None:
    manifest, frames = await wire_of(store)
    path = next((data_dir / "wire" / manifest.blob[:2]).iterdir())
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    with pytest.raises(BlobNotFound, match="damaged"):
        await store.wire_segment(manifest.blob, 0)
    info = store.info(manifest.blob)
    assert info is not None
    assert info.manifest is None
    assert await store.make_manifest(manifest.blob) == manifest
    assert await store.wire_segment(manifest.blob, 0) == frames[0]


async def test_removed_wire_form_and_removed_manifest(store: BlobStore, data_dir: Path) -> None:
    manifest, _ = await wire_of(store)
    next((data_dir / "wire" / manifest.blob[:2]).iterdir()).unlink()
    with pytest.raises(BlobNotFound, match="gone"):
        await store.wire_segment(manifest.blob, 0)
    await store.make_manifest(manifest.blob)
    info = store.info(manifest.blob)
    assert info is not None
    assert info.manifest is not None
    await store.delete(info.manifest)
    assert await store.make_manifest(manifest.blob) == manifest
    assert store.info(info.manifest) is not None


async def test_making_from_a_damaged_blob_quarantines_it(store: BlobStore) -> None:
    info = await store.put(RAW, kind="module")
    path = store.path(info.digest)
    path.chmod(0o600)
    path.write_bytes(RAW[:-1] + b"\x01")
    with pytest.raises(BlobCorrupt):
        await store.make_manifest(info.digest)
    assert store.info(info.digest) is None


async def test_fetch_keeps_the_exact_wire_bytes(store: BlobStore) -> None:
    # Frames at another level than this store's: what came is what is passed on.
    frames = [
        zstandard.ZstdCompressor(level=19).compress(RAW[i : i + 16384])
        for i in range(0, len(RAW), 16384)
    ]
    manifest = build_manifest(digest_of(RAW), len(RAW), frames)
    partial = await store.begin_partial(manifest)
    assert partial.present == frozenset()
    for index in reversed(range(manifest.segments)):
        await partial.write([(index, frames[index])])
    info = await partial.finish()
    assert (info.kind, info.size_bytes) == ("module", len(RAW))
    assert await store.read(info.digest) == RAW
    assert await store.manifest(info.digest) == manifest
    served = [await store.wire_segment(info.digest, i) for i in range(manifest.segments)]
    assert served == frames
    with pytest.raises(Conflict):
        await partial.write([(0, frames[0])])
    await partial.discard()
    assert store.info(info.digest) == info


async def test_fetched_artifacts_are_known_by_their_magic(store: BlobStore) -> None:
    raw = b"\x7fELF" + os.urandom(100)
    frame = zstandard.ZstdCompressor().compress(raw)
    partial = await store.begin_partial(build_manifest(digest_of(raw), len(raw), [frame]))
    await partial.write([(0, frame)])
    assert (await partial.finish()).kind == "artifact"


async def test_resume_after_restart(
    store: BlobStore, reopen: Callable[[], Awaitable[BlobStore]], data_dir: Path
) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    await partial.write([(1, frames[1])])
    await partial.write([(4, frames[4])])
    with pytest.raises(StoreError, match="3 segments"):
        await partial.finish()
    store = await reopen()
    partial = await store.begin_partial(manifest)
    assert partial.present == {1, 4}
    path = next((data_dir / "partial").iterdir())
    with path.open("r+b") as file:
        file.seek(manifest.wire_offset(1) + 5)
        file.write(b"damage")
    partial = await store.begin_partial(manifest)
    assert partial.present == {4}
    for index in set(range(manifest.segments)) - partial.present:
        await partial.write([(index, frames[index])])
    await partial.finish()
    assert await store.read(manifest.blob) == RAW
    assert list((data_dir / "partial").iterdir()) == []


async def test_wrong_segments_are_refused_one_by_one(store: BlobStore) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    wrong = bytearray(frames[0])
    wrong[-1] ^= 1
    for index, wire in ((0, bytes(wrong)), (0, frames[1]), (0, b""), (-1, b""), (99, frames[0])):
        with pytest.raises(DigestMismatch):
            await partial.write([(index, wire)])
    for index, frame in enumerate(frames):
        await partial.write([(index, frame)])
    assert (await partial.finish()).digest == manifest.blob


async def test_whoever_says_verified_and_errs_makes_no_blob_and_serves_nothing(
    store: BlobStore, data_dir: Path
) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    other = zstandard.ZstdCompressor().compress(os.urandom(manifest.raw_length(0)))
    wrong = (other + bytes(len(frames[0])))[: len(frames[0])]
    await partial.write([(0, wrong), *list(enumerate(frames))[1:]], verified=True)
    assert await partial.read([1]) == [frames[1]]
    with pytest.raises(BlobNotFound):
        await partial.read([0])
    with pytest.raises(DigestMismatch):
        await partial.finish()
    assert store.info(manifest.blob) is None
    assert list((data_dir / "partial").iterdir()) == []


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("bomb", zstandard.ZstdCompressor().compress(bytes(50_000_000))),
        ("shorter", zstandard.ZstdCompressor().compress(b"short")),
        ("other bytes", zstandard.ZstdCompressor().compress(b"B" * 1000)),
        ("no size", zstandard.ZstdCompressor(write_content_size=False).compress(b"A" * 1000)),
        ("trailing", zstandard.ZstdCompressor().compress(b"A" * 1000) + b"more"),
        ("two frames", zstandard.ZstdCompressor().compress(b"A" * 500) * 2),
        ("not zstd", b"A" * 900),
        ("skippable", b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"),
    ],
)
async def test_a_manifest_that_lies_makes_nothing(
    store: BlobStore, data_dir: Path, what: str, frame: bytes
) -> None:
    raw = b"A" * 1000
    manifest = lying(raw, frame)
    try:
        partial = await store.begin_partial(manifest)
    except RemoteProtocolError:
        assert what == "bomb", "its frame is larger than its raw bytes"
        return
    await partial.write([(0, frame)])
    with pytest.raises(DigestMismatch):
        await partial.finish()
    assert store.info(manifest.blob) is None
    assert list((data_dir / "partial").iterdir()) == []
    assert list((data_dir / "tmp").iterdir()) == []


def test_dictionary_frames_are_refused() -> None:
    samples = [os.urandom(8) + b"common text %d" % i for i in range(200)]
    dictionary = zstandard.train_dictionary(1024, samples)
    raw = b"common text 7"
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(raw)
    with pytest.raises(DigestMismatch):
        open_segment(zstandard.ZstdDecompressor(), lying(raw, frame), 0, frame)


async def test_manifest_out_of_bounds(store: BlobStore) -> None:
    manifest, _ = await wire_of(store)
    with pytest.raises(RemoteProtocolError):
        await store.begin_partial(msgspec.structs.replace(manifest, raw_bytes=2**40))
    with pytest.raises(RemoteProtocolError):
        await store.begin_partial(msgspec.structs.replace(manifest, blob=Digest("../" + "a" * 61)))


async def test_the_newest_user_of_a_partial_wins(store: BlobStore) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    old = await store.begin_partial(manifest)
    await old.write([(0, frames[0])])
    new = await store.begin_partial(manifest)
    assert new.present == {0}
    for call in (lambda: old.write([(1, frames[1])]), old.finish):
        with pytest.raises(Conflict):
            await call()
    await old.discard()
    for index in range(1, manifest.segments):
        await new.write([(index, frames[index])])
    await new.finish()
    assert await store.read(manifest.blob) == RAW


async def test_abandoned_fetches_are_bounded(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireforms, "FETCHES_MAX", 2)
    fetches = []
    for number in range(3):
        raw = bytes([number]) * 100
        frame = zstandard.ZstdCompressor().compress(raw)
        fetches.append(
            (frame, await store.begin_partial(build_manifest(digest_of(raw), 100, [frame])))
        )
    with pytest.raises(Conflict):
        await fetches[0][1].write([(0, fetches[0][0])])
    for frame, fetch in fetches[1:]:
        await fetch.write([(0, frame)])
        await fetch.finish()


async def test_discard_removes_the_bytes(store: BlobStore, data_dir: Path) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    await partial.write([(0, frames[0])])
    await partial.discard()
    assert list((data_dir / "partial").iterdir()) == []
    assert (await store.begin_partial(manifest)).present == frozenset()


async def test_the_blob_arrives_another_way_during_the_fetch(store: BlobStore) -> None:
    manifest, frames = await wire_of(store)
    await store.delete(manifest.blob)
    partial = await store.begin_partial(manifest)
    for index, frame in enumerate(frames):
        await partial.write([(index, frame)])
    await store.put(RAW, kind="module")
    info = await partial.finish()
    assert info.wire_bytes == manifest.wire_bytes
    assert await store.wire_segment(info.digest, 2) == frames[2]
    again = await store.begin_partial(manifest)
    for index, frame in enumerate(frames):
        await again.write([(index, frame)])
    assert await again.finish() == info


async def test_scrub_finds_both_kinds_of_damage(store: BlobStore, data_dir: Path) -> None:
    manifest, _ = await wire_of(store)
    good = await store.put(b"good", kind="module")
    bad = await store.put(b"bad!", kind="module")
    clean = await store.scrub()
    assert (clean.blobs, clean.corrupt, clean.wire_lost) == (4, (), ())
    path = store.path(bad.digest)
    path.chmod(0o600)
    path.write_bytes(b"BAD!")
    wire = next((data_dir / "wire" / manifest.blob[:2]).iterdir())
    wire.chmod(0o600)
    os.truncate(wire, 1000)
    report = await store.scrub()
    assert (report.blobs, report.corrupt, report.wire_lost) == (3, (bad.digest,), (manifest.blob,))
    assert await store.verify(good.digest)


def test_a_wire_form_takes_about_half_a_second_whatever_the_size() -> None:
    assert [level_for(size) for size in (1, 260_000, 1_100_000, 3_000_000)] == [19, 19, 17, 15]
    assert [level_for(size) for size in (16_000_000, 30_000_000, 55_000_000)] == [9, 6, 3]


async def test_level_0_is_by_size(tmp_path: Path) -> None:
    raw = bytes(random.Random(0).choices(b"abcdefgh", k=50_000))
    log = make_log("test", level="error")
    frames = {}
    for level in (0, 3, 19):
        store = await open_store(tmp_path / str(level), zstd_level=level, min_free_bytes=0, log=log)
        info = await store.put(raw, kind="module")
        frames[level] = (await store.make_manifest(info.digest)).wire_digests
        await store.close()
    assert frames[0] == frames[19] != frames[3]
