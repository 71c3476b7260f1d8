"""Directories: the private /tmp with its quota, read-only mounts, and no way out of either."""

from __future__ import annotations

import os

import pytest
from wasi_script import (
    CREATE,
    DIRECTORY,
    EXCLUSIVE,
    READ,
    SLOTS,
    TRUNCATE,
    Load,
    call,
    errnos,
    open_file,
    read,
    script,
    write,
)

from edged.errors import GuestTrap
from edged.interfaces import Invocation
from edged.runtime import tmpdir
from protocol.function import Mount, Policy

OK, EBADF, EEXIST, ENOENT, ENOSPC, EROFS, ENOTCAPABLE, EPERM = 0, 8, 20, 44, 51, 69, 76, 63
MIB = 1024 * 1024
FD = Load(SLOTS)
FD2 = Load(SLOTS + 4)
TMP = Policy(tmp_bytes=64 * 1024)
MOUNT = Policy(mounts=(Mount(source="shared", guest_path="/data"),))
BOTH = Policy(tmp_bytes=64 * 1024, mounts=MOUNT.mounts)


async def run(lab, policy, *steps, repeat=1):
    result = await lab.invoke(script(*steps, repeat=repeat), Invocation(policy=policy))
    return errnos(result.stderr), result.stderr[-64:].rstrip(b"\0"), result.stdout


async def test_without_grants_there_is_no_file_system(lab):
    codes, _, _ = await run(
        lab, Policy(),
        call("fd_prestat_get", 3, 8),
        open_file(SLOTS, "tmp"),
        write(3, "x"),
        call("path_create_directory", 3, "d"),
        call("sock_shutdown", 3, 0),
    )  # fmt: skip
    assert codes == (EBADF,) * 5


async def test_standard_descriptors_behave_like_wasis(lab):
    codes, _, stdout = await run(
        lab, Policy(),
        call("fd_fdstat_get", 0, 64), call("fd_fdstat_get", 1, 64), call("fd_fdstat_get", 2, 64),
        call("fd_filestat_get", 1, 64),
        call("fd_renumber", 1, 1),
        write(1, "a"),
        call("fd_renumber", 1, 0),  # stdout is now descriptor 0
        write(0, "b"),
        write(1, "c"),
        call("fd_close", 0),
        write(0, "d"),
        call("fd_close", 0),
        call("fd_close", 77),
    )  # fmt: skip
    assert codes == (0, 0, 0, 0, 0, 0, 0, 0, EBADF, 0, EBADF, EBADF, EBADF)
    assert stdout == b"ab"


async def test_a_descriptor_reused_after_close_is_the_file(lab):
    codes, got, stdout = await run(
        lab, TMP,
        call("fd_close", 1),
        open_file(SLOTS, "f", oflags=CREATE),
        write(FD, "to the file"),
        call("fd_seek", FD, 0, 0, 512),
        read(FD),
    )  # fmt: skip
    assert (codes, got, stdout) == ((0,) * 5, b"to the file", b"")


async def test_tmp_is_private_fresh_and_removed(lab):
    steps = (
        open_file(SLOTS, "f", oflags=CREATE | EXCLUSIVE),
        write(FD, "hello"),
        call("fd_seek", FD, 1, 0, 512),
        read(FD),
        call("path_create_directory", 3, "d"),
        open_file(SLOTS + 4, "d/g", oflags=CREATE),
        write(FD2, "deep"),
        call("path_symlink", "f", 3, "link"),
        call("path_rename", 3, "d/g", 3, "h"),
    )
    for _ in range(2):
        codes, got, _ = await run(lab, TMP, *steps)
        assert (codes, got) == ((OK,) * len(steps), b"ello")
        assert list(lab.scratch.iterdir()) == []
    trapping = script(*steps).replace(
        '(func (export "_start")', '(func (export "_start") (call $run) unreachable) (func $run'
    )
    with pytest.raises(GuestTrap):
        await lab.invoke(trapping, Invocation(policy=TMP))
    assert list(lab.scratch.iterdir()) == []


async def test_quota_counts_bytes_written(lab):
    kib = b"x" * 1024
    open_it = open_file(SLOTS, "f", oflags=CREATE)
    # 64 KiB less 4 KiB for the file: 60 pieces fit.
    codes, _, _ = await run(lab, TMP, open_it, *[write(FD, kib)] * 60, write(FD, "x"))
    assert codes == (OK,) * 61 + (ENOSPC,)
    codes, _, _ = await run(lab, TMP, open_it, *[write(FD, kib)] * 59, write(FD, b"x" * 1025))
    assert codes[-1] == ENOSPC


async def test_deleting_gives_nothing_back(lab):
    piece = b"x" * 20_000
    again = (
        open_file(SLOTS, "f", oflags=CREATE | TRUNCATE),
        write(FD, piece),
        call("fd_close", FD),
        call("path_unlink_file", 3, "f"),
    )
    codes, _, _ = await run(lab, TMP, *again, *again, *again)
    # Each round costs 24,096: the third write, or its file, is too much.
    assert codes[:8] == (OK,) * 8
    assert codes[9] == ENOSPC


async def test_sparse_tricks_cost_what_they_take(lab, monkeypatch):
    """Every way to get blocks without writing them ends in ENOSPC within the quota."""
    remove, taken = tmpdir.remove, []

    def measure(path):
        blocks = [item.lstat().st_blocks for item in path.rglob("*")]
        taken.append(sum(blocks) * 512 + 4096 * len(blocks))
        remove(path)

    monkeypatch.setattr(tmpdir, "remove", measure)
    make = open_file(SLOTS, "f", oflags=CREATE)
    tricks = {
        "pwrite": (make, write(FD, "x", offset=1 << 30)),
        "seek": (make, call("fd_seek", FD, 1 << 20, 1, 512), write(FD, "x")),
        "files": (
            open_file(SLOTS, "f", oflags=CREATE | EXCLUSIVE), call("path_unlink_file", 3, "f"),
        ),
        "directories": (
            call("path_create_directory", 3, "d"), call("path_remove_directory", 3, "d"),
        ),
        "symlinks": (call("path_symlink", "x" * 100, 3, "s"), call("path_unlink_file", 3, "s")),
        "links": (make, call("path_link", 3, 0, "f", 3, "l"), call("path_unlink_file", 3, "l")),
        "length": (make, call("fd_filestat_set_size", FD, 30_000)),
        "renumber": (
            make, open_file(SLOTS + 4, "g", oflags=CREATE),
            call("fd_renumber", FD2, FD), write(FD, b"x" * 8000),
        ),
        "truncate": (make, write(FD, b"x" * 8000), call("fd_filestat_set_size", FD, 0)),
    }  # fmt: skip
    for name, steps in tricks.items():
        codes, _, _ = await run(lab, TMP, *steps, repeat=100)
        assert ENOSPC in codes, name
        assert taken.pop() <= TMP.tmp_bytes, name
    codes, _, _ = await run(lab, TMP, make, call("fd_filestat_set_size", FD, 1 << 40))
    assert codes == (OK, ENOSPC)
    codes, _, _ = await run(lab, TMP, make, call("fd_allocate", FD, 0, 1 << 40))
    assert codes == (OK, ENOSPC)
    codes, _, _ = await run(lab, TMP, make, call("fd_allocate", FD, -1, -1))
    assert codes == (OK, ENOSPC)


async def test_opening_again_is_free(lab):
    steps = (open_file(SLOTS, "f", oflags=CREATE), write(FD, "x"), call("fd_close", FD))
    codes, _, _ = await run(lab, TMP, *steps, repeat=1000)
    assert codes == (OK, OK, OK)


async def test_removal_of_a_tree_deeper_than_any_path(lab):
    """2,000 levels, each made through the descriptor of the one above."""
    rights = (1 << 29) - 1
    steps = (
        call("path_create_directory", FD, "dddddddddd"),
        call("path_open", FD, 0, "dddddddddd", DIRECTORY, READ, rights, 0, SLOTS + 4),
        call("fd_renumber", FD2, FD),
    )
    guest = script(*steps, repeat=2000).replace(
        "(loop $again", f"(i32.store (i32.const {SLOTS}) (i32.const 3)) (loop $again", 1
    )
    result = await lab.invoke(guest, Invocation(policy=Policy(tmp_bytes=64 * MIB)))
    assert errnos(result.stderr) == (OK, OK, OK)
    assert list(lab.scratch.iterdir()) == []


async def test_mounts_are_read_only(lab):
    inside = lab.shared / "inside.txt"
    codes, got, _ = await run(
        lab, MOUNT,
        open_file(SLOTS, "inside.txt", rights=READ),
        read(FD),
    )  # fmt: skip
    assert (codes, got) == ((OK, OK), b"inside")
    before = sorted(os.listdir(lab.shared))
    codes, _, _ = await run(
        lab, MOUNT,
        open_file(SLOTS, "new", oflags=CREATE),
        open_file(SLOTS, "inside.txt", oflags=TRUNCATE),
        write(FD, "x"),
        call("path_create_directory", 3, "d"),
        call("path_unlink_file", 3, "inside.txt"),
        call("path_symlink", "inside.txt", 3, "s"),
        call("path_rename", 3, "inside.txt", 3, "r"),
        call("path_link", 3, 0, "inside.txt", 3, "l"),
    )  # fmt: skip
    assert all(code != OK for code in codes)
    assert inside.read_text() == "inside"
    assert sorted(os.listdir(lab.shared)) == before


async def test_a_mount_cannot_be_written_through_tmp(lab):
    """Descriptors 3 and 4 are the mount and /tmp, in the order they are granted."""
    inside = lab.shared / "inside.txt"
    codes, _, _ = await run(
        lab, BOTH,
        call("path_link", 3, 0, "inside.txt", 4, "linked"),
        call("path_rename", 3, "inside.txt", 4, "moved"),
        open_file(SLOTS, "linked", dir_fd=4),
        call("path_symlink", str(inside), 4, "absolute"),
        call("path_symlink", "../../shared/inside.txt", 4, "relative"),
        open_file(SLOTS, "absolute", dir_fd=4, oflags=TRUNCATE),
        open_file(SLOTS, "relative", dir_fd=4, oflags=TRUNCATE),
        open_file(SLOTS, "ok", dir_fd=4, oflags=CREATE),
        open_file(SLOTS, "inside.txt", dir_fd=3, rights=READ),
        write(FD, "x"),
    )  # fmt: skip
    assert [code == OK for code in codes[:3]] == [False, False, False]
    assert [code == OK for code in codes[5:7]] == [False, False]
    assert (codes[7], codes[8]) == (OK, OK)
    assert codes[9] != OK
    assert inside.read_text() == "inside"
    assert inside.stat().st_nlink == 1


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "../shared/inside.txt",
        "/etc/passwd",
        "escape",
        "absolute",
        "./.././secret.txt",
        "inside.txt/../../secret.txt",
    ],
)
async def test_no_way_out(lab, path):
    for policy in (MOUNT, TMP):
        codes, got, _ = await run(lab, policy, open_file(SLOTS, path, rights=READ), read(FD))
        assert codes[0] != OK
        assert got == b""
    codes, _, _ = await run(
        lab, TMP,
        open_file(SLOTS, path, oflags=CREATE),
        call("path_create_directory", 3, path),
        call("path_symlink", "x", 3, "../planted"),
        call("path_rename", 3, "../secret.txt", 3, "stolen"),
        call("path_link", 3, 0, "../secret.txt", 3, "stolen"),
    )  # fmt: skip
    outside = path not in ("escape", "absolute")
    assert codes[2:] != (OK, OK, OK)
    assert all(code != OK for code in codes[2:])
    if outside:
        assert all(code != OK for code in codes[:2])
    assert (lab.directory / "secret.txt").read_text() == "secret"
    assert not (lab.directory / "planted").exists()


async def test_reading_the_end_of_an_empty_stdin(lab):
    codes, got, _ = await run(lab, Policy(), read(0))
    assert (codes, got) == ((OK,), b"")


async def test_hostile_pointers_with_a_private_tmp(lab):
    """The charged functions read guest memory too."""
    make = open_file(SLOTS, "f", oflags=CREATE)
    codes, _, _ = await run(
        lab, TMP, make,
        call("fd_write", FD, -1, 1, 8),
        call("fd_write", FD, 0, -1, 8),
        call("fd_write", FD, 0, 1, -1),
        call("fd_pwrite", FD, -8, 1, 0, 8),
        call("fd_pwrite", FD, 0, 1, -1, 8),
        call("path_create_directory", -1, ""),
        call("fd_read", FD, -1, -1, -1),
    )  # fmt: skip
    assert codes[0] == OK
    assert codes[1] == 21
    assert codes[3] == 21
    assert codes[4] == 21
