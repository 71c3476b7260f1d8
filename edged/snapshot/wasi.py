"""The environment of an initialiser. Its clock and random numbers are edged.runtime.world's."""

from __future__ import annotations

from ctypes import memmove, string_at
from struct import Struct
from typing import Final

from edged.runtime.call import EFAULT, SUCCESS, Call, HostFunction

_PAIR: Final = Struct("<I12xI")


class Environment:
    """Answers for the environment, and counts: a libc that has read it keeps what it saw."""

    def __init__(self, variables: dict[str, str]) -> None:
        """Names and values without NUL, names without "=": the sandbox checks."""
        self.reads = 0
        self._texts = [f"{name}={value}\0".encode() for name, value in variables.items()]

    def functions(self) -> dict[str, tuple[str, HostFunction]]:
        """As of edged.runtime.world.World."""
        return {"environ_get": ("ii", self._get), "environ_sizes_get": ("ii", self._sizes)}

    def _sizes(self, call: Call, caller: int, args: int) -> int:
        self.reads += 1
        count_at, size_at = _PAIR.unpack(string_at(args, 20))
        numbers = len(self._texts), sum(map(len, self._texts))
        parts = zip((count_at, size_at), numbers, strict=True)
        return _write(call, caller, [(at, number.to_bytes(4, "little")) for at, number in parts])

    def _get(self, call: Call, caller: int, args: int) -> int:
        pointers_at, buffer_at = _PAIR.unpack(string_at(args, 20))
        at, pointers = buffer_at, b""
        for text in self._texts:
            pointers += (at & 0xFFFFFFFF).to_bytes(4, "little")
            at += len(text)
        return _write(call, caller, [(pointers_at, pointers), (buffer_at, b"".join(self._texts))])


def _write(call: Call, caller: int, parts: list[tuple[int, bytes]]) -> int:
    base, size = call.memory(caller)
    if any(at + len(data) > size for at, data in parts):
        return EFAULT
    for at, data in parts:
        memmove(base + at, data, len(data))
    return SUCCESS
