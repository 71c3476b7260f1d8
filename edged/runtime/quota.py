"""What a guest with a private /tmp may write: every function that can take disk space, charged.

Rule: the charges of an invocation are never less than the disk blocks it holds at any time.
- bytes written are charged as bytes;
- a file, directory, link or symlink that comes to be costs BLOCK_BYTES;
- a write that may not continue the descriptor's last one (after a seek, read or renumber, or with
  an offset of its own) costs 2 blocks more: it may touch a block at either end, and so a sparse
  file costs what its blocks cost;
- giving a file a length costs that length.
Deleting credits nothing. Over the quota the guest sees ENOSPC and nothing is written. Only the
private /tmp is writable, so no descriptor needs telling apart.
"""

from __future__ import annotations

from ctypes import c_uint32, c_uint64, memmove, string_at
from struct import Struct
from typing import Final

from .call import EFAULT, EINVAL, ENOSPC, SUCCESS, Call, HostFunction

BLOCK_BYTES: Final = 4096
_MOVED_BYTES: Final = 2 * BLOCK_BYTES
_O_CREAT: Final = 1
_O_EXCL: Final = 4
_ENOENT: Final = 44

_ONE = Struct("<I")
_FOUR = Struct("<I12xI12xI12xI")
_OFFSET_LENGTH = Struct("<16xQ8xQ")


def _charged(call: Call, caller: int, args: int, *, name: str, count: int, cost: int) -> int:
    """Calls the real function if the quota has `cost`, and takes it unless the call fails."""
    quota = call.quota
    assert quota is not None
    if cost > quota.left:
        return ENOSPC
    errno = call.relay(name, caller, args, count)
    if errno == SUCCESS:
        quota.left -= cost
    return errno


def _write(call: Call, caller: int, args: int, *, name: str, count: int, extra: int) -> int:
    """fd_write and fd_pwrite: the quota must have what is asked for; what was written counts."""
    _fd, iovs, iovs_count, _fourth = _FOUR.unpack(string_at(args, 52))
    written_slot = args + 16 * (count - 1)
    (written_at,) = _ONE.unpack(string_at(written_slot, 4))
    base, size = call.memory(caller)
    pairs = call.gather(base, size, iovs, iovs_count)
    if pairs is None or written_at + 4 > size:
        return EFAULT
    asked = sum(length for _address, length in pairs)
    quota = call.quota
    assert quota is not None
    if asked + extra > quota.left:
        return ENOSPC
    c_uint32.from_address(args + 32).value = len(pairs)
    errno = call.relay(name, caller, args, count)
    if errno == SUCCESS:
        base, _size = call.memory(caller)
        quota.left -= c_uint32.from_address(base + written_at).value + extra
    return errno


def write_file(call: Call, caller: int, args: int) -> int:
    """fd_write on a descriptor that is not a captured stream."""
    quota = call.quota
    assert quota is not None
    (fd,) = _ONE.unpack(string_at(args, 4))
    extra = _MOVED_BYTES if fd in quota.moved else 0
    errno = _write(call, caller, args, name="fd_write", count=4, extra=extra)
    if errno == SUCCESS:
        quota.moved.discard(fd)
    return errno


def fd_pwrite(call: Call, caller: int, args: int) -> int:
    return _write(call, caller, args, name="fd_pwrite", count=5, extra=_MOVED_BYTES)


def _moving(name: str) -> HostFunction:
    """fd_seek and fd_read leave the descriptor somewhere else."""

    def moving(call: Call, caller: int, args: int) -> int:
        quota = call.quota
        assert quota is not None
        (fd,) = _ONE.unpack(string_at(args, 4))
        if fd not in call.streams:
            quota.moved.add(fd)
        return call.relay(name, caller, args, 4)

    return moving


def fd_allocate(call: Call, caller: int, args: int) -> int:
    offset, length = _OFFSET_LENGTH.unpack(string_at(args, 40))
    cost = offset + length + BLOCK_BYTES
    return _charged(call, caller, args, name="fd_allocate", count=3, cost=cost)


def fd_filestat_set_size(call: Call, caller: int, args: int) -> int:
    length = c_uint64.from_address(args + 16).value
    quota = call.quota
    assert quota is not None
    quota.moved.add(c_uint32.from_address(args).value)
    cost = length + BLOCK_BYTES
    return _charged(call, caller, args, name="fd_filestat_set_size", count=2, cost=cost)


def open_charged(call: Call, caller: int, args: int) -> int:
    """path_open. Charges only for a file that was not there: asks without O_CREAT first, unless
    O_EXCL says that it must not be."""
    quota = call.quota
    assert quota is not None
    oflags = c_uint32.from_address(args + 64)
    if not oflags.value & _O_CREAT:
        return call.relay("path_open", caller, args, 9)
    if oflags.value > 0xFFFF:
        return EINVAL
    if not oflags.value & _O_EXCL:
        saved = string_at(args, 144)
        oflags.value &= ~_O_CREAT
        errno = call.relay("path_open", caller, args, 9)
        if errno != _ENOENT:
            return errno
        memmove(args, saved, 144)
    return _charged(call, caller, args, name="path_open", count=9, cost=BLOCK_BYTES)


def _creating(name: str, count: int) -> HostFunction:
    def creating(call: Call, caller: int, args: int) -> int:
        return _charged(call, caller, args, name=name, count=count, cost=2 * BLOCK_BYTES)

    return creating


QUOTA_FUNCTIONS: Final[dict[str, HostFunction]] = {
    "fd_allocate": fd_allocate,
    "fd_filestat_set_size": fd_filestat_set_size,
    "fd_pwrite": fd_pwrite,
    "fd_read": _moving("fd_read"),
    "fd_seek": _moving("fd_seek"),
    "path_create_directory": _creating("path_create_directory", 3),
    "path_link": _creating("path_link", 7),
    "path_symlink": _creating("path_symlink", 5),
}
