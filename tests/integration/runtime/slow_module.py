"""A module that keeps the optimising compiler busy."""

from __future__ import annotations


def slow_module() -> bytes:
    """One function of a million additions: seconds to compile, hundreds of megabytes."""
    body = b"\x00" + b"\x20\x00" + b"\x20\x00\x6a" * 1_000_000 + b"\x0b"

    def leb(value: int) -> bytes:
        out = b""
        while True:
            value, low = value >> 7, value & 0x7F
            out += bytes([low | (0x80 if value else 0)])
            if not value:
                return out

    def section(number: int, content: bytes) -> bytes:
        return bytes([number]) + leb(len(content)) + content

    return (
        b"\0asm\1\0\0\0"
        + section(1, b"\x01\x60\x01\x7f\x01\x7f")
        + section(3, b"\x01\x00")
        + section(10, b"\x01" + leb(len(body)) + body)
    )
