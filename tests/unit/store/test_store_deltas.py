"""Blobs made of a delta against another: whatever the delta is, nothing but the blob is stored."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import BlobCorrupt, BlobNotFound, DigestMismatch
from edged.store import BlobStore, deltas
from edged.store.patch import apply_patch, make_patch
from protocol.ids import digest_of
from protocol.manifest import Manifest, manifest_digest

BASE = b"\0asm" + random.Random(1).randbytes(300_000)
RAW = BASE[:100_000] + b"a patch release" + BASE[100_020:]


async def two(store: BlobStore) -> tuple[Manifest, bytes]:
    """Stores BASE and tells RAW's manifest, and a delta from the one to the other."""
    await store.put(BASE, kind="module")
    info = await store.put(RAW, kind="module")
    manifest = await store.make_manifest(info.digest)
    delta = await store.make_delta(info.digest, digest_of(BASE))
    assert delta is not None
    await store.delete(info.digest)
    return manifest, delta


async def test_a_small_change_is_a_small_delta(store: BlobStore) -> None:
    manifest, delta = await two(store)
    assert len(delta) < 1000
    info = await store.apply_delta(manifest, digest_of(BASE), delta)
    assert (info.digest, info.kind, info.wire_bytes) == (digest_of(RAW), "module", None)
    assert await store.read(info.digest) == RAW
    assert await store.make_manifest(info.digest, expected=manifest_digest(manifest)) == manifest


async def test_a_manifest_that_is_not_the_expected_one_is_not_kept(store: BlobStore) -> None:
    info = await store.put(RAW, kind="module")
    with pytest.raises(DigestMismatch):
        await store.make_manifest(info.digest, expected=digest_of(b"another"))
    found = store.info(info.digest)
    assert found is not None
    assert found.manifest is None


async def test_a_delta_that_makes_another_blob_stores_nothing(store: BlobStore) -> None:
    manifest, delta = await two(store)
    base = digest_of(BASE)
    for bad in (
        b"",
        b"junk" * 100,
        delta[:-3],
        delta + b"\0",
        delta + delta,
        delta[: len(delta) // 2],
    ):
        with pytest.raises(DigestMismatch):
            await store.apply_delta(manifest, base, bad)
    other = make_patch(BASE, RAW[:-1] + b"!")
    longer = make_patch(BASE, RAW + b"!")
    bomb = make_patch(BASE, bytes(50_000_000))
    assert len(bomb) < 10_000
    for bad in (other, longer, bomb):
        with pytest.raises(DigestMismatch):
            await store.apply_delta(manifest, base, bad)
    assert store.info(manifest.blob) is None


async def test_a_base_that_is_gone_or_damaged_is_told(store: BlobStore) -> None:
    manifest, delta = await two(store)
    with pytest.raises(BlobNotFound):
        await store.apply_delta(manifest, digest_of(b"never here"), delta)
    path = store.path(digest_of(BASE))
    path.chmod(0o600)
    path.write_bytes(BASE[:-1] + b"?")
    with pytest.raises(BlobCorrupt):
        await store.apply_delta(manifest, digest_of(BASE), delta)


async def test_blobs_too_large_or_small_for_it_have_none(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, delta = await two(store)
    await store.put(RAW, kind="module")
    tiny = await store.put(b"tiny", kind="module")
    assert await store.make_delta(manifest.blob, tiny.digest) is None
    monkeypatch.setattr(deltas, "RAW_BYTES_MAX", len(BASE) - 1)
    assert await store.make_delta(manifest.blob, digest_of(BASE)) is None
    with pytest.raises(DigestMismatch):
        await store.apply_delta(manifest, digest_of(BASE), delta)


@given(st.binary(min_size=8, max_size=2000), st.binary(min_size=1, max_size=2000))
def test_any_base_makes_any_blob(base: bytes, raw: bytes) -> None:
    assert apply_patch(base, make_patch(base, raw), raw_bytes=len(raw)) == raw


@given(st.binary(min_size=8, max_size=200), st.binary(max_size=300), st.integers(1, 1000))
def test_any_bytes_are_a_delta_or_refused(base: bytes, patch: bytes, raw_bytes: int) -> None:
    try:
        raw = apply_patch(base, patch, raw_bytes=raw_bytes)
    except DigestMismatch:
        return
    assert len(raw) == raw_bytes
