"""Whom a node knew: what is kept, in which order, and what damage or a full disk do to it."""

from __future__ import annotations

import io

import msgspec
import trio

from edged.acquaintances import ADDRESSES_MAX, COALESCE_S, KEY, Acquaintances
from edged.errors import DiskFull
from edged.telemetry import make_log
from protocol.ids import NodeId
from protocol.member import Member, MemberState, Metadata


def member(number: int, state: MemberState, *, at_s: float = 0.0, own: bool = False) -> Member:
    address = ("10.0.0.1", number)
    metadata = Metadata(f"n{number}", address, address)
    return Member(NodeId(f"{number:032x}"), state, 1, 0, metadata, None, own, at_s)


class Disk:
    def __init__(self) -> None:
        self.meta: dict[str, bytes] = {}
        self.writes = 0
        self.full = False

    def get_meta(self, key: str) -> bytes | None:
        return self.meta.get(key)

    async def set_meta(self, key: str, value: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise DiskFull("no space")
        self.writes += 1
        self.meta[key] = value


class Rig:
    def __init__(self, disk: Disk) -> None:
        self.members: list[Member] = []
        self.log = io.StringIO()
        log = make_log("n", stream=self.log)
        self.kept = Acquaintances(disk, lambda: self.members, log=log)

    def ports(self) -> list[int]:
        return [port for _, port in self.kept.recall()]


async def test_the_reachable_come_first_and_former_ones_last() -> None:
    disk = Disk()
    rig = Rig(disk)
    assert rig.ports() == []
    rig.members = [
        member(1, "alive", own=True),
        member(2, "down", at_s=5.0),
        member(3, "left", at_s=9.0),
        member(4, "suspect"),
    ]
    await rig.kept.save()
    assert rig.ports() == [4, 3, 2]
    again = Rig(disk)
    assert again.ports() == [4, 3, 2]
    again.members = [member(7, "alive")]
    await again.kept.save()
    assert again.ports() == [7, 4, 3, 2]
    await again.kept.save()
    assert disk.writes == 2, "nothing new, nothing written"
    again.members = [member(100 + number, "alive") for number in range(300)]
    await again.kept.save()
    assert len(again.ports()) == ADDRESSES_MAX


async def test_damage_and_a_full_disk_are_told_of_and_nothing_else() -> None:
    disk = Disk()
    for damage in (b"\xc1", msgspec.msgpack.encode([("host", 0)]), b"\x91\x92\xa1\xff\x01"):
        disk.meta[KEY] = damage
        rig = Rig(disk)
        assert rig.ports() == []
        assert "damaged" in rig.log.getvalue()
    disk.full = True
    rig.members = [member(2, "alive")]
    await rig.kept.save()
    assert "not saved" in rig.log.getvalue()
    disk.full = False
    await rig.kept.save()
    assert rig.ports() == [2]


async def test_changes_are_saved_together(autojump_clock: trio.testing.MockClock) -> None:
    disk = Disk()
    rig = Rig(disk)
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.kept.run)
        for number in range(5):
            rig.members.append(member(2 + number, "alive"))
            rig.kept.changed()
            await trio.sleep(COALESCE_S / 10)
        await trio.sleep(COALESCE_S)
        assert disk.writes == 1
        await trio.sleep(10 * COALESCE_S)
        assert disk.writes == 1
        nursery.cancel_scope.cancel()
    assert sorted(rig.ports()) == [2, 3, 4, 5, 6]
