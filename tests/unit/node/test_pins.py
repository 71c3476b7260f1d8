"""Pins: what is kept, and that it is on disk before it is in force."""

from __future__ import annotations

import io

import pytest

from edged.errors import Conflict, StoreError
from edged.pins import PINS, PINS_MAX, Pins
from edged.telemetry import make_log
from protocol.ids import Digest, FunctionName, digest_of

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


class Meta:
    def __init__(self) -> None:
        self.saved: dict[str, bytes] = {}
        self.fails = False

    async def set_meta(self, key: str, value: bytes) -> None:
        if self.fails:
            raise StoreError("no")
        self.saved[key] = value

    def get_meta(self, key: str) -> bytes | None:
        return self.saved.get(key)


@pytest.fixture
def meta() -> Meta:
    return Meta()


VERSIONS: dict[str, list[Digest]] = {}


def pins_of(meta: Meta, log: io.StringIO | None = None) -> Pins:
    def modules(name: FunctionName) -> list[Digest]:
        return VERSIONS.get(name, [])

    return Pins(meta, modules=modules, log=make_log("n1", stream=log or io.StringIO()))


async def test_they_outlive_a_restart(meta: Meta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, "hello", [A])
    pins = pins_of(meta)
    assert (await pins.pin("digest", C)).changed
    assert (await pins.pin("function", "hello")).changed
    assert not (await pins.pin("function", "hello")).changed
    again = pins_of(meta)
    assert again.covered() == {A, C}
    monkeypatch.setitem(VERSIONS, "hello", [A, B])  # a new version
    assert again.is_pinned(B)
    assert (await again.unpin("function", "hello")).changed
    assert not (await again.unpin("function", "hello")).changed
    assert pins_of(meta).covered() == {C}


async def test_what_could_not_be_saved_is_not_in_force(meta: Meta) -> None:
    pins = pins_of(meta)
    meta.fails = True
    with pytest.raises(StoreError):
        await pins.pin("digest", A)
    assert pins.covered() == frozenset()


async def test_they_are_bounded(meta: Meta) -> None:
    pins = pins_of(meta)
    for number in range(PINS_MAX):
        await pins.pin("function", f"f{number}")
    with pytest.raises(Conflict, match="unpin some"):
        await pins.pin("digest", A)


def test_damage_is_said(meta: Meta) -> None:
    meta.saved[PINS] = b"\xc1nonsense"
    log = io.StringIO()
    assert pins_of(meta, log).covered() == frozenset()
    assert "damaged" in log.getvalue()
