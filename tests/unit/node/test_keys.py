"""Key rotation on one node: order of effects, guards, and what is refused."""

from __future__ import annotations

import pytest
import trio

from edged import keys
from edged.errors import BadRequest, ConfigError, Conflict, KeyNotFound, StoreError
from edged.keyring import KEYRING_KEYS_MAX, new_key, parse_keyring, read_keyring, write_keyring
from tests.unit.control.memory_keys import NEW, NEW_ID, OLD, OLD_ID, OTHER_ID, MemoryKeys, member


@pytest.fixture
def node() -> MemoryKeys:
    return MemoryKeys()


async def test_a_whole_rotation(node: MemoryKeys) -> None:
    node.others = [member("n2", OLD)]
    added = await node.service.add(NEW)
    assert (added.key, added.changed, added.keys) == (NEW_ID, True, (OLD_ID, NEW_ID))
    node.others = [member("n2", OLD, NEW)]
    assert (await node.service.use(NEW_ID, force=False)).keys == (NEW_ID, OLD_ID)
    node.others = [member("n2", NEW, OLD)]
    assert (await node.service.remove(OLD_ID, force=False)).keys == (NEW_ID,)
    assert node.installed == [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    assert node.on_disk_first == [True, True, True]
    assert [kind for kind, _ in node.noted] == ["key-added", "key-used", "key-removed"]
    assert read_keyring(node.path) == (NEW,)


async def test_each_step_again_changes_nothing(node: MemoryKeys) -> None:
    await node.service.add(NEW)
    assert not (await node.service.add(NEW)).changed
    assert not (await node.service.add(OLD)).changed
    await node.service.use(NEW_ID, force=False)
    assert not (await node.service.use(NEW_ID, force=False)).changed
    await node.service.remove(OLD_ID, force=False)
    assert not (await node.service.remove(OLD_ID, force=False)).changed
    assert len(node.installed) == 4


@pytest.mark.parametrize("state", ["alive", "suspect", "down"])
async def test_using_a_key_that_a_member_lacks(node: MemoryKeys, state: str) -> None:
    node.others = [member("n2", OLD, NEW), member("n3", OLD, state=state)]
    await node.service.add(NEW)
    with pytest.raises(Conflict, match=r"n3( \(\w+\))? has not got key") as refused:
        await node.service.use(NEW_ID, force=False)
    assert [row["name"] for row in refused.value.extra["members"]] == ["n3"]
    assert node.service.view().keys == (OLD_ID, NEW_ID)
    assert (await node.service.use(NEW_ID, force=True)).changed


async def test_who_left_lacks_nothing(node: MemoryKeys) -> None:
    node.others = [member("n3", OLD, state="left")]
    await node.service.add(NEW)
    assert (await node.service.use(NEW_ID, force=False)).changed
    assert (await node.service.remove(OLD_ID, force=False)).changed


async def test_many_members_are_named_in_short(node: MemoryKeys) -> None:
    node.others = [member(f"m{number:02}", OLD) for number in range(20)]
    await node.service.add(NEW)
    with pytest.raises(Conflict, match="m07 and 12 more have not got") as refused:
        await node.service.use(NEW_ID, force=False)
    assert len(refused.value.extra["members"]) == 20


async def test_using_a_key_that_is_not_here(node: MemoryKeys) -> None:
    with pytest.raises(KeyNotFound):
        await node.service.use(OTHER_ID, force=True)


async def test_removing_what_is_in_use(node: MemoryKeys) -> None:
    with pytest.raises(Conflict, match="only key"):
        await node.service.remove(OLD_ID, force=True)
    await node.service.add(NEW)
    with pytest.raises(Conflict, match="this node seals"):
        await node.service.remove(OLD_ID, force=False)
    await node.service.use(NEW_ID, force=False)
    node.others = [member("n2", OLD, NEW, state="down"), member("n3", NEW, OLD)]
    with pytest.raises(Conflict, match=r"n2 \(down\) seals with key") as refused:
        await node.service.remove(OLD_ID, force=False)
    assert [row["name"] for row in refused.value.extra["members"]] == ["n2"]
    assert (await node.service.remove(OLD_ID, force=True)).keys == (NEW_ID,)


async def test_removing_the_sealing_key_by_force(node: MemoryKeys) -> None:
    await node.service.add(NEW)
    assert (await node.service.remove(OLD_ID, force=True)).keys == (NEW_ID,)
    assert node.installed[-1] == (NEW,)


async def test_the_ring_is_bounded(node: MemoryKeys) -> None:
    for _ in range(KEYRING_KEYS_MAX - 1):
        await node.service.add(new_key())
    with pytest.raises(Conflict, match="8 keys"):
        await node.service.add(new_key())


@pytest.mark.parametrize("size", [0, 31, 33])
async def test_what_is_no_key(node: MemoryKeys, size: int) -> None:
    with pytest.raises(BadRequest):
        await node.service.add(bytes(size))


async def test_two_keys_with_one_id(node: MemoryKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "key_id", lambda _key: bytes.fromhex(OLD_ID))
    with pytest.raises(Conflict, match="another key has the id"):
        await node.service.add(NEW)


async def test_what_cannot_be_saved_is_not_in_force(
    node: MemoryKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("/trust/keyring: cannot be written: Read-only file system")

    monkeypatch.setattr(keys, "write_keyring", fail)
    with pytest.raises(StoreError, match="cannot be saved") as failed:
        await node.service.add(NEW)
    assert "Read-only" in failed.value.private
    assert "/trust" not in str(failed.value)
    assert node.service.view().keys == (OLD_ID,)
    assert node.installed == [(OLD,)]
    assert node.noted == []


async def test_a_cancelled_change_is_whole(node: MemoryKeys) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.service.add, NEW)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert read_keyring(node.path) == node.installed[-1]


async def test_changes_wait_for_each_other(node: MemoryKeys) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(10, 15):
            nursery.start_soon(node.service.add, bytes([number]) * 32)
    assert len(read_keyring(node.path)) == 6
    assert node.installed[-1] == read_keyring(node.path)


def test_what_members_hold(node: MemoryKeys) -> None:
    node.others = [member("n0", NEW, OLD, state="down")]
    rows = node.service.view().members
    assert [(row.name, row.keys, row.is_self) for row in rows] == [
        ("n0", (NEW_ID, OLD_ID), False),
        ("n1", (OLD_ID,), True),
    ]


def test_keyring_files(node: MemoryKeys) -> None:
    write_keyring(node.path, [OLD, NEW])
    assert read_keyring(node.path) == (OLD, NEW)
    assert node.path.stat().st_mode & 0o777 == 0o600
    node.path.chmod(0o644)
    with pytest.raises(ConfigError, match="lets others read"):
        read_keyring(node.path)
    for text in (b"", b"zz\n", b"aa\n", OLD.hex().encode() + b"\n" + OLD.hex().encode(), b"\xff"):
        with pytest.raises(ConfigError):
            parse_keyring(text, node.path)
